"""Do norms allow larger learning rates?"""

from typing import Any

import altair as alt
import numpy as np

import stackjax as sj
from stackjax.recipe.base import Recipe

from ..lab.store import Json
from . import drawing
from .claim import Check, Claim, Rows, Unit, seeds
from .training import best, train_on_text

RECIPES: dict[str, Recipe] = {
    "pre-norm": sj.recipe.PreNorm(),
    "no norm, small init": sj.recipe.PlainScaledInit(),
    "post-norm": sj.recipe.PostNorm(),
    "no norm": sj.recipe.PlainResidual(),
}
PRE, SMALL, POST, PLAIN = RECIPES
DEPTHS = (8, 32)
RATES = tuple(1e-3 * 2**k for k in range(8))
ENDS_WELL = 3.06
"""Loss in nats between what counting single bytes and counting pairs of bytes gives."""


def run(*, recipe: str, depth: int, d_model: int, n_heads: int, **numbers: Any) -> Json:
    """Validation losses at every learning rate."""
    return train_on_text(sj.decoder(d_model=d_model, depth=depth, n_heads=n_heads, recipe=RECIPES[recipe]), **numbers)


def name(recipe: str, depth: int) -> str:
    """Name of a unit."""
    return f"{recipe}, {depth} layers"


ARMS = ((PRE, 8), (SMALL, 8), (POST, 8), (PLAIN, 8), (PRE, 32), (SMALL, 32))
AGAIN = {f"{name(recipe, 8)}, again": recipe for recipe in (PRE, PLAIN)}
"""Units of the control, on seeds that the first run has not used."""


def units(quick: bool) -> list[Unit]:
    """Four recipes at eight layers, two of them at 32; and two once more, for the control."""
    size = {"d_model": 32, "n_heads": 4, "context": 32, "batch": 4, "steps": 200, "seeds": list(seeds(3))}
    size |= {"rates": list(RATES)}
    if quick:
        size |= {"d_model": 8, "n_heads": 2, "context": 8, "steps": 2, "seeds": list(seeds(2))}
    first = [
        Unit(name=name(*arm), run=run, setting={**size, "recipe": arm[0], "depth": 2 if quick else arm[1]})
        for arm in ARMS
    ]
    size |= {"rates": list(RATES[:5]), "seeds": [40, 41, 42]}
    depth = 2 if quick else 8
    again = [Unit(name=name, run=run, setting={**size, "recipe": arm, "depth": depth}) for name, arm in AGAIN.items()]
    return [*first, *again]


def largest(rows: Rows, unit: str) -> np.ndarray:
    """log2 of the largest rate that ends well, one a seed; one step below the grid where none does."""
    loss = np.array(rows[unit]["loss"], float)
    well = np.nan_to_num(loss, nan=np.inf) < ENDS_WELL
    below = np.log2(RATES[0]) - 1
    return np.array(
        [max((np.log2(r) for r, ok in zip(RATES, lane, strict=True) if ok), default=below) for lane in well.T]
    )


def told(largest: np.ndarray) -> str:
    """Rates of `largest` in words: one for all seeds, or each with its share of the seeds."""
    found = [f"{2**rate:.3f}" if rate > np.log2(RATES[0]) - 0.5 else "none of those tried" for rate in largest]
    each = [f"{rate} with {found.count(rate)} of {len(found)} seeds" for rate in sorted(set(found))]
    return found[0] if len(each) == 1 else " and ".join(each)


def behind(rows: Rows, pre: str, plain: str) -> np.ndarray:
    """Best loss of no norm, at most that of counting single bytes, minus pre-norm's; one a seed, in nats."""
    return np.minimum(best(rows[plain]), rows[plain]["unigram"]) - best(rows[pre])


def ratio(depth: int, threshold: float) -> Check:
    """Check of the ratio of the largest rates of pre-norm and of no norm with a small init."""
    one, other = name(PRE, depth), name(SMALL, depth)
    return Check(
        claim=f"{depth} layers: log2 of the largest rate that ends well, pre-norm minus no norm with small init",
        about="claim",
        relation="above",
        threshold=threshold,
        needs=(one, other),
        values=lambda rows: largest(rows, one) - largest(rows, other),
    )


CHECKS = (
    ratio(8, 1.5),
    ratio(32, 2.5),
    Check(
        claim="8 layers: log2 of the largest rate that ends well, post-norm minus no norm with small init",
        about="correction",
        relation="below",
        threshold=0.0,
        needs=(name(POST, 8), name(SMALL, 8)),
        values=lambda rows: largest(rows, name(POST, 8)) - largest(rows, name(SMALL, 8)),
    ),
    Check(
        claim="no norm, usual init, 8 layers, second run: best loss, or that of counting single bytes if that is "
        "lower, minus pre-norm's, nats",
        about="control",
        relation="above",
        threshold=0.2,
        needs=tuple(AGAIN),
        values=lambda rows: behind(rows, *AGAIN),
    ),
    Check(
        claim="the same in the first run, where the loss counted up to 100 nats",
        about="beyond",
        relation="above",
        threshold=0.2,
        needs=(name(PLAIN, 8), name(PRE, 8)),
        values=lambda rows: np.minimum(best(rows[name(PLAIN, 8)]), 100.0) - best(rows[name(PRE, 8)]),
    ),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Loss against learning rate; losses above 4 nats are off the figure, where lines end early."""
    points = [
        {"arm": unit, "rate": rate, "loss": loss}
        for unit, row in rows.items()
        if unit not in AGAIN
        for rate, each in zip(row["rates"], row["loss"], strict=True)
        for loss in each
        if loss is not None and loss < 4
    ]
    scale = alt.Scale(type="log", domain=[RATES[0], RATES[-1]], nice=False, padding=12)
    x = alt.X("rate:Q", title="learning rate", scale=scale, axis=alt.Axis(values=RATES, format="~g"))
    y = alt.Y("loss:Q", title="validation loss (nats)", scale=alt.Scale(zero=False))
    return drawing.with_line(
        drawing.curves(points, x=x, y=y, arms=list(dict.fromkeys(point["arm"] for point in points))),
        ENDS_WELL,
        "ends well: below this",
    )


def lesson(rows: Rows) -> str:
    """Lesson on how much room a norm leaves."""

    def rate(unit: str) -> str:
        return told(largest(rows, unit))

    last = np.array([rows[name(PRE, depth)]["loss"][-1] for depth in DEPTHS], float)
    return (
        "A stack without norms can be trained if its matrices start small, but not at large learning rates: the "
        f"largest at which it ends well (below {ENDS_WELL} nats, where counting single bytes gives "
        f"{rows[name(PRE, 8)]['unigram']:.2f}) is {rate(name(SMALL, 8))} at 8 layers and {rate(name(SMALL, 32))} at "
        f"32. For pre-norm it is {rate(name(PRE, 8))} at 8 layers and {rate(name(PRE, 32))} at 32; {RATES[-1]:g} is "
        f"the largest that was tried, and it ends there at {last.min():.2f} to {last.max():.2f} nats. Where the norm "
        f"stands decides: for post-norm with 8 layers it is {rate(name(POST, 8))}. The usual reason, not tested here: "
        "a norm before the branch makes the branch indifferent to the size of what comes in. Without norms and with "
        f"the usual init nothing ends well: {best(rows[name(PLAIN, 8)]).min():.1f} nats with 8 layers at best, which "
        "is off the figure."
    )


CLAIM = Claim(
    name="norms_rates",
    part="Layer normalisation",
    title="Norms allow larger learning rates",
    says="Layer norm makes training stable and allows larger learning rates.",
    refuted_by="A stack without norms that bears the same learning rates.",
    protocol="Decoders on text: pre-norm, post-norm, and the skip without norms with the usual init and with a small "
    "one (matrices that write to the stream born 1/sqrt(2L) times as large), 8 and 32 layers, D = 32, 200 steps of 4 "
    "windows of 32 bytes, eight learning rates from 0.001 by factors of two; the largest that ends below 3.06 nats, "
    "between counting single bytes and counting pairs. A seed that ends well at no rate counts as half the lowest, "
    "0.0005. Post-norm and the usual init were run with 8 layers only.",
    control="No norm with the usual init must do badly at every rate, or the setting asks for nothing. In the first "
    "run its three seeds ended so far above the threshold, and so far apart, that the interval of their mean held "
    "zero: a fault of the measure, for a loss that explodes has no mean to speak of. The control was run again, with "
    "three other seeds and the five lower rates; a loss above that of counting single bytes now counts as equal to "
    "it.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
