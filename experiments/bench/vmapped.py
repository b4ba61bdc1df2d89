"""Eight runs of a sweep at once, by vmap, against the same eight one after another."""

import statistics
from collections.abc import Callable

import jax
import numpy as np

import stackjax as sj

from ..lab import compile_cache, lanes, names, train
from .machine import clock
from .program import Row

RATES, SEEDS = (3e-4, 1e-3, 3e-3, 1e-2), (0, 1)


@compile_cache.off()
def measure(*, recipe: str, d_model: int, depth: int, batch: int, context: int, rounds: int, chunk: int = 4) -> Row:
    """Seconds a step of all eight runs, by vmap and as eight calls of a program for one, and seconds to compile either.

    Args:
        recipe: its name.
        d_model: D.
        depth: L.
        batch: B.
        context: T.
        rounds: chunks to time, in turn; the median counts.
        chunk: steps in a chunk.
    """
    sizes: Row = {"d_model": d_model, "depth": depth}
    model = sj.decoder(vocab=256, n_heads=4, position=sj.position.Rotary(), recipe=names.recipe_named(recipe), **sizes)
    trainer = train.Trainer(task=train.NextToken(model=model))
    hypers = [train.Hyper(learning_rate=rate, seed=seed, steps=10**6) for rate in RATES for seed in SEEDS]
    shape = (len(hypers), chunk, batch, context + 1)
    batches = np.random.default_rng(0).integers(0, 256, shape).astype(np.int32)
    hyper = lanes.stack_hyper(hypers)
    one, read = jax.tree.map(lambda x: x[0], (hyper, batches))
    programs = {
        "vmap": lanes.compile_lanes(trainer, hyper, batches, batches[0]),
        "one after another": lanes.compile_lanes(trainer, one, read, read, mode="loop"),
    }
    jobs = {
        "vmap": chunks(programs["vmap"], hyper, batches),
        "one after another": chunks(programs["one after another"], one, read),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = clock()
            job()
            times[name].append((clock() - began) / chunk)
    seconds = {name: statistics.median(measured) for name, measured in times.items()}
    seconds["one after another"] *= len(hypers)
    compiling = {name: program.compile_seconds for name, program in programs.items()}
    sizes |= {"recipe": recipe, "batch": batch, "context": context}
    return {**sizes, "runs": len(hypers), "seconds": seconds, "compile_seconds": compiling}


def chunks(programs: lanes.Programs, hyper: train.Hyper, batches: np.ndarray) -> Callable[[], None]:
    """A function that takes a chunk of steps, warm."""
    state = [programs.start(hyper, batches[..., 0, :, :])]

    def advance() -> None:
        state[0], seen = programs.advance(hyper, state[0], batches)
        jax.block_until_ready(seen)

    advance()
    return advance
