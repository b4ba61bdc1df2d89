"""Train one arm of a claim: all its learning rates and seeds side by side, chosen on one half and reported on another.

Validation batches with an even number choose the learning rate, those with an odd number are reported, so that no
number is the lowest of several on the text that it was chosen by.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.sublayer import Params

from ..lab import data, lanes
from ..lab.corpus import Corpus
from ..lab.store import Json
from ..lab.train import Batch, Hyper, NextToken, Task, Trainer
from .claim import plain

Score = Callable[[Params, Batch], Mapping[str, jax.Array]]
"""Numbers of one lane's parameters on a batch, each ()."""


@functools.cache
def text() -> Corpus:
    """The corpus of all claims about text: the standard library of the running Python, byte by byte."""
    return data.load(None)


def train_on_text(
    model: sj.Model, *, context: int, batch: int, valid_windows: int = 256, chunks: int = 1, **numbers: Any
) -> Json:
    """`train` a decoder to predict the next byte.

    Args:
        model: a decoder.
        context: T.
        batch: B.
        valid_windows: windows of validation text, half of them to choose by.
        chunks: into how many parts the steps are divided.
        **numbers: the rest of `train`.

    Returns:
        As `train`, and `unigram`, the entropy of single bytes of the validation text in nats.
    """
    trained = train(
        NextToken(model=model),
        lambda seed, step: text().batch(seed=seed, step=step, batch=batch, context=context),
        text().valid_batches(-(-valid_windows // 32) * 2, batch=16, context=context),
        chunks=chunks,
        **numbers,
    )
    return {**trained, "unigram": text().unigram}


def train(
    task: Task,
    feed: lanes.Feed,
    valid: Batch,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    warmups: Sequence[int] | None = None,
    score: Score | None = None,
    until: Callable[[dict[str, np.ndarray]], bool] = lambda scores: False,
    chunks: int = 4,
) -> Json:
    """Train every learning rate with every seed.

    Args:
        task: what is learned.
        feed: training batches.
        valid: validation batches with a leading axis, an even number of them.
        rates: learning rates, at their peak.
        seeds: of init and data.
        steps: of each run.
        warmups: steps of warm-up; several make a further, outermost axis. None is one tenth of all steps.
        score: what else is read from trained parameters.
        until: whether the scores of all runs are good enough to stop.
        chunks: into how many parts the steps are divided.

    Returns:
        rates, steps (made), and `choose` and `loss`, the mean validation loss of either half, each a list for each
        rate (and warm-up, outside) of one number a seed; and, by name, each score of the half that is reported. None
        stands for what is not finite.
    """
    warm = (steps // 10,) if warmups is None else tuple(warmups)
    hypers = [
        Hyper(learning_rate=float(rate), seed=seed, steps=steps, warmup=warmup)
        for warmup in warm
        for rate in rates
        for seed in seeds
    ]
    first = jax.tree.map(lambda x: np.asarray(x)[:1], valid)
    run = lanes.Run(Trainer(task=task), hypers, feed, first, eval_every=-(-steps // chunks))
    shape = (len(warm) * len(rates), len(seeds))

    @jax.jit
    def numbers(params: Params, batch: Batch) -> dict[str, jax.Array]:
        def one(params: Params) -> dict[str, jax.Array]:
            return {"loss": task.loss(params, batch)[0], **({} if score is None else score(params, batch))}

        return jax.vmap(one)(params)

    def read(half: int) -> dict[str, np.ndarray]:
        batches = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[half::2]), valid)
        n = len(jax.tree.leaves(batches)[0])
        each = [jax.device_get(numbers(run.state.params, jax.tree.map(lambda x: x[i], batches))) for i in range(n)]  # noqa: B023
        alive = run.alive
        return {
            name: np.where(alive, np.mean([seen[name] for seen in each], 0), np.nan).reshape(shape) for name in each[0]
        }

    run.begin()
    while not run.ended:
        run.chunk()
        if score is not None and not run.ended and until(read(1)):
            break
    reported = read(1)
    trained = {"rates": [float(rate) for rate in rates], "steps": run.step, "params": task.model.n_params}
    return {**trained, "choose": plain(read(0)["loss"]), **{name: plain(values) for name, values in reported.items()}}


def chosen(row: Json, of: slice = slice(None)) -> int:
    """Index of the learning rate with the lowest mean loss on the half that chooses.

    A learning rate at which any seed diverged is not chosen unless all are such.

    Args:
        row: as `train` returns it.
        of: the rates among which to choose.
    """
    choose = np.array(row["choose"], float)[of]
    means = np.where(np.isnan(choose).any(1), np.inf, np.nan_to_num(choose, nan=np.inf).mean(1))
    return int(np.argmin(means))


def ends_of_grid(row: Json) -> list[float]:
    """Best learning rates that are the lowest or the highest of several: a better one may lie outside.

    Args:
        row: as `train` returns it, with one warm-up or more.
    """
    rates, n = row["rates"], len(row["rates"])
    best_ones = {chosen(row, slice(i, i + n)) for i in range(0, len(row["choose"]), n)}
    return [rates[i] for i in sorted(best_ones & {0, n - 1})] if n > 1 else []


def best(row: Json, name: str = "loss", *, of: slice = slice(None)) -> np.ndarray:
    """One number a seed at the learning rate that is `chosen`; infinite where it diverged.

    Args:
        row: as `train` returns it.
        name: which of its numbers.
        of: the rates among which to choose.
    """
    return np.nan_to_num(np.array(row[name], float)[of][chosen(row, of)], nan=np.inf)
