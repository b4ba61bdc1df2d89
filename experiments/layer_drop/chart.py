"""Charts of what the layers of each recipe cost that are left out."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from ..lab import chart
from .dropped import USED, Dropped


def alone(results: dict[str, Dropped]) -> alt.TopLevelMixin:
    """Chart of how much the loss rises without a layer, on an axis linear below `USED` and logarithmic above."""
    rows = [
        {"recipe": name, "layer": layer, "cost": float(np.mean(costs))}
        for name, dropped in results.items()
        for layer, costs in enumerate(dropped.cost.T, 1)
    ]
    return _rises(rows, "layer", "layer left out", "rise of the loss without the layer (nats)")


def together(results: dict[str, Dropped]) -> alt.TopLevelMixin:
    """Chart of how much the loss rises without the k least costly layers, on the same axis."""
    rows = [
        {"recipe": name, "layers": k, "cost": float(np.mean(costs))}
        for name, dropped in results.items()
        for k, costs in enumerate(dropped.together.T)
    ]
    return _rises(rows, "layers", "layers left out together, the least costly first", "rise of the loss (nats)")


def _rises(rows: Sequence[dict[str, Any]], over: str, x_title: str, title: str) -> alt.TopLevelMixin:
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    color = alt.Color(
        "recipe:N",
        title=None,
        scale=alt.Scale(domain=names, range=[chart.PALETTE[i % len(chart.PALETTE)] for i in range(len(names))]),
    )
    y = alt.Y(
        "cost:Q",
        title=title,
        scale=alt.Scale(type="symlog", constant=USED, nice=False),
        axis=alt.Axis(values=[0, 0.01, 0.03, 0.1, 0.3, 1, 3], format="~g"),
    )
    line = alt.Chart(alt.Data(values=rows)).mark_line(point=True, strokeWidth=2)
    x = alt.X(f"{over}:Q", title=x_title, axis=alt.Axis(tickMinStep=1))
    return line.encode(x=x, y=y, color=color, tooltip=["recipe:N", f"{over}:Q", "cost:Q"]).properties(
        width=560, height=300
    )
