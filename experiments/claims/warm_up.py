"""Do a skip and a norm keep a deep stack stable, wherever the norm stands and however long the warm-up?"""

from typing import Any

import altair as alt
import numpy as np

import stackjax as sj

from ..lab.finding import Estimate
from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds
from .training import best, train_on_text

POST, PRE = "post-norm", "pre-norm"
SHALLOW, DEEP = 8, 24
WARMUPS = (0, 20, 100)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def run(*, recipe: str, depth: int, d_model: int, n_heads: int, **numbers: Any) -> Json:
    """Validation losses for every warm-up and rate."""
    made = {POST: sj.recipe.PostNorm(), PRE: sj.recipe.PreNorm()}[recipe]
    return train_on_text(sj.decoder(d_model=d_model, depth=depth, n_heads=n_heads, recipe=made), **numbers)


def name(recipe: str, depth: int) -> str:
    """Name of a unit."""
    return f"{recipe}, {depth} layers"


def units(quick: bool) -> list[Unit]:
    """Both recipes at both depths."""
    size = {"d_model": 32, "n_heads": 4, "context": 32, "batch": 4, "steps": 200, "seeds": list(seeds(3))}
    size |= {"warmups": list(WARMUPS), "rates": list(RATES)}
    if quick:
        size |= {"d_model": 8, "n_heads": 2, "context": 8, "seeds": list(seeds(2)), "steps": 4}
    arms = ((POST, SHALLOW), (PRE, SHALLOW), (POST, DEEP), (PRE, DEEP))
    return [
        Unit(name=name(*arm), run=run, setting={**size, "recipe": arm[0], "depth": 2 if quick else arm[1]})
        for arm in arms
    ]


def warmed(rows: Rows, unit: str, warmup: int) -> np.ndarray:
    """Loss with so many steps of warm-up at its best rate, one a seed."""
    i = WARMUPS.index(warmup)
    return best(rows[unit], of=slice(i * len(RATES), (i + 1) * len(RATES)))


def gain(about: About, unit: str, relation: Relation, threshold: float) -> Check:
    """Check of what a long warm-up changes against a short one."""
    return Check(
        claim=f"{unit}: 100 steps of warm-up minus 20, nats",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(unit,),
        values=lambda rows: warmed(rows, unit, 100) - warmed(rows, unit, 20),
    )


def deeper(about: About, recipe: str, relation: Relation, threshold: float) -> Check:
    """Check of what 24 layers lose against eight of pre-norm."""
    one, other = name(recipe, DEEP), name(PRE, SHALLOW)
    return Check(
        claim=f"100 steps of warm-up: {one} minus {other}, nats",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(one, other),
        values=lambda rows: warmed(rows, one, 100) - warmed(rows, other, 100),
    )


CHECKS = (
    deeper("claim", PRE, "below", 0.30),
    deeper("correction", POST, "above", 0.30),
    gain("correction", name(POST, SHALLOW), "below", -0.10),
    gain("control", name(PRE, SHALLOW), "above", -0.05),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Loss against steps of warm-up, each at its best learning rate."""
    points = [
        {"arm": unit, "warmup": warmup, "loss": float(loss)}
        for unit in rows
        for warmup in WARMUPS
        for loss in warmed(rows, unit, warmup)
        if np.isfinite(loss)
    ]
    x = alt.X("warmup:O", title="steps of warm-up, of 200", axis=alt.Axis(labelAngle=0))
    y = alt.Y("loss:Q", title="validation loss at the best rate (nats)", scale=alt.Scale(zero=False))
    return drawing.curves(points, x=x, y=y, arms=list(rows))


def lesson(rows: Rows) -> str:
    """Lesson on what depth costs whom, and whether warm-up helps."""

    def losses(recipe: str, depth: int) -> str:
        none, short, long = (f"{warmed(rows, name(recipe, depth), warmup).mean():.2f}" for warmup in WARMUPS)
        return f"{none}, {short} and {long}"

    def change(recipe: str) -> Estimate:
        unit = name(recipe, SHALLOW)
        return Estimate.of(warmed(rows, unit, WARMUPS[-1]) - warmed(rows, unit, WARMUPS[1]))

    return (
        f"It depends on where the norm stands. With {DEEP} layers, after 0, 20 and 100 steps of warm-up, pre-norm "
        f"ends at {losses(PRE, DEEP)} nats, not far above its {losses(PRE, SHALLOW)} with {SHALLOW} layers. Post-norm "
        f"ends at {losses(POST, DEEP)} with {DEEP} layers, which is what counting single bytes gives "
        f"({rows[name(POST, DEEP)]['unigram']:.2f}), and none of these warm-ups changes that. A likely reason is that "
        "so many layers of post-norm do not hand the input on even at birth (see the claim that the shortcut "
        f"preserves the input). Whether a longer warm-up helps post-norm with {SHALLOW} layers is left open: it ends "
        f"at {losses(POST, SHALLOW)}, but the change from 20 to 100 steps, {change(POST)}, has an interval that holds "
        f"zero. For pre-norm with {SHALLOW} layers the change is small, {change(PRE)}."
    )


CLAIM = Claim(
    name="warm_up",
    part="Layer normalisation",
    title="Residual connections and norms together make deep stacks stable",
    says="Together with the skip, normalisation keeps deep stacks stable.",
    refuted_by="Skip and norm together that still do not train, whatever the schedule.",
    protocol="Decoders on text: post-norm and pre-norm, 8 and 24 layers, D = 32, 200 steps of 4 windows of 32 bytes, "
    "0, 20 and 100 steps of warm-up, each at its best of four learning rates, chosen on other text than is reported.",
    control="Pre-norm with 8 layers, which must not gain as much as 0.05 nats from the longer warm-up, or every short "
    "run gains from it and not post-norm in particular.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
