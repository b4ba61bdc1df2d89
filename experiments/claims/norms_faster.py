"""Do norms make training faster?"""

import altair as alt
import numpy as np

from . import drawing, norms_rates
from .claim import Check, Claim, Rows, Unit
from .norms_rates import PRE, SMALL, name
from .training import best

ARMS = ((PRE, 8), (SMALL, 8), (PRE, 32), (SMALL, 32))


def units(quick: bool) -> list[Unit]:
    """Units of `norms_rates` without post-norm and the usual init, on other seeds."""
    wanted = [name(*arm) for arm in ARMS]
    same = [unit for unit in norms_rates.units(quick) if unit.name in wanted]
    middle = [rate for rate in norms_rates.RATES if 2e-3 <= rate <= 6.4e-2]
    return [
        Unit(name=unit.name, run=unit.run, setting={**unit.setting, "rates": middle, "seeds": [30, 31, 32]})
        for unit in same
    ]


def faster(depth: int) -> Check:
    """Check that pre-norm ends lower after equally many steps."""
    one, other = name(PRE, depth), name(SMALL, depth)
    return Check(
        claim=f"{depth} layers: pre-norm minus no norm with small init, each at its best rate, nats",
        about="claim",
        relation="below",
        threshold=0.0,
        needs=(one, other),
        values=lambda rows: best(rows[one]) - best(rows[other]),
    )


CHECKS = (
    faster(8),
    faster(32),
    Check(
        claim="pre-norm, 8 layers: loss minus counting single bytes, nats (it does learn)",
        about="control",
        relation="below",
        threshold=-0.3,
        needs=(name(PRE, 8),),
        values=lambda rows: best(rows[name(PRE, 8)]) - rows[name(PRE, 8)]["unigram"],
    ),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Loss of each stack at its best learning rate."""
    return drawing.dots({unit: list(best(row)) for unit, row in rows.items()}, title="validation loss (nats)")


def lesson(rows: Rows) -> str:
    """Lesson on who is ahead after equally many steps."""

    def gap(depth: int) -> str:
        return f"{np.mean(best(rows[name(PRE, depth)]) - best(rows[name(SMALL, depth)])):+.3f}"

    return (
        "Faster means: lower after the same steps, each at its own best learning rate. Against a stack without norms "
        f"whose matrices start small, pre-norm stands at {gap(8)} nats with 8 layers and at {gap(32)} with 32 (minus "
        "would be faster). What a norm gives is room: more learning rates work (the claim before this one). Who has "
        "found the right one without a norm does not train more slowly for it. Where this experiment could mislead: "
        "the two differ not only in the norm but also in their init, small on one side and usual on the other, and "
        "the race is short, 200 steps of a narrow model. It shows that norms are not needed for speed, not what they "
        "cost."
    )


CLAIM = Claim(
    name="norms_faster",
    part="Layer normalisation",
    title="Norms make training converge faster",
    says="Layer norm makes training converge faster.",
    refuted_by="A stack without norms that ends lower after as many steps, each at its own best learning rate.",
    protocol="Decoders on text: pre-norm against the skip without norms and with small init (of the claim before), 8 "
    "and 32 layers, D = 32, 200 steps of 4 windows of 32 bytes; each at the best of six learning rates, chosen on "
    "other text than is reported.",
    control="Pre-norm must have learned something in these steps: it must end 0.3 nats below counting single bytes.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
