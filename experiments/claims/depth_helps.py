"""Do more layers do better, on text, than one?"""

from typing import Any

import altair as alt
import numpy as np

import stackjax as sj

from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds
from .training import best, train_on_text

DEPTHS = (0, 1, 2, 4, 8)
WIDE = "1 wide layer"


def name(depth: int) -> str:
    """Name of a unit."""
    return f"{depth or 'no'} {'layer' if depth == 1 else 'layers'}"


def run(*, depth: int, d_model: int, n_heads: int, **numbers: Any) -> Json:
    """Validation losses."""
    return train_on_text(sj.decoder(d_model=d_model, depth=depth, n_heads=n_heads), chunks=3, **numbers)


def units(quick: bool) -> list[Unit]:
    """Every depth, and one layer as wide as makes its parameters those of eight."""
    size = {"d_model": 64, "n_heads": 4, "context": 64, "batch": 16, "steps": 600, "seeds": list(seeds(3))}
    size |= {"rates": [6e-3]}
    wide = {"depth": 1, "d_model": 168, "rates": [3e-3, 6e-3]}
    if quick:
        size |= {"d_model": 8, "n_heads": 2, "context": 8, "batch": 2, "steps": 2, "seeds": list(seeds(2))}
        wide["d_model"] = 16
    order = (0, 1, 8, 4, 2)
    deep = {depth: Unit(name=name(depth), run=run, setting={**size, "depth": depth}) for depth in order}
    return [deep[0], deep[1], deep[8], Unit(name=WIDE, run=run, setting={**size, **wide}), deep[4], deep[2]]


def difference(about: About, one: str, other: str, relation: Relation, threshold: float) -> Check:
    """Check of the difference between two units' losses, paired by seed."""
    return Check(
        claim=f"{one} minus {other}, nats",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(one, other),
        values=lambda rows: best(rows[one]) - best(rows[other]),
    )


CHECKS = (
    difference("claim", name(8), name(1), "below", -0.05),
    difference("claim", name(4), name(1), "below", 0.0),
    difference("claim", name(8), name(4), "below", 0.0),
    difference("claim", name(8), WIDE, "below", 0.0),
    difference("control", name(1), name(0), "below", -0.2),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Loss against depth; dashed is one wide layer with as many parameters as eight layers of D = 64."""
    points = [
        {"arm": "D = 64", "depth": depth, "loss": float(loss)}
        for depth in DEPTHS
        if name(depth) in rows
        for loss in best(rows[name(depth)])
    ]
    x = alt.X("depth:Q", title="layers", scale=alt.Scale(type="symlog"), axis=alt.Axis(values=DEPTHS))
    y = alt.Y("loss:Q", title="validation loss (nats)", scale=alt.Scale(zero=False))
    drawn = drawing.curves(points, x=x, y=y, arms=["D = 64"])
    return drawing.with_line(drawn, float(best(rows[WIDE]).mean()), WIDE) if WIDE in rows else drawn


def lesson(rows: Rows) -> str:
    """Lesson on what each doubling is worth."""
    losses = ", ".join(f"{best(rows[name(depth)]).mean():.3f}" for depth in DEPTHS)
    deep, wide = rows[name(8)], rows[WIDE]
    gain = best(rows[name(1)]) - best(deep)
    return (
        f"Predicting the next byte of program text with {', '.join(map(str, DEPTHS))} layers ends at {losses} nats. "
        "Most is won by the first layer, which lets tokens see each other at all; the next seven are worth "
        f"{np.mean(gain):.3f} nats more. One layer that is wide enough to have as many parameters as eight "
        f"({wide['params']:,} against {deep['params']:,}) ends at {best(wide).mean():.3f}, after {deep['steps']} "
        "steps each."
    )


CLAIM = Claim(
    name="depth_helps",
    part="Stacking",
    title="More layers do more",
    says="Stacking raises what a model can express and learn.",
    refuted_by="Eight layers that end no lower than one, or no lower than one wide layer of equal size.",
    protocol="Pre-norm decoders with 0, 1, 2, 4 and 8 layers on text, D = 64, 600 steps of 16 windows of 64 bytes; "
    "learning rate 6e-3 for all, found beforehand with another seed.",
    control="No layers at all, which one layer must beat; and one layer of width 168, with as many parameters as eight "
    "layers have, at the better of two learning rates.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
