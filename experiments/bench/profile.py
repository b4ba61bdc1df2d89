"""The profile of a training step: every instruction of the compiled program, timed by XLA's own profiler.

    python -m experiments.bench.profile
    taskset -c 0 python -m experiments.bench.profile --size.depth 32 --remat layer

On a CPU. Three processes are profiled in turn: one gives the memory of each step back to the kernel, as every program
does that is not told otherwise, one keeps it (`stackjax.memory.keep`), as the trainer and the benchmark do, and one
keeps it in large pages. The folder also holds their traces for Perfetto (ui.perfetto.dev opens them).
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import altair
import jax

from stackjax import memory

from ..lab import command_line, environment, finding
from ..lab.options import Finding, one_or_more, plain
from . import machine
from . import program as programs
from .peers.base import Size

LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment variables that make glibc ask the kernel for large pages; other C libraries do not read them."""

GIVEN_BACK = "given back"
WAYS: dict[str, dict[str, Any]] = {
    GIVEN_BACK: {"keep": False, "variables": {}},
    "kept": {"keep": True, "variables": {}},
    "kept, in large pages": {"keep": True, "variables": LARGE_PAGES},
}
"""Arguments of `in_a_process` by what becomes of the memory of a step."""

KINDS = {
    "matrix products, fused": r"ynn_fusion",
    "matrix products, plain": r"dot|custom-call",
    "buffers filled with zeros": r"wrapped_broadcast|broadcast(_in_dim)?_fusion$|broadcast$",
    "stacked in and out of the scan": r"dynamic-(update-)?slice",
    "copies between layouts": r"copy|transpose",
    "loop control": r"while|call|conditional|tuple|constant",
}
"""Kinds of instructions by the beginning of their names, the first that fits; all others are elementwise or reduce."""
OTHERS = "elementwise and reductions"


@dataclass(frozen=True, kw_only=True)
class Options(Finding):
    """Profile a training step.

    Exit status: 0 done; 2 bad usage; 130 interrupted.
    """

    out: str = "runs/profile"
    """Folder of the result."""
    size: Size = Size()
    """Sizes of the model."""
    remat: Literal["none", "layer", "nested", "dots"] = "none"
    """The rematerialisation."""
    steps: int = 10
    """Steps that are profiled, after three that are not."""
    longest: int = 20
    """Instructions to list, the longest first."""

    def __post_init__(self):
        one_or_more(self, "steps", "longest")


USUAL = Options()
QUICK = replace(
    USUAL, quick=True, size=Size(d_model=16, n_heads=2, context=8, batch=2, vocab=32, depth=2), steps=2, longest=5
)


def kind(name: str) -> str:
    """The kind of an instruction, from the name that XLA gave it."""
    name = re.sub(r"^(bitcast_|select_|multiply_|add_|subtract_)*", "", re.sub(r"\.\d+$", "", name)) or name
    return next((kind for kind, pattern in KINDS.items() if re.match(pattern, name)), OTHERS)


def profiled(size: Size, remat: str, steps: int, trace: Path) -> dict[str, Any]:
    """Run training steps under the profiler.

    Args:
        size: of the model.
        remat: its rematerialisation.
        steps: how many are profiled.
        trace: the file to which the trace goes.

    Returns:
        instructions, {name: seconds a step, summed over threads}; step_seconds, the median of as many steps without the
        profiler, of the processor on one core and else of the wall; page_faults and system_seconds of a step.
    """
    import resource

    prepared = programs.prepare("stackjax", size, remat)
    programs.run([prepared], 2)
    prepared.seconds.clear()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(steps):
        prepared.timed_step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(steps):
                prepared.step()
        (written,) = Path(folder).rglob("perfetto_trace.json.gz")
        shutil.copyfile(written, trace)
    spent: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[event["name"]] += event["dur"] * 1e-6 / steps
    return {
        "instructions": dict(spent.most_common()),
        "step_seconds": prepared.row["step_seconds"],
        "page_faults": (after.ru_minflt - before.ru_minflt) / steps,
        "system_seconds": (after.ru_stime - before.ru_stime) / steps,
        "temp_bytes": prepared.facts["temp_bytes"],
    }


def in_a_process(options: Options, trace: Path, *, keep: bool, variables: dict[str, str]) -> dict[str, Any]:
    """`profiled` in a process of its own, that keeps its memory or not, with more environment variables.

    Raises:
        RuntimeError: it failed; the message holds what it said last.
    """
    asked = {"size": asdict(options.size), "remat": options.remat, "steps": options.steps, "trace": str(trace)}
    asked["keep"] = keep
    command = [sys.executable, "-m", __spec__.name, json.dumps(asked)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def prepare(options: Options) -> Options:
    """The options, on a machine where they make sense.

    Raises:
        ValueError: not a CPU.
    """
    if jax.default_backend() != "cpu":
        raise ValueError("this profile reads a CPU's trace; on a GPU or TPU use jax.profiler and its own viewer")
    return options


def run(options: Options, command: str) -> Path:
    """Profile the processes and write the finding; returns its page."""
    found = {
        way: in_a_process(options, Path(options.out) / f"trace_{i}.json.gz", **how)
        for i, (way, how) in enumerate(WAYS.items())
    }
    rows = [
        {"way": way, "kind": kind(name), "instruction": name, "milliseconds": 1e3 * seconds}
        for way, one in found.items()
        for name, seconds in one["instructions"].items()
    ]
    whole = {way: {name: x for name, x in one.items() if name != "instructions"} for way, one in found.items()}
    return finding.write(
        options.out,
        question="Where does the time of a training step go?",
        setting={**plain(options), "size": asdict(options.size), "found": whole},
        predictions=(),
        rows=rows,
        figures={"profile": chart(rows)},
        text=text(options, found),
        provenance=environment.provenance(command),
    )


def text(options: Options, found: dict[str, dict[str, Any]]) -> str:
    """The page: whole steps, kinds of instructions, and the longest instructions."""
    kept = found["kept"]
    steps = [
        {
            "memory": way,
            "step ms": f"{1e3 * one['step_seconds']:.1f}",
            "of it in the kernel, ms": f"{1e3 * one['system_seconds']:.1f}",
            "page faults a step": f"{one['page_faults']:,.0f}",
            "in instructions, ms": f"{1e3 * sum(one['instructions'].values()):.1f}",
        }
        for way, one in found.items()
    ]
    by_kind = {way: Counter() for way in found}
    for way, one in found.items():
        for name, seconds in one["instructions"].items():
            by_kind[way][kind(name)] += seconds
    kinds = [
        {
            "instructions": name,
            **{
                f"{way}, ms": f"{1e3 * by_kind[way][name]:.1f} ({by_kind[way][name] / by_kind[way].total():.0%})"
                for way in found
            },
        }
        for name, _ in by_kind["kept"].most_common()
    ]
    longest = [
        {
            "instruction": name,
            "kind": kind(name),
            **{f"{way}, ms": f"{1e3 * one['instructions'].get(name, 0):.2f}" for way, one in found.items()},
        }
        for name in list(kept["instructions"])[: options.longest]
    ]
    size, clock = options.size, "CPU time" if machine.on_one_core() else "wall time"
    setting = (
        f"{size.depth} layers, D = {size.d_model}, T = {size.context}, B = {size.batch}, {size.dtype}, "
        f'remat="{options.remat}"; {clock} on {machine.cores()} core(s), load {os.getloadavg()[0]:.1f}.'
    )
    ratios = [f"**{one['step_seconds'] / found[GIVEN_BACK]['step_seconds']:.2f}**" for one in found.values()][1:]
    pages = (
        f"XLA asks for its {kept['temp_bytes'] / 2**20:.0f} MiB of temporaries anew at every step. Where the process "
        "keeps them from step to step (`stackjax.memory.keep`, as in the trainer and the benchmark) a step takes "
        f"{ratios[0]} of the time, with `GLIBC_TUNABLES={LARGE_PAGES['GLIBC_TUNABLES']}` besides {ratios[1]}.\n\n"
        "Whole steps, by what becomes of the temporaries behind each step: medians without the profiler, and the "
        "milliseconds of XLA's instructions under the profiler, summed over threads. Below, the same milliseconds by "
        f"kind of instruction, and of the {options.longest} instructions that take longest, which have XLA's own names."
    )
    tables = "\n\n".join(map(finding.table, (steps, kinds, longest)))
    return f"{finding.QUICK * options.quick}{setting} {pages}\n\n{tables}"


def chart(rows: list[dict[str, Any]]) -> altair.Chart:
    """Milliseconds of a step by kind of instruction, a bar for each way."""
    return (
        altair.Chart(altair.Data(values=rows), width=420)
        .mark_bar()
        .encode(
            x=altair.X("sum(milliseconds):Q", title="milliseconds a step"),
            y=altair.Y("way:N", title=None),
            color=altair.Color("kind:N", title=None, legend=altair.Legend(labelLimit=260)),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] and words[0].startswith("{"):
        asked = json.loads(words[0])
        size = Size(**asked.pop("size"))
        if asked["keep"]:
            memory.keep()
        print(json.dumps(profiled(size, asked["remat"], asked["steps"], Path(asked["trace"]))))
        return command_line.OK
    program = "experiments.bench.profile"
    return command_line.main(program, usual=USUAL, quick=QUICK, prepare=prepare, run=run, arguments=words)


if __name__ == "__main__":
    raise SystemExit(main())
