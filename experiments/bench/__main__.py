"""stackjax beside its peers: compile time, step time and memory against depth, a sweep by vmap, and decoding.

    python -m experiments.bench
    python -m experiments.bench --quick
    python -m experiments.bench --large        about 1 B parameters in bfloat16, for a GPU

Needs the extra `bench`; a peer that is not installed is left out, and said so. Timings want a machine that does nothing
else. To compare on one core: `taskset -c 0 python -m experiments.bench`.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

import stackjax as sj

from ..lab import command_line, environment
from ..lab.options import one_or_more, some
from . import agree, alone, decoding, machine, packed, page, peers, program, verdict, vmapped
from .peers.base import Size
from .program import Row

Part = Literal["agree", "remat", "compile", "sweep", "decode", "packed", "train"]
PARTS: tuple[Part, ...] = ("agree", "remat", "compile", "sweep", "decode", "packed", "train")
PACKAGES = ("torch", "transformers", "equinox", "dm-haiku")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure stackjax beside its peers and write finding.md and result.json.

    Exit status: 0 done, whatever the verdicts; 2 bad usage; 130 interrupted.
    """

    out: str = "runs/bench"
    """Folder of the result."""
    quick: bool = False
    """A tiny version of everything, to see that it runs; its numbers mean nothing."""
    large: bool = False
    """About 1 B parameters in bfloat16, for one GPU of 80 GB: training, each peer in a process of its own, documents
    packed and padded, and decoding."""
    minutes: float = 20.0
    """Nothing is begun that would probably end later than this; what was left out is said."""
    parts: tuple[Part, ...] = PARTS
    """Parts of the benchmark, in this order."""
    peers: tuple[str, ...] = tuple(name for name in peers.PEERS if name != "unrolled")
    """Libraries that take part; `unrolled` is stackjax without its scan."""
    size: tyro.conf.OmitArgPrefixes[Size] = Size()
    """Sizes of the model; its depth is not read."""
    depths: tuple[int, ...] = (2, 16, 128, 512)
    """Layers."""
    deepest_step: int = 128
    """Deeper stacks are compiled and weighed, but take no steps."""
    remats: tuple[Literal["none", "layer", "dots", "nested"], ...] = ("none", "layer", "dots", "nested")
    """Rematerialisations; each peer has some of them."""
    remat_depth: int = 256
    """Layers in which stackjax's rematerialisations are compared."""
    compile_depths: tuple[int, int] = (4, 512)
    """Layers whose compile times are compared."""
    compile_pairs: int = 5
    """Pairs of compilations, in turn."""
    rounds: int = 5
    """Steps to time of each peer, in turn."""
    together: bool = True
    """All peers of a group in memory and their steps in turn; otherwise each in a process of its own, one by one."""

    def __post_init__(self):
        if self.quick and self.large:
            raise ValueError("--quick and --large cannot be had at once")
        one_or_more(self, "deepest_step", "remat_depth", "compile_pairs", "rounds")
        some(self, "parts", "peers", "depths", "remats")
        one_or_more(self, "depths", "compile_depths")
        if unknown := [name for name in self.peers if name not in peers.PEERS]:
            raise ValueError(f"unknown peer {unknown[0]!r}; known are {', '.join(peers.PEERS)}")
        if not 0 <= self.minutes < float("inf"):
            raise ValueError(f"--minutes must be 0 or more; got {self.minutes:g}")


USUAL = Options()
QUICK = replace(
    USUAL,
    quick=True,
    size=Size(d_model=16, n_heads=2, context=8, batch=2, vocab=32),
    depths=(2, 4),
    remat_depth=4,
    compile_depths=(2, 4),
    compile_pairs=1,
    rounds=1,
)
LARGE = replace(
    USUAL,
    large=True,
    size=Size(d_model=2048, n_heads=16, context=2048, batch=8, vocab=32768, dtype="bfloat16"),
    depths=(20,),
    peers=("stackjax", "unrolled", "linen", "torch", "torch_compile"),
    remats=("layer", "dots", "none"),
    parts=("train", "packed", "decode"),
    together=False,
)


class Bench:
    """A run of the benchmark: what was asked, what was found, and how much time is left."""

    def __init__(self, options: Options, command: str):
        self.options, self.console = options, Console(soft_wrap=True)
        self.began = time.perf_counter()
        self.results: dict[str, Any] = {
            **environment.provenance(command, packages=PACKAGES),
            "quick": options.quick,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "cores": machine.cores(),
            "clock": "CPU seconds" if machine.on_one_core() else "wall seconds",
            "load": f"{os.getloadavg()[0]:.1f}",
            "size": asdict(options.size),
            "peak": machine.peak() if options.size.dtype != "float32" else None,
            "matmul_flops_per_second": machine.matmul_rate(options.size),
            "model_flops": {},
            "agreement": None,
            "rows": [],
            "remat": [],
            "remat_peer": None,
            "compile": None,
            "sweep": [],
            "decode": [],
            "packed": [],
            "skipped": [],
        }
        for name in options.peers:
            if not peers.installed(name):
                self.skip(f"{name}: {peers.PEERS[name][0]} is not installed")
        self.peers = [name for name in options.peers if peers.installed(name)]

    def say(self, line: str) -> None:
        """One line of progress."""
        self.console.print(f"{(time.perf_counter() - self.began) / 60:5.1f} min  {line}", highlight=False, markup=False)

    def skip(self, line: str) -> None:
        """Something that is left out, and why."""
        self.results["skipped"].append(line)
        self.say(f"left out: {line}")

    def fits(self, what: str, seconds: float) -> bool:
        """True if there is time for something; else says what is left out."""
        if seconds > self.left:
            self.skip(f"{what}: about {seconds:.0f} s, and {max(self.left, 0):.0f} s of --minutes are left")
        return seconds <= self.left

    @property
    def left(self) -> float:
        """Seconds of --minutes that are left."""
        return 60 * self.options.minutes - (time.perf_counter() - self.began)

    def run(self) -> dict[str, Any]:
        """Run all parts that there is time for."""
        for part in self.options.parts:
            if self.fits(part, 0):
                self.attempt(part, getattr(self, part))
                page.save(self.results, Path(self.options.out))
        return self.results

    def agree(self) -> None:
        """Check that the peers are the same model."""
        size = replace(self.options.size, depth=2)
        rows = [agree.losses(name, size) for name in self.peers]
        self.results["agreement"] = {"rows": rows, "largest_difference": agree.largest_difference(rows)}
        self.say(f"losses agree to {self.results['agreement']['largest_difference']:.1e}")

    def remat(self) -> None:
        """Measure what stackjax's rematerialisations save and cost, beside the first other JAX peer without any."""
        size = replace(self.options.size, depth=self.options.remat_depth)
        wanted = [("stackjax", remat) for remat in ("none", "layer", "nested")]
        rows = self.group(size, wanted, rounds=min(self.options.rounds, 3))
        peer = next((name for name in verdict.JAX_PEERS if name in self.peers), None)
        for row in rows:
            row["gradient_bytes"] = program.gradient_bytes(row["peer"], size, row["remat"])
        self.results["remat"] = rows
        if peer is not None:
            facts = {"peer": peer, "remat": "none", "depth": size.depth, "step_seconds": None, "temp_bytes": None}
            self.results["remat_peer"] = {**facts, "gradient_bytes": program.gradient_bytes(peer, size, "none")}

    def compile(self) -> None:
        """Compile times of a shallow and of a deep stack, in turn."""
        depths = self.options.compile_depths
        seconds: dict[int, list[float]] = {depth: [] for depth in depths}
        sizes: dict[int, int] = {}
        for _ in range(self.options.compile_pairs):
            for depth in depths:
                facts = program.prepare("stackjax", replace(self.options.size, depth=depth), "none").facts
                seconds[depth].append(facts["compile_cpu_seconds"])
                sizes[depth] = facts["equations"]
        shallow, deep = depths
        ratios = [b / a for a, b in zip(seconds[shallow], seconds[deep], strict=True)]
        self.results["compile"] = {
            "depths": depths,
            "cpu_seconds": {str(depth): seconds[depth] for depth in depths},
            "ratios": ratios,
            "equations": [sizes[depth] for depth in depths],
        }
        self.say(f"compile, {deep} layers / {shallow}: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")

    def sweep(self) -> None:
        """Runs side by side."""
        quick = self.options.quick
        sizes = vmapped.QUICK if quick else vmapped.USUAL | {"rounds": self.options.rounds}
        for depth, recipe in itertools.product((2,) if quick else (2, 10), ("pre_norm", "hyper_connections")):
            row = vmapped.measure(recipe=recipe, depth=depth, **sizes)
            self.results["sweep"].append(row)
            self.say(f"{row['runs']} runs of {recipe}, {depth} layers: " + _seconds(row["seconds"]))

    def decode(self) -> None:
        """Tokens a second."""
        if missing := decoding.missing():
            self.skip(f"decoding beside transformers: {', '.join(missing)} not installed")
            return
        sizes: dict[str, Any]
        sizes, prompts, batches = decoding.USUAL, (16, 512), (1, 8, 32)
        if self.options.quick:
            sizes, prompts, batches = decoding.QUICK, (4,), (1, 2)
        elif self.options.large:
            size = self.options.size
            sizes = sizes | {"d_model": size.d_model, "n_heads": size.n_heads, "depth": self.options.depths[0]}
            sizes |= {"vocab": size.vocab, "dtype": size.dtype}
        side_by_side = decoding.SideBySide(n_positions=max(prompts) + sizes["n_tokens"], **sizes)
        for prompt, batch in itertools.product(prompts, batches):
            row = side_by_side.measure(batch=batch, prompt=prompt)
            self.results["decode"].append(row)
            rates = ", ".join(f"{name} {rate:.0f}" for name, rate in row["tokens_per_second"].items())
            self.say(f"tokens/s at batch {batch} after {prompt}: {rates}")

    def packed(self) -> None:
        """Documents in rows of their own, and packed."""
        size = replace(self.options.size, depth=2 if self.options.quick else self.options.depths[0])
        self.results["packed"] = packed.measure(size, "layer", self.options.rounds)
        self.say("tokens/s: " + ", ".join(f"{r['way']} {r['tokens_per_second']:.0f}" for r in self.results["packed"]))

    def train(self) -> None:
        """Every peer at every depth and rematerialisation."""
        before: dict[str, list[Row]] = {}
        for depth in self.options.depths:
            size = replace(self.options.size, depth=depth)
            self.results["model_flops"][str(depth)] = program.model_flops(size)
            rounds = self.options.rounds if depth <= self.options.deepest_step else 0
            for remat in self.options.remats:
                last = before.get(remat, [])
                if not self.fits(f"{depth} layers, remat {remat}", expected(last, depth, rounds)):
                    continue
                wanted = [(name, remat) for name in self.peers if remat in peers.load(name).remats]
                if not rounds:
                    wanted = [(name, remat) for name, remat in wanted if not name.startswith("torch")]
                before[remat] = self.group(size, wanted, rounds)
                self.results["rows"] += before[remat]
                page.save(self.results, Path(self.options.out))

    def group(self, size: Size, wanted: Sequence[tuple[str, str]], rounds: int) -> list[Row]:
        """Peers of one depth, compiled and timed in turn."""
        if not self.options.together:
            return [row for one in wanted if (row := self.alone(size, *one, rounds))]
        programs = []
        for name, remat in wanted:
            what = f"{name}, {size.depth} layers, remat {remat}"
            made = self.attempt(what, lambda name=name, remat=remat: program.prepare(name, size, remat))
            if made is None or (rounds and self.attempt(what, made.step) is None):
                continue
            programs.append(made)
            self.say(f"{what}: compiled in {made.facts['compile_seconds']:.1f} s")
        program.run(programs, rounds)
        rows = [made.row for made in programs]
        if rounds:
            self.say("steps: " + _seconds({f"{row['peer']} {row['remat']}": row["step_seconds"] for row in rows}))
        return rows

    def alone(self, size: Size, name: str, remat: str, rounds: int) -> Row | None:
        """One peer in a process of its own."""
        what = f"{name}, {size.depth} layers, remat {remat}"
        row = self.attempt(what, lambda: alone.measure(name, size, remat, rounds, max(self.left, 1)))
        if row is not None:
            self.say(f"{what}: " + _seconds({"compile": row["compile_seconds"], "step": row["step_seconds"] or 0.0}))
        return row

    def attempt(self, what: str, do: Callable[[], Any]) -> Any:
        """The result; None, and a line, if it fails."""
        try:
            return do()
        except Exception as error:
            self.skip(f"{what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return None


def expected(last: list[Row], depth: int, rounds: int) -> float:
    """Seconds that a group will take, judged by a shallower one; PyTorch's compile time grows with the depth."""
    if not last:
        return 0.0
    ratio = depth / max(last[0]["depth"], 1)
    compiling = sum(row["compile_seconds"] * (1 if row["equations"] else ratio) for row in last)
    return compiling + (rounds + 1) * ratio * sum(row["step_seconds"] or 0.0 for row in last)


def _seconds(named: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.3g} s" for name, seconds in named.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. A process of its own keeps its memory from step to step."""
    if arguments is None:
        sj.memory.keep()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return command_line.command("experiments.bench", prepared, work, arguments)


def prepared(words: Sequence[str], line: str) -> tuple[Options, str]:
    """The options and the command that they came from.

    Raises:
        ValueError: what cannot be.
    """
    preset = LARGE if "--large" in words else QUICK if "--quick" in words else USUAL
    options = command_line.parse(words, Options, "experiments.bench", preset)
    command_line.make_folder(options.out)
    return options, line


def work(made: tuple[Options, str]) -> int:
    """Measure and judge; returns the exit status."""
    options, line = made
    if "torch" in options.peers and peers.installed("torch"):
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(machine.cores())
    results = Bench(options, line).run()
    print("", *(_line(target.row) for target in verdict.judge(results)), sep="\n")
    print(f"\nThe page: {Path(options.out) / 'finding.md'}")
    return command_line.OK


def _line(row: Row) -> str:
    return f"{row[''].strip('*'):<8} {row['found']:>9} ({row['bound']})  {row['target']}"


if __name__ == "__main__":
    sys.exit(main())
