"""Charts of what happens in each layer, over training and over depth, like those in `loss_chart`."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from ..lab import chart
from ..lab.profile_chart import LOGARITHMIC, TITLES
from ..lab.results import Results
from ..lab.store import Json
from . import loss_chart

MOST_LAYERS, MOST_STEPS = 48, 5

STREAM = ("stream_rms", "cosine", "token_similarity")
GRADIENT = ("stream_gradient", "grad_norm", "update_ratio")
BRANCH = ("branch_ratio", "attention_entropy", "max_logit")


def stream_over_time(results: Results) -> alt.TopLevelMixin | None:
    """Chart of the stream in each layer, over training, at the greatest depth."""
    return _over_time(results, STREAM)


def gradients_over_time(results: Results) -> alt.TopLevelMixin | None:
    """Chart of gradients and updates in each layer, over training, at the greatest depth."""
    return _over_time(results, GRADIENT)


def branches_over_time(results: Results) -> alt.TopLevelMixin | None:
    """Branches and attention in the layers, over training, at the greatest depth."""
    return _over_time(results, BRANCH)


def stream_over_depth(results: Results) -> alt.TopLevelMixin | None:
    """Chart of the stream in each layer at the end of training, for every depth."""
    return _over_depth(results, STREAM)


def gradients_over_depth(results: Results) -> alt.TopLevelMixin | None:
    """Chart of gradients and updates in each layer at the end of training, for every depth."""
    return _over_depth(results, GRADIENT)


def branches_over_depth(results: Results) -> alt.TopLevelMixin | None:
    """Branches and attention in the layers at the end of training, for every depth."""
    return _over_depth(results, BRANCH)


def _over_time(results: Results, measures: Sequence[str]) -> alt.TopLevelMixin | None:
    rows = []
    for cell in loss_chart.best_cells(results, depths=results.depths[-1:], one_seed=True):
        for profile in _thin(results.layers(cell), MOST_STEPS):
            rows += _points(cell, profile, measures)
    color = chart.ramp("step", (row["step"] for row in rows))
    return _profiles(results, rows, measures, alt.X("layer:Q", title="layer"), color, "step:Q")


def _over_depth(results: Results, measures: Sequence[str]) -> alt.TopLevelMixin | None:
    rows = []
    for cell in loss_chart.best_cells(results, one_seed=True):
        for profile in results.layers(cell)[-1:]:
            rows += _points(cell, profile, measures)
    x = alt.X("share:Q", title="layer / depth", axis=alt.Axis(format="~%", tickCount=3))
    color = chart.ramp("depth", results.depths)
    return _profiles(results, rows, measures, x, color, "depth:O")


def _points(cell: Json, profile: Json, measures: Sequence[str]) -> list[Json]:
    """One row for each layer and each measure of these kinds, thinned to `MOST_LAYERS` layers."""
    rows = []
    for name, values in profile.items():
        kind, _, sublayer = name.partition("/")
        if kind not in measures:
            continue
        last = max(len(values) - 1, 1)
        for layer, value in _thin(list(enumerate(values)), MOST_LAYERS):
            if value is not None and (value > 0 or kind not in LOGARITHMIC):
                key = {"recipe": cell["recipe"], "depth": cell["depth"], "step": profile["step"]}
                rows.append(
                    {**key, "kind": kind, "sublayer": sublayer, "layer": layer, "share": layer / last, "value": value}
                )
    return rows


def _profiles(
    results: Results, rows: list[Json], measures: Sequence[str], x: alt.X, color: alt.Color, detail: str
) -> alt.TopLevelMixin | None:
    """A row of panels for each measure, a column for each recipe."""
    pictures = [
        (kind, sublayer) for kind in measures for sublayer in sorted({r["sublayer"] for r in rows if r["kind"] == kind})
    ]
    bands = []
    for picture in pictures:
        kind, sublayer = picture
        panel_rows = [row for row in rows if (row["kind"], row["sublayer"]) == picture]
        title = [TITLES[kind], sublayer.replace("_", "-")] if sublayer and kind == "branch_ratio" else TITLES[kind]
        scale, axis = alt.Scale(zero=False), alt.Axis(tickCount=4, format="~g", titleFontSize=11)
        if kind in LOGARITHMIC:
            ticks = chart.decades(row["value"] for row in panel_rows)
            form = "~g" if min(ticks) >= 1e-3 else ".0e"
            scale, axis = (
                alt.Scale(type="log"),
                alt.Axis(values=ticks, format=form, titleFontSize=11, labelOverlap=True),
            )
        panel = (
            alt.Chart()
            .mark_line(strokeWidth=1.8)
            .encode(
                x=x if picture == pictures[-1] else x.title(None),
                y=alt.Y("value:Q", title=title, scale=scale, axis=axis),
                color=color,
                detail=detail,
                tooltip=["recipe:N", "depth:Q", "step:Q", "layer:Q", alt.Tooltip("value:Q", format=".3g")],
            )
            .properties(width=loss_chart.WIDTH, height=130)
        )
        facet = loss_chart.recipe_facet(results, labels=picture == pictures[0])
        bands.append(panel.facet(facet, data=alt.Data(values=panel_rows), columns=loss_chart.COLUMNS))
    return alt.vconcat(*bands, spacing=8).resolve_scale(color="shared") if bands else None


def _thin(items: Sequence[Any], most: int) -> list[Any]:
    """Keep at most `most` items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
