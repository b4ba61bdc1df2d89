"""Figures that several claims share."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from ..lab import chart
from ..lab.finding import Estimate

POWERS = alt.Axis(format=".0e", tickCount=6)
"""Labels of a logarithmic axis over many decades."""


def color(field: str, names: Sequence[str]) -> alt.Color:
    """A colour for each arm, in the order of the names."""
    colors = [chart.PALETTE[i % len(chart.PALETTE)] for i in range(len(names))]
    return alt.Color(f"{field}:N", title=None, scale=alt.Scale(domain=list(names), range=colors))


def dots(values: dict[str, Sequence[float]], *, title: str, log: bool = False) -> alt.TopLevelMixin:
    """One row for each arm: every seed a dot, the mean a tick, its 95 % interval a bar.

    Args:
        values: one number a seed, by arm, top to bottom.
        title: of the axis.
        log: whether the axis is logarithmic.
    """
    names = list(values)
    seeds = [{"arm": name, "value": float(x)} for name, each in values.items() for x in each]
    ends = [
        {"arm": name, "low": estimate.low, "high": estimate.high, "mean": estimate.mean}
        for name, each in values.items()
        if (estimate := Estimate.of(each)).n > 1
    ]
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    x = alt.X("value:Q", title=title, scale=scale, axis=POWERS if log else alt.Axis())
    y = alt.Y("arm:N", title=None, sort=names, axis=alt.Axis(labelLimit=0))
    layers = [
        alt.Chart(alt.Data(values=ends))
        .mark_rule(strokeWidth=4, opacity=0.35)
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=color("arm", names).legend(None)),
        alt.Chart(alt.Data(values=ends))
        .mark_tick(thickness=2, size=18)
        .encode(x="mean:Q", y=y, color=color("arm", names).legend(None)),
        alt.Chart(alt.Data(values=seeds))
        .mark_circle(size=50, opacity=0.8)
        .encode(x=x, y=y, color=color("arm", names).legend(None)),
    ]
    return alt.layer(*layers).properties(width=560, height=alt.Step(34))


def dashed(name: str) -> Any:
    """A line's dashes: only those of the arm of this name, so that a line below it can be seen."""
    return alt.condition(alt.datum.arm == name, alt.value([6, 6]), alt.value([1, 0]))


def curves(points: Sequence[dict], *, x: alt.X, y: alt.Y, arms: Sequence[str], dash: str = "") -> Any:
    """A line through the means of each arm and a dot for each seed.

    On an axis of categories the arms stand side by side.

    Args:
        points: rows with `arm` and the fields of the axes.
        x: axis.
        y: axis.
        arms: in order.
        dash: the arm whose line is dashed.
    """
    base = alt.Chart(alt.Data(values=list(points))).encode(x=x, color=color("arm", arms))
    if str(x.shorthand).endswith(":O"):
        side_by_side = alt.XOffset("arm:N", sort=list(arms))
        base = base.encode(x=x.scale(paddingInner=0.7, paddingOuter=0.5), xOffset=side_by_side)
    average = y.copy(deep=False)
    average.shorthand = f"mean({str(y.shorthand).removesuffix(':Q')}):Q"
    line = base.mark_line(strokeWidth=2.2).encode(y=average, strokeDash=dashed(dash))
    return (line + base.mark_circle(size=36, opacity=0.75).encode(y=y)).properties(width=560, height=280)


def with_line(drawn: Any, value: float, label: str) -> alt.TopLevelMixin:
    """A layered chart of width 560 with a labelled horizontal line.

    Args:
        drawn: the chart, whose vertical axis is quantitative.
        value: where the line lies.
        label: beside it.
    """
    base = alt.Chart(alt.Data(values=[{"value": value, "label": label}])).encode(y="value:Q")
    words = base.mark_text(align="left", baseline="middle").encode(x=alt.value(566), text="label:N")
    return alt.layer(drawn, base.mark_rule(strokeDash=[5, 4]), words)
