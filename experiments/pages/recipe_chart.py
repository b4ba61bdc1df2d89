"""The figure of a recipe: loss against depth, and each layer at birth, beside the reference."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from ..lab import chart
from ..lab.store import Json
from . import readings, recipe_page


def figure_data(name: str, births: dict[str, Json]) -> list[Json]:
    """Points of the recipe's figure, and of the reference's beside it; the line is the recipe without layers."""
    points: list[Json] = [{"recipe": name, "panel": "no layers", "y": readings.without_layers(name)}]
    for each in dict.fromkeys((recipe_page.REFERENCE, name)):
        for row in readings.points(each):
            if row["loss"] is not None and row["depth"]:
                seeds = row["estimate"].n
                ends = (row["estimate"].low, row["estimate"].high) if seeds > 1 else (row["loss"], row["loss"])
                point = {"recipe": each, "panel": "loss", "x": row["depth"], "y": row["loss"]}
                points.append({**point, "low": round(ends[0], 4), "high": round(ends[1], 4)})
        for measure in ("stream_rms", "stream_gradient"):
            first = len(births[each]["stream_gradient"]) - len(births[each][measure])
            for layer, value in enumerate(births[each][measure], first):
                if value:
                    points.append({"recipe": each, "panel": measure, "x": layer, "y": value})
    return points


def figure(name: str, points: Sequence[Json]) -> alt.TopLevelMixin:
    """Loss against depth, and size of stream and gradient in each layer at birth, with the reference in grey."""
    names = list(dict.fromkeys((name, recipe_page.REFERENCE)))
    colour = alt.Color(
        "recipe:N", title=None, scale=alt.Scale(domain=names, range=[chart.PALETTE[0], "#b9b9b4"][: len(names)])
    )
    floors = [
        {"y": readings.unigram(), "text": "counting bytes"},
        {"y": round(readings.without_layers(name), 4), "text": "no layers"},
    ]
    trained = [point for point in points if point["panel"] == "loss"]
    short = "datum.value == 1024 ? '1k' : datum.value"
    ticks = alt.Axis(values=[depth for depth in readings.depths() if depth], labelOverlap=False, labelExpr=short)
    x = alt.X(
        "x:Q",
        title="layers",
        scale=alt.Scale(type="log", base=2),
        axis=ticks,
    )
    y = alt.Y("y:Q", title="validation loss (nats)", scale=alt.Scale(zero=False))
    base = alt.Chart(alt.Data(values=trained)).encode(x=x, color=colour)
    bars = base.mark_rule(strokeWidth=2, aria=False).encode(y=alt.Y("low:Q"), y2="high:Q")
    line = base.mark_line(point=alt.OverlayMarkDef(size=40), aria=False).encode(y=y)
    rule = alt.Chart(alt.Data(values=floors)).mark_rule(strokeDash=[4, 4], aria=False).encode(y="y:Q")
    word = rule.mark_text(align="right", x="width", dy=-7, fontSize=11, aria=False).encode(text="text:N")
    panels: list[Any] = [(rule + word + bars + line).properties(width=230, height=190, title="Loss after training")]
    for measure, title, label in (
        ("stream_rms", "Stream at birth", "RMS of x"),
        ("stream_gradient", "Gradient at birth", "|dLoss/dx|"),
    ):
        here = [point for point in points if point["panel"] == measure]
        ticks = alt.Axis(format=".3~g", tickCount=5)
        drawn = (
            alt.Chart(alt.Data(values=here))
            .mark_line(aria=False)
            .encode(
                x=alt.X("x:Q", title="layer", axis=alt.Axis(tickCount=5)),
                y=alt.Y("y:Q", title=label, scale=alt.Scale(type="log", nice=False), axis=ticks),
                color=colour,
            )
        )
        panels.append(drawn.properties(width=190, height=190, title=title))
    return alt.hconcat(*panels)
