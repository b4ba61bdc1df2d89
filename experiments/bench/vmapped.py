"""Eight runs of a sweep at once, by vmap, against the same eight one after another."""

import math
import statistics
from collections.abc import Callable

import jax
import numpy as np

import stackjax as sj

from ..lab import compile_cache, lanes, names, train
from .machine import clock
from .program import Row

RATES, SEEDS = (3e-4, 1e-3, 3e-3, 1e-2), (0, 1)
QUICK: Row = {"d_model": 16, "batch": 2, "context": 8, "rounds": 1, "compiles": 1}
USUAL: Row = {"d_model": 64, "batch": 8, "context": 64, "compiles": 3}
"""Sizes of `measure`."""


@compile_cache.off()
def measure(
    *, recipe: str, d_model: int, depth: int, batch: int, context: int, rounds: int, compiles: int, chunk: int = 4
) -> Row:
    """Seconds a step of eight runs, by one vmap, and one after another by a vmap of one and by a program of one.

    Args:
        recipe: its name.
        d_model: D.
        depth: L.
        batch: B.
        context: T.
        rounds: chunks to time, in turn; the medians count.
        compiles: of each way, in turn; the medians count.
        chunk: steps in a chunk.
    """
    sizes: Row = {"d_model": d_model, "depth": depth}
    model = sj.decoder(vocab=256, n_heads=4, position=sj.position.Rotary(), recipe=names.recipe_named(recipe), **sizes)
    trainer = train.Trainer(task=train.NextToken(model=model))
    hypers = [train.Hyper(learning_rate=rate, seed=seed, steps=10**6) for rate in RATES for seed in SEEDS]
    shape = (len(hypers), chunk, batch, context + 1)
    batches = np.random.default_rng(0).integers(0, 256, shape).astype(np.int32)
    every = (train.stack_hyper(hypers), batches)
    one, alone = (jax.tree.map(lambda x, at=at: x[at], every) for at in (slice(1), 0))
    ways: dict[str, tuple[lanes.Mode, tuple[train.Hyper, np.ndarray], int]] = {
        "vmap": ("vmap", every, 1),
        "by a vmap of one": ("vmap", one, len(hypers)),
        "one after another": ("loop", alone, len(hypers)),
    }
    jobs: dict[str, Callable[[], None]] = {}
    compiling: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(compiles):
        for name, (mode, (hyper, read), _) in ways.items():
            programs = lanes.compile_lanes(trainer, hyper, read, batches[0], mode=mode)
            compiling[name].append(programs.compile_seconds or math.nan)
            jobs[name] = chunks(programs, hyper, read)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = clock()
            job()
            times[name].append(ways[name][2] * (clock() - began) / chunk)
    pairs = zip(times["vmap"], times["one after another"], strict=True)
    return {
        **sizes,
        **{"recipe": recipe, "batch": batch, "context": context, "runs": len(hypers)},
        "seconds": {name: statistics.median(measured) for name, measured in times.items()},
        "compile_seconds": {name: statistics.median(measured) for name, measured in compiling.items()},
        "ratios": [at_once / in_turn for at_once, in_turn in pairs],
    }


def chunks(programs: lanes.Programs, hyper: train.Hyper, batches: np.ndarray) -> Callable[[], None]:
    """A function that takes a chunk of steps, warm."""
    state = [programs.start(hyper, batches[..., 0, :, :])]

    def advance() -> None:
        state[0], seen = programs.advance(hyper, state[0], batches)
        jax.block_until_ready(seen)

    advance()
    return advance
