"""Charts of what stands in each layer, from plain arrays: for a notebook as for an experiment.

found = {name: sj.probe.look(model, params, tokens, loss, key) for name, (model, params) in ...}
profile_chart.profiles([row for name in found for row in profile_chart.rows(found[name], recipe=name)])
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from . import chart
from .store import Json

MEASURES = (
    "stream_rms",
    "branch_ratio",
    "cosine",
    "token_similarity",
    "rank_residual",
    "stream_gradient",
    "grad_norm",
    "jacobian_gain",
)
"""Measures in the order of the page; of those that come by sublayer or by role, each is a panel of its own."""

TITLES = {
    "stream_rms": "RMS of the stream",
    "cosine": "cosine of x_l and x_(l+1)",
    "token_similarity": "cosine between tokens",
    "stream_gradient": "|dLoss / dx_l|",
    "grad_norm": "gradient norm of the weights",
    "update_ratio": "|update| / |weights|",
    "branch_ratio": "branch / stream",
    "attention_entropy": "attention entropy (nats)",
    "max_logit": "largest attention logit",
    "rank_residual": "|X - mean| / |X|",
    "jacobian_gain": "gain of the Jacobian",
}
"""Measures by name, and what their axes say."""
LOGARITHMIC = {
    *("stream_rms", "stream_gradient", "grad_norm", "update_ratio", "branch_ratio", "max_logit"),
    *("rank_residual", "jacobian_gain"),
}
"""Measures that are drawn on a logarithmic axis."""
MOST_LAYERS = 64


def rows(arrays: Mapping[str, Any], **labels: Any) -> list[Json]:
    """One row for each layer and measure, thinned to `MOST_LAYERS` layers.

    Args:
        arrays: (L,) or (L + 1,), by measure, as `stackjax.probe.look` returns them.
        **labels: of all rows: recipe, depth, when.
    """
    points = []
    for name, values in arrays.items():
        values = np.asarray(values, float)
        layers = np.unique(np.linspace(0, len(values) - 1, MOST_LAYERS).round().astype(int))
        share = layers / max(len(values) - 1, 1)
        for layer, place in zip(layers.tolist(), share.tolist(), strict=True):
            value = float(values[layer])
            if np.isfinite(value):
                points.append({"measure": name, "layer": layer, "share": place, "value": value, **labels})
    return points


def profiles(
    points: Sequence[Json],
    measures: Sequence[str] = MEASURES,
    *,
    column: str = "recipe",
    color: str = "depth",
    width: int = 150,
    height: int = 100,
) -> alt.TopLevelMixin:
    """A row of panels for each measure, a column for each recipe, a line for each depth.

    Args:
        points: of `rows`.
        measures: kinds, or whole names such as grad_norm/down.
        column: the label that makes columns.
        color: the label that makes lines.
        width: of a panel.
        height: of a panel.
    """
    names = list(dict.fromkeys(point["measure"] for point in points))
    named = [name for kind in measures for name in names if name == kind or _by_sublayer(name, kind)]
    columns = list(dict.fromkeys(point[column] for point in points))
    ends = named[:1], named[-1:]
    bands = [
        _band(points, name, column, columns, color, (width, height), [name in end for end in ends]) for name in named
    ]
    return alt.vconcat(*bands, spacing=6).resolve_scale(color="shared")


def _by_sublayer(name: str, kind: str) -> bool:
    return kind != "grad_norm" and name.startswith(f"{kind}/")


def _band(
    points: Sequence[Json],
    name: str,
    column: str,
    columns: list[Any],
    color: str,
    size: tuple[int, int],
    ends: Sequence[bool],
) -> Any:
    """One row of panels; `ends` says whether it is the first, which has headings, and the last, which has a title."""
    kind, _, sublayer = name.partition("/")
    of_measure = [p for p in points if p["measure"] == name and (p["value"] > 0 or kind not in LOGARITHMIC)]
    scale, axis = alt.Scale(zero=False), alt.Axis(tickCount=4, format="~g", titleFontSize=11)
    if kind in LOGARITHMIC and of_measure:
        ticks = chart.decades(point["value"] for point in of_measure)
        scale = alt.Scale(type="log", nice=False)
        form = "~g" if min(ticks) >= 1e-3 and max(ticks) < 1e5 else ".0e"
        axis = alt.Axis(values=ticks[:: max(1, len(ticks) // 5)], format=form, titleFontSize=11)
    title = [TITLES.get(kind, kind), sublayer.replace("_", "-")] if sublayer else TITLES.get(kind, kind)
    panel = (
        alt.Chart()
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("share:Q", title="layer / depth" if ends[1] else None, axis=alt.Axis(format="~%", tickCount=3)),
            y=alt.Y("value:Q", title=title, scale=scale, axis=axis),
            color=chart.ramp(color, [point[color] for point in points]),
            detail=f"{color}:O",
            tooltip=[f"{column}:N", f"{color}:O", "layer:Q", alt.Tooltip("value:Q", format=".3g")],
        )
        .properties(width=size[0], height=size[1])
    )
    header = alt.Header() if ends[0] else alt.Header(labelExpr="''", labelFontSize=0, labelPadding=0)
    facet = alt.Facet(f"{column}:N", title=None, sort=columns, header=header)
    return panel.facet(facet, data=alt.Data(values=of_measure), columns=len(columns))


def matrix(distances: Mapping[str, Any], title: str) -> alt.TopLevelMixin:
    """A square array for each recipe as a picture, layer against layer.

    Args:
        distances: (L + 1, L + 1) by recipe, as `stackjax.probe.angular_distance` returns them.
        title: of the colours.
    """
    values = [
        {"recipe": name, "from": i, "to": j, "value": float(x)}
        for name, array in distances.items()
        for (i, j), x in np.ndenumerate(np.asarray(array))
        if i < j
    ]
    panel = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("from:O", title="after layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("to:O", title="after layer", sort="descending", axis=alt.Axis(labelOverlap=True)),
            color=alt.Color("value:Q", title=title, scale=alt.Scale(scheme="viridis")),
            tooltip=["recipe:N", "from:O", "to:O", alt.Tooltip("value:Q", format=".3f")],
        )
        .properties(width=170, height=170)
    )
    facet = alt.Facet("recipe:N", title=None, sort=list(distances))
    lines = math.ceil(len(distances) / 4)
    return panel.facet(facet, data=alt.Data(values=values), columns=math.ceil(len(distances) / lines))
