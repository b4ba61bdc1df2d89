"""Cost of long inputs: memory and time of one gradient against the number of tokens, written out and in blocks.

    python -m experiments.long_inputs
    python -m experiments.long_inputs --tokens 1024 4096

A decoder's loss and its gradient, forward and backward, for one sequence. `written out` keeps all attention weights and
all logits; `blocks` keeps neither (`stackjax.blockwise`, `stackjax.loss.blockwise_cross_entropy`); `window` is the same
with attention to the last few tokens alone. Each is measured in a process of its own, and so is the peak of its memory.
"""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import altair
import jax
import jax.numpy as jnp

import stackjax as sj

from .lab import chart, command_line, compile_cache, environment, finding
from .lab.options import Finding, at_least, one_or_more, plain, some

Way = Literal["written out", "window", "blocks"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, kw_only=True)
class Options(Finding):
    """Measure what long inputs cost.

    Exit status: 0 done; 2 bad usage; 130 interrupted.
    """

    out: str = "runs/long_inputs"
    """Folder of the result: finding.md, result.json and figures."""
    tokens: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Tokens T of the one sequence."""
    written_out: int = 4096
    """Most tokens for which all weights are kept, in memory that grows with their square."""
    window: int = 256
    """Tokens that each sees where attention has a window."""
    vocab: int = 8192
    """Vocabulary V."""
    d_model: int = 32
    """Width D."""
    n_heads: int = 2
    """Attention heads H, a divisor of the width."""
    depth: int = 1
    """Layers L."""
    repeats: int = 1
    """Gradients to time; the median counts."""

    def __post_init__(self):
        some(self, "tokens")
        one_or_more(self, "window", "vocab", "d_model", "n_heads", "depth", "repeats")
        at_least(2, self, "tokens")
        at_least(0, self, "written_out")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Args:
        way: what is kept.
        tokens: T.
        temp_bytes: XLA's own count of temporary memory.
        peak_bytes: largest memory of the process, interpreter and compiler included.
        compile_seconds: of tracing and compiling.
        seconds: of one gradient.
        cpu_seconds: of all threads in one gradient, which other programs on the machine do not add to.
    """

    way: Way
    tokens: int
    temp_bytes: int
    peak_bytes: int
    compile_seconds: float
    seconds: float
    cpu_seconds: float


USUAL = Options()
QUICK = replace(USUAL, tokens=(256, 512), written_out=512, vocab=64, d_model=16, n_heads=2, window=64, quick=True)


def model_of(options: Options, way: Way) -> sj.Model:
    """The decoder that is measured."""
    attention = sj.Attention(
        n_heads=options.n_heads,
        window=options.window if way == "window" else None,
        backend="plain" if way == "written out" else "blockwise",
    )
    return sj.decoder(vocab=options.vocab, d_model=options.d_model, depth=options.depth, attention=attention)


@compile_cache.off()
def measure(options: Options, way: Way, n_tokens: int) -> Row:
    """Compile a gradient and run it, in this process."""
    model = model_of(options, way)

    def loss(params: sj.sublayer.Params, tokens: jax.Array) -> jax.Array:
        x, _ = model.hidden(params, tokens[:, :-1])
        head = partial(model.logits, params)
        block = n_tokens if way == "written out" else None
        return sj.loss.blockwise_cross_entropy(head, x, tokens[:, 1:], block=block)

    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, n_tokens + 1), 0, options.vocab)
    began = time.perf_counter()
    program = jax.jit(jax.value_and_grad(loss)).lower(params, tokens).compile()
    compile_seconds = time.perf_counter() - began
    memory, seconds, cpu_seconds = program.memory_analysis(), [], []
    for _ in range(options.repeats):
        began, cpu_began = time.perf_counter(), time.process_time()
        value, gradient = jax.block_until_ready(program(params, tokens))
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
        if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((value, gradient))):
            raise FloatingPointError(f"{way}, {n_tokens} tokens: the loss or its gradient is not finite")
    unit = 1 if sys.platform == "darwin" else 1024
    return Row(
        way=way,
        tokens=n_tokens,
        temp_bytes=0 if memory is None else memory.temp_size_in_bytes,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        compile_seconds=compile_seconds,
        seconds=statistics.median(seconds),
        cpu_seconds=statistics.median(cpu_seconds),
    )


def cases(options: Options) -> list[tuple[Way, int]]:
    """The cases to measure, in order."""
    return [(way, n) for n in options.tokens for way in WAYS if way != "written out" or n <= options.written_out]


def figure(rows: Sequence[Row]) -> altair.HConcatChart:
    """Memory and time against the number of tokens, both axes logarithmic."""
    values = [{**asdict(row), "temp_mebibytes": row.temp_bytes / 2**20} for row in rows]
    tokens = altair.Axis(values=sorted({row.tokens for row in rows}), format=",", labelFlush=False)
    panels = []
    for field, title in (("temp_mebibytes", "temporaries (MiB)"), ("cpu_seconds", "processor time of a gradient (s)")):
        ticks = altair.Axis(values=chart.decades(row[field] for row in values), format="~g")
        base = altair.Chart(altair.Data(values=values), width=280, height=220).encode(
            x=altair.X("tokens:Q", scale=altair.Scale(type="log", base=2, nice=False), title="tokens", axis=tokens),
            y=altair.Y(f"{field}:Q", scale=altair.Scale(type="log", nice=False), title=title, axis=ticks),
            color=altair.Color("way:N", title=None, scale=altair.Scale(domain=WAYS)),
        )
        dash = altair.condition("datum.way == 'blocks'", altair.value([5, 5]), altair.value([1, 0]))
        shape = altair.Shape("way:N", title=None, scale=altair.Scale(domain=WAYS))
        panels.append(base.mark_line().encode(strokeDash=dash) + base.mark_point(size=70).encode(shape=shape))
    return altair.hconcat(*panels)


def prepare(options: Options) -> Options:
    """The options, once models of their sizes can be made.

    Raises:
        ValueError: sizes that do not fit.
    """
    for way in WAYS:
        model_of(options, way)
    return options


def run(options: Options, command: str) -> Path:
    """Measure everything and write the finding; returns its page."""
    rows = []
    for way, n_tokens in cases(options):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, options, way, n_tokens).result())
        print(f"{n_tokens} tokens, {way}: {rows[-1].seconds:.1f} s, {rows[-1].peak_bytes / 2**20:.0f} MiB", flush=True)
    lines = [
        {
            "tokens": f"{row.tokens:,}",
            "way": row.way,
            "temporaries MiB": f"{row.temp_bytes / 2**20:,.0f}",
            "peak of the process MiB": f"{row.peak_bytes / 2**20:,.0f}",
            "compile s": f"{row.compile_seconds:.1f}",
            "gradient, wall s": f"{row.seconds:.2f}",
            "gradient, processor s": f"{row.cpu_seconds:.2f}",
        }
        for row in rows
    ]
    largest = max(rows, key=lambda row: (row.tokens, row.seconds))
    text = (
        f"A loss and its gradient for one sequence of a decoder with L = {options.depth}, D = {options.d_model}, "
        f"H = {options.n_heads}, V = {options.vocab:,}, in float32. {largest.tokens:,} tokens, each looking at all "
        f"before it, take {largest.seconds:.0f} s ({largest.cpu_seconds:.0f} s of processor time, of all cores "
        f"together) and {largest.peak_bytes / 2**30:.1f} GiB, interpreter and compiler included; the attention weights "
        f"of one layer alone would be {options.n_heads * largest.tokens**2 * 4 / 2**30:,.0f} GiB. *Written out* keeps "
        "all attention weights and all logits; *blocks* computes both in blocks and keeps neither; *window* is the "
        f"same with attention to the last {options.window} tokens alone. Where wall time is far above the processor's, "
        f"other programs had the cores: compare processor time.\n\n{_growth(rows)}"
    )
    return finding.write(
        options.out,
        question="What do long inputs cost?",
        setting=plain(options),
        predictions=(),
        rows=[asdict(row) for row in rows],
        figures={"long_inputs": figure(rows)},
        text=f"{finding.QUICK * options.quick}{text}\n\n{finding.table(lines)}",
        provenance=environment.provenance(command),
    )


def _growth(rows: Sequence[Row]) -> str:
    """Sentences on what each way costs at its most tokens, beside its fewest."""
    sentences = []
    for way in dict.fromkeys(row.way for row in rows):
        by_tokens = sorted((row for row in rows if row.way == way), key=lambda row: row.tokens)
        few, many = by_tokens[0], by_tokens[-1]
        sentences.append(
            f"- {way}: {many.tokens / few.tokens:g} times the tokens take {many.temp_bytes / few.temp_bytes:.1f} times "
            f"the temporaries and {many.cpu_seconds / few.cpu_seconds:.1f} times the processor time."
        )
    return "\n".join(sentences)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program = "experiments.long_inputs"
    return command_line.main(program, usual=USUAL, quick=QUICK, prepare=prepare, run=run, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
