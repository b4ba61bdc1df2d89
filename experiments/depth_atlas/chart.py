"""Charts of an atlas: many recipes, so rows of a table rather than lines."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt

from ..lab import chart
from ..lab.headline import STUCK, without_layers
from ..lab.results import Results
from ..lab.store import Json

REFERENCE = "pre_norm"
"""Recipe whose zero layers are the line in charts of several recipes."""

CELL = alt.Step(72), alt.Step(19)
RED = "#e45756"

MOST_SHADED = 0.4
"""Nats from zero layers at which the colours end."""

CURVES = 8
"""Recipes whose curves are drawn, the best at the greatest depth: more lines could not be told apart."""


def order(rows: Sequence[Json]) -> list[str]:
    """Recipes by their loss at the greatest depth that most were run at; those without one there last."""
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    counted = Counter(row["depth"] for row in rows)
    shared = max(depth for depth, n in counted.items() if 2 * n >= len(names))
    losses = {row["recipe"]: row["loss"] for row in rows if row["depth"] == shared}
    return sorted(names, key=lambda name: math.inf if losses.get(name) is None else losses[name])


def depths(rows: Sequence[Json], data: Json) -> alt.TopLevelMixin:
    """Final validation loss of every recipe at every depth, coloured by what it gained over the recipe's zero layers.

    Args:
        rows: `atlas.points`.
        data: facts of the corpus; where no zero layers were run, its unigram entropy takes their place.
    """
    compared = [
        {
            **row,
            "change": 0.0
            if row["depth"] == 0
            else row["loss"] - data["unigram"]
            if row["gain"] is None
            else row["gain"],
        }
        for row in rows
        if row["loss"] is not None
    ]
    badly = [{**row, "change": None} for row in rows if row["loss"] is None]
    shade = alt.Color(
        "change:Q",
        title="nats above no layers",
        scale=alt.Scale(scheme="blueorange", domainMid=0, domain=[-MOST_SHADED, MOST_SHADED], clamp=True),
        legend=alt.Legend(gradientLength=200, format="+.1f"),
    )
    light = f"abs(datum.change) > {0.7 * MOST_SHADED}"
    return _tiles([*compared, *badly], order(rows), shade, ".2f", "loss", light).properties(
        title="Final validation loss at the best learning rate; blue is better than the same recipe without layers"
    )


def rates(rows: Sequence[Json]) -> alt.TopLevelMixin:
    """The best learning rate of every recipe at every depth at which it learned more than counting bytes does."""
    learned = [{**row, "loss": None} if row["word"] == "stuck" else row for row in rows]
    shade = alt.Color("learning_rate:Q", scale=alt.Scale(type="log", range=["#dce6f5", "#f7d9b9"]), legend=None)
    tiles = _tiles(learned, order(rows), shade, "~g", "learning_rate", "false")
    meaning = f"stuck: less than {STUCK:g} nats below counting single bytes, or above it"
    return tiles.properties(title=alt.TitleParams("Best learning rate of those tried", subtitle=meaning))


def _tiles(rows: Sequence[Json], names: Sequence[str], shade: alt.Color, form: str, field: str, light: str) -> Any:
    shown = ("recipe", "depth", "loss", "learning_rate", "word", "gain")
    values = [{**{name: row[name] for name in shown}, "change": row.get("change")} for row in rows]
    x = alt.X("depth:O", title="depth (layers)", axis=alt.Axis(labelAngle=0, orient="top"))
    y = alt.Y("recipe:N", title=None, sort=list(names), axis=alt.Axis(labelLimit=220))
    base = alt.Chart(alt.Data(values=values)).encode(x=x, y=y)
    ended = base.transform_filter("datum.loss != null")
    tip = ["recipe:N", "depth:O", "word:N", alt.Tooltip("loss:Q", format=".4f"), "gain:Q", "learning_rate:Q"]
    tile = ended.mark_rect(stroke="white").encode(color=shade, tooltip=tip)
    ink = alt.condition(light, alt.value("white"), alt.value("#22221f"))
    number = ended.mark_text(fontSize=11).encode(text=alt.Text(f"{field}:Q", format=form), color=ink)
    badly = base.transform_filter("datum.loss == null").mark_text(fontSize=11, color=RED).encode(text="word:N")
    return (tile + number + badly).properties(width=CELL[0], height=CELL[1])


def deep_cells(results: Results, rows: Sequence[Json]) -> list[Json]:
    """One best cell of each of the best recipes at the greatest depth, there and at the depth before it."""
    greatest = results.depths[-2:]
    best = order([row for row in rows if row["depth"] == greatest[-1]])[:CURVES]
    deepest = [row for row in rows if row["depth"] in greatest and row["recipe"] in best]
    return [row["cells"][0] for row in sorted(deepest, key=lambda row: best.index(row["recipe"])) if row["cells"]]


def deep(results: Results, rows: Sequence[Json]) -> alt.TopLevelMixin | None:
    """Validation loss against steps at the two greatest depths, of the recipes that are best there.

    The loss before the first step, which differs by nats, is left out.
    """
    cells = deep_cells(results, rows)
    points = [
        {"recipe": cell["recipe"], "panel": f"{cell['depth']:,} layers", "step": p["step"], "loss": p["valid_loss"]}
        for cell in cells
        for p in results.curve(cell)
        if p["valid_loss"] is not None and p["step"]
    ]
    if not points:
        return None
    names = list(dict.fromkeys(point["recipe"] for point in points))
    colors = [chart.PALETTE[i % len(chart.PALETTE)] for i in range(len(names))]
    panel: Any = (
        alt.Chart()
        .mark_line(point=True, strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="training steps", axis=alt.Axis(tickCount=5)),
            y=alt.Y("loss:Q", title="validation loss (nats)", scale=alt.Scale(zero=False)),
            color=alt.Color("recipe:N", title=None, scale=alt.Scale(domain=names, range=colors)),
        )
        .properties(width=360, height=260)
    )
    panels = [f"{depth:,} layers" for depth in results.depths[-2:]]
    floor = without_layers(results, REFERENCE)
    if floor is not None:
        rule = (
            alt.Chart().transform_aggregate(n="count()").mark_rule(strokeDash=[5, 4]).encode(y=alt.datum(floor["loss"]))
        )
        word = rule.mark_text(align="left", dy=-7, dx=6).encode(
            x=alt.value(0), text=alt.value(f"no layers ({REFERENCE})")
        )
        panel = alt.layer(panel, rule, word)
    return panel.facet(alt.Facet("panel:N", title=None, sort=panels), data=alt.Data(values=points), columns=2)


def cost(checks: Sequence[Json]) -> alt.TopLevelMixin | None:
    """Chart of each recipe's cost at the depth of the checks: memory by rematerialisation, step time, compile time."""
    done = [check for check in checks if check["temp_bytes"]]
    if not done:
        return None
    deepest = max(check["depth"] for check in done)
    done = [{**check, "recipe": _label(check, deepest)} for check in done]
    names = [check["recipe"] for check in done]
    y = alt.Y("recipe:N", title=None, sort=names, axis=alt.Axis(labelLimit=220, grid=True))
    size = {"width": 210, "height": alt.Step(17)}
    memory = [
        {"recipe": check["recipe"], "kind": remat, "value": size_ / 2**20}
        for check in done
        for remat, size_ in check["temp_bytes"].items()
    ]
    steps = [{"recipe": check["recipe"], "value": check["step_seconds"]} for check in done]
    compiled = [
        {"recipe": check["recipe"], "kind": f"{depth:,} layers", "value": check[seconds]}
        for check in done
        for depth, seconds in ((check["shallow"], "shallow_compile_seconds"), (deepest, "compile_seconds"))
        if check[seconds] is not None
    ]

    def dots(values: list[Json], title: str, scale: alt.Scale, legend: str | None, axis: alt.Axis) -> Any:
        base = alt.Chart(alt.Data(values=values)).mark_point(filled=True, size=48, opacity=0.9)
        shown = base.encode(x=alt.X("value:Q", title=title, scale=scale, axis=axis), y=y).properties(**size)
        return shown if legend is None else shown.encode(color=alt.Color("kind:N", title=legend, sort=None))

    log = alt.Scale(type="log")
    plain = alt.Axis(tickCount=5)
    panels = [
        dots(memory, f"temporary MiB, {deepest:,} layers", log, "remat", alt.Axis(format="~s", tickCount=5)),
        dots(steps, f"seconds a step, {deepest:,} layers", log, None, alt.Axis(format="~g", tickCount=5)),
        dots(compiled, "seconds to compile", alt.Scale(zero=True), "compiled", plain),
    ]
    return alt.hconcat(*panels).resolve_scale(color="independent")


def _label(check: Json, deepest: int) -> str:
    """A recipe, with its depth where that is not the deepest."""
    return check["recipe"] if check["depth"] == deepest else f"{check['recipe']} ({check['depth']:,})"
