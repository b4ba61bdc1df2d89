"""Eight runs of a sweep at once, by vmap, against the same eight one after another."""

import statistics

import numpy as np

import stackjax as sj
from experiments.bench.program import Row
from experiments.lab import lanes, train
from experiments.lab.corpus import Corpus

RATES, SEEDS = (3e-4, 1e-3, 3e-3, 1e-2), (0, 1)


def measure(*, d_model: int, depth: int, batch: int, context: int, rounds: int, chunk: int = 4) -> Row:
    """Seconds a step of all eight runs: vmapped, looped inside one program, and as eight calls of a program for one.

    Args:
        d_model: D.
        depth: L.
        batch: B.
        context: T.
        rounds: chunks to time, in turn; the median counts.
        chunk: steps in a chunk.
    """
    random = np.random.default_rng(0)
    corpus = Corpus.of("random", *(random.integers(0, 256, n).astype(np.uint8) for n in (50_000, 10_000)), vocab=256)
    model = sj.decoder(vocab=256, d_model=d_model, depth=depth, n_heads=4, position=sj.position.Rotary())
    trainer = train.Trainer(task=train.NextToken(model=model))

    def begin(rates: tuple[float, ...], seeds: tuple[int, ...], mode: lanes.Mode) -> lanes.Run:
        numbers = [train.Hyper(learning_rate=rate, seed=seed, steps=10_000) for rate in rates for seed in seeds]
        run = lanes.Run(
            trainer,
            numbers,
            lambda seed, step: corpus.batch(seed=seed, step=step, batch=batch, context=context),
            corpus.valid_batches(1, batch=batch, context=context),
            eval_every=chunk,
            mode=mode,
        )
        run.begin()
        run.chunk()
        return run

    runs = {
        "vmap": begin(RATES, SEEDS, "vmap"),
        "loop": begin(RATES, SEEDS, "loop"),
        "one": begin((1e-3,), (0,), "vmap"),
    }
    for _ in range(rounds):
        for run in runs.values():
            run.chunk()
    seconds = {name: statistics.median(run.step_seconds[1:]) for name, run in runs.items()}
    seconds["one after another"] = len(RATES) * len(SEEDS) * seconds.pop("one")
    size = {"d_model": d_model, "depth": depth, "batch": batch, "context": context}
    return {**size, "runs": len(RATES) * len(SEEDS), "seconds": seconds}
