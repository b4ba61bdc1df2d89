"""A number, a vector, a learned vector, an angle: which way of saying where a token stands works?"""

from typing import Any

import altair as alt
import jax
import numpy as np

import stackjax as sj
from stackjax.position import Position
from stackjax.sublayer import Params

from ..lab.store import Json
from ..lab.task import Filled
from ..lab.train import Batch
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds
from .training import best, text, train

READ = 16
"""Bytes at the end of a window whose loss is read."""

SCALED, RAW, SINUSOIDAL = "index as a number, scaled to 1", "index as a number", "sinusoidal"
LEARNED, NONE, ROTARY, SHUFFLED = "learned vectors", "none", "rotary", "sinusoidal, shuffled"


def position(arm: str, context: int) -> Position:
    """The encoding of an arm."""
    return {
        SCALED: sj.position.Scalar(period=context),
        RAW: sj.position.Scalar(),
        SINUSOIDAL: sj.position.Sinusoidal(),
        SHUFFLED: sj.position.Sinusoidal(),
        LEARNED: sj.position.Learned(n_positions=context),
        NONE: sj.position.NoPosition(),
        ROTARY: sj.position.Rotary(),
    }[arm]


def examples(windows: np.ndarray, arm: str, key: tuple[int, int], *, read: int | None = None) -> dict[str, np.ndarray]:
    """Windows with the index that each token is told, in an order of its own for each window where shuffled.

    Args:
        windows: (B, T + 1).
        arm: the encoding.
        key: of the shuffles.
        read: how many bytes at the end have targets; None is all.
    """
    batch, context = windows.shape[0], windows.shape[1] - 1
    index = np.tile(np.arange(context, dtype=np.int32), (batch, 1))
    if arm == SHUFFLED:
        index = np.random.Generator(np.random.Philox(key=list(key))).permuted(index, axis=1)
    targets = windows[:, 1:].copy()
    targets[:, : 0 if read is None else -read] = -1
    return {"inputs": windows[:, :-1], "targets": targets, "index": index}


def run(*, arm: str, depth: int, d_model: int, n_heads: int, context: int, batch: int, **numbers: Any) -> Json:
    """Losses at the trained length, and `longer` at twice that, of the same bytes."""
    model = sj.decoder(d_model=d_model, depth=depth, n_heads=n_heads, position=position(arm, context))
    task = Filled(model=model)
    long = text().valid_batches(32, batch=16, context=2 * context)
    short = long[:, :, context:]

    def read(windows: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [examples(part, arm, (0, 2**32 + i), read=READ) for i, part in enumerate(windows)]

    valid = [{**at, "longer": far} for at, far in zip(read(short), read(long), strict=True)]

    def score(params: Params, batch: Batch) -> dict[str, jax.Array]:
        limited = model.embedding.position.limit is not None
        return {} if limited else {"longer": task.loss(params, batch["longer"])[0]}

    def feed(seed: int, step: int) -> Batch:
        windows = text().batch(seed=seed, step=step, batch=batch, context=context)
        return examples(windows, arm, (seed, step))

    return train(task, feed, jax.tree.map(lambda *xs: np.stack(xs), *valid), score=score, chunks=1, **numbers)


def units(quick: bool) -> list[Unit]:
    """A unit for each encoding."""
    size = {"depth": 2, "d_model": 64, "n_heads": 4, "context": 64, "batch": 8, "steps": 400, "seeds": list(seeds(3))}
    size |= {"rates": [3e-3, 6e-3]}
    if quick:
        size |= {"depth": 1, "d_model": 8, "n_heads": 2, "context": 16, "batch": 2, "steps": 2, "seeds": list(seeds(2))}
    arms = (SINUSOIDAL, SCALED, RAW, ROTARY, LEARNED, NONE, SHUFFLED)
    return [Unit(name=arm, run=run, setting={**size, "arm": arm}) for arm in arms]


def shown(arm: str) -> str:
    """Name of an encoding in tables and figures."""
    return "no positions" if arm == NONE else arm


def difference(about: About, one: str, other: str, relation: Relation, threshold: float) -> Check:
    """Check of the difference between two encodings' losses at the trained length, paired by seed."""
    return Check(
        claim=f"{shown(one)} minus {shown(other)}, nats",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(one, other),
        values=lambda rows: best(rows[one]) - best(rows[other]),
    )


CHECKS = (
    difference("claim", SCALED, SINUSOIDAL, "above", 0.0),
    difference("claim", RAW, SINUSOIDAL, "above", 0.05),
    Check(
        claim="sinusoidal: loss at twice the trained length minus loss at it, nats",
        about="correction",
        relation="above",
        threshold=0.2,
        needs=(SINUSOIDAL,),
        values=lambda rows: best(rows[SINUSOIDAL], "longer") - best(rows[SINUSOIDAL]),
    ),
    difference("claim", LEARNED, SINUSOIDAL, "below", 0.0),
    difference("claim", ROTARY, SINUSOIDAL, "below", -0.1),
    difference("control", SHUFFLED, NONE, "above", -0.05),
    difference("control", SINUSOIDAL, SHUFFLED, "below", 0.0),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Loss of each encoding at the trained length."""
    return drawing.dots({shown(arm): list(best(row)) for arm, row in rows.items()}, title="validation loss (nats)")


def lesson(rows: Rows) -> str:
    """Lesson on which encodings work."""

    def loss(arm: str) -> str:
        return f"{best(rows[arm]).mean():.3f}"

    return (
        f"At the length on which they were trained, sinusoids end at {loss(SINUSOIDAL)} nats, learned vectors at "
        f"{loss(LEARNED)}, rotary angles at {loss(ROTARY)}, and no positions at {loss(NONE)}; wrong positions, "
        f"shuffled anew in every window, are no better than none ({loss(SHUFFLED)}). The plain index, added as a "
        f"number along one learned direction, ends at {loss(RAW)} if it runs up to the window's length and at "
        f"{loss(SCALED)} if it is scaled to run from 0 to 1, lower than sinusoids: a number can do, if it is small. "
        "And that sinusoids can be computed for any length does not make them work there: at twice the length the "
        f"same bytes cost {np.mean(best(rows[SINUSOIDAL], 'longer') - best(rows[SINUSOIDAL])):.3f} nats more."
    )


CLAIM = Claim(
    name="positions",
    part="Positional encoding",
    title="Vectors, not numbers; sinusoids for any length; relative ones are better",
    says="A scalar index cannot take part in the computation, vectors must; sinusoids work for any length; learned "
    "vectors work better, and relative encodings better still.",
    refuted_by="A scalar that does as well as sinusoids, sinusoids that fail beyond the trained length, learned "
    "vectors or rotary ones that end higher than sinusoids.",
    protocol="Two-layer decoders on text, D = 64, 400 steps of 8 windows of 64 bytes, each at the better of two "
    "learning rates, chosen on other text than is reported; the loss of the last 16 bytes of a window, with 64 and "
    "with 128 bytes of context.",
    control="Sinusoids whose indices are shuffled anew in every window must be no better than no positions, and worse "
    "than sinusoids.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
