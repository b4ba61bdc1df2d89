"""Is a layer that learns a correction easier to train than one that learns everything? With a control that lives."""

from typing import Any

import altair as alt
import numpy as np

import stackjax as sj
from stackjax.recipe.base import Recipe

from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds
from .training import best, train_on_text

RECIPES: dict[str, Recipe] = {
    "pre-norm": sj.recipe.PreNorm(),
    "post-norm": sj.recipe.PostNorm(),
    "norm without skip": sj.recipe.Weighted(residual=sj.residual.Post(), alpha=0.0),
    "no skip, no norm": sj.recipe.WithoutResidual(),
}
PRE, POST, NOSKIP, BARE = RECIPES
DEPTHS = (2, 4, 8)
ZERO = "no layers"
RATES = (4e-3, 16e-3, 64e-3)


def run(*, recipe: str, depth: int, d_model: int, n_heads: int, **numbers: Any) -> Json:
    """Validation losses of an arm."""
    model = sj.decoder(d_model=d_model, depth=depth, n_heads=n_heads, recipe=RECIPES[recipe])
    return train_on_text(model, **numbers)


def name(recipe: str, depth: int) -> str:
    """Name of a unit."""
    return f"{recipe}, {depth} layers"


def units(quick: bool) -> list[Unit]:
    """No layers, and every recipe at every depth."""
    size = {"d_model": 32, "n_heads": 4, "context": 32, "batch": 4, "steps": 200, "seeds": list(seeds(3))}
    if quick:
        size |= {"d_model": 8, "n_heads": 2, "context": 8, "steps": 2, "seeds": list(seeds(2))}
    size["rates"] = list(RATES[:1] if quick else RATES)
    zero = Unit(name=ZERO, run=run, setting={**size, "recipe": PRE, "depth": 0})
    return [zero] + [
        Unit(name=name(recipe, depth), run=run, setting={**size, "recipe": recipe, "depth": depth})
        for depth in DEPTHS
        for recipe in RECIPES
        if not (recipe == BARE and depth == DEPTHS[-1])
    ]


def difference(about: About, claim: str, one: str, other: str, relation: Relation, threshold: float) -> Check:
    """Check of the difference between two units' losses, paired by seed."""
    return Check(
        claim=f"{claim}, nats",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(one, other),
        values=lambda rows: best(rows[one]) - best(rows[other]),
    )


CHECKS = (
    difference("claim", "4 layers: norm without skip minus pre-norm", name(NOSKIP, 4), name(PRE, 4), "above", 0.5),
    difference("claim", "8 layers: norm without skip minus pre-norm", name(NOSKIP, 8), name(PRE, 8), "above", 0.5),
    difference("claim", "4 layers: norm without skip minus no layers", name(NOSKIP, 4), ZERO, "above", 0.5),
    Check(
        claim="2 layers: norm without skip minus counting single bytes, nats (the control lives)",
        about="control",
        relation="below",
        threshold=-0.2,
        needs=(name(NOSKIP, 2),),
        values=lambda rows: best(rows[name(NOSKIP, 2)]) - rows[name(NOSKIP, 2)]["unigram"],
    ),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Loss against depth, each at its best learning rate; dashed is the loss without any layer."""
    points = [
        {"arm": recipe, "depth": depth, "loss": float(loss)}
        for recipe in RECIPES
        for depth in DEPTHS
        if name(recipe, depth) in rows
        for loss in best(rows[name(recipe, depth)])
        if np.isfinite(loss)
    ]
    x = alt.X("depth:O", title="layers", axis=alt.Axis(labelAngle=0))
    y = alt.Y("loss:Q", title="validation loss (nats)", scale=alt.Scale(zero=False))
    drawn = drawing.curves(points, x=x, y=y, arms=list(RECIPES))
    return drawing.with_line(drawn, float(best(rows[ZERO]).mean()), ZERO) if ZERO in rows else drawn


def lesson(rows: Rows) -> str:
    """Lesson on what the skip does for training."""

    def loss(unit: str) -> str:
        return f"{best(rows[unit]).mean():.2f}"

    return (
        "Take the skip away and keep the norm, so that signals keep their size: every layer must then make its whole "
        f"output, and not a correction of its input. Two such layers still learn ({loss(name(NOSKIP, 2))} nats, where "
        f"counting single bytes gives {rows[ZERO]['unigram']:.2f}); four end at {loss(name(NOSKIP, 4))}, where "
        f"pre-norm ends at {loss(name(PRE, 4))} and no layers at all at {loss(ZERO)}. So the skip does more for "
        "training than keep signals at their size. It does not do it alone: post-norm has a skip, and ends at "
        f"{loss(name(POST, 4))} with four layers and at {loss(name(POST, 8))} with eight. Whether what helps is that "
        "layers learn corrections, or that the input is still there at the top, this does not tell apart: behind two "
        "layers of norm without skip at birth a probe hardly finds it (see the claim that the shortcut preserves the "
        f"input). Without skip and norm two layers end at {loss(name(BARE, 2))} and four at {loss(name(BARE, 4))}; "
        "many demonstrations compare with that, where the size of signals changes as well."
    )


CLAIM = Claim(
    name="corrections",
    part="Residual connections",
    title="Layers that learn corrections are easier to optimise",
    says="With a skip each layer only learns a correction to its input, which is easier to optimise.",
    refuted_by="Layers without a skip, but with norms that keep signals at their size, that train as well.",
    protocol="Decoders on text: norm(f(x)) against pre-norm and post-norm with 2, 4 and 8 layers, D = 32, 200 steps "
    "of 4 windows of 32 bytes, each at the best of three learning rates, chosen on other text than is reported.",
    control="Two layers of norm(f(x)) must learn something, or the comparison with it means nothing. No layers at "
    "all, and layers with neither skip nor norm, are shown beside them.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
