"""Charts of a sweep, each a function from `Results` to an Altair chart, or None where there is nothing to draw.

Colours stand for recipes, the same in every chart. A click on a legend isolates an entry.
"""

from collections.abc import Iterable
from typing import Any

import altair as alt

from ..lab.chart import PALETTE, decades, ramp
from ..lab.results import Results, choice, reported
from ..lab.store import Json
from . import hops

COLUMNS = 3
WIDTH, HEIGHT = 280, 200


def final_loss(results: Results) -> alt.TopLevelMixin | None:
    """Final validation loss against depth at the best learning rate, a line for each recipe and a dot for each seed."""
    best = [row for row in results.best() if row["loss"] is not None]
    if not best:
        return None
    seeds = [{**row, "seed_loss": reported(cell), "seed": cell["seed"]} for row in best for cell in row["cells"]]
    lines = [{**row, "cells": None, "rate": "highest or lowest tried" if row["edge"] else "inside"} for row in best]
    chosen = alt.selection_point(fields=["recipe"], bind="legend")
    x, y = (
        depth_axis(results),
        alt.Y("loss:Q", title="final validation loss (nats per token)", scale=alt.Scale(zero=False)),
    )
    color, opacity = recipe_color(results), alt.condition(chosen, alt.value(1), alt.value(0.12))
    tip = [
        "recipe:N",
        "depth:Q",
        alt.Tooltip("loss:Q", format=".4f"),
        alt.Tooltip("learning_rate:Q", title="best rate"),
    ]
    shape = alt.Shape(
        "rate:N",
        title="best learning rate:",
        scale=alt.Scale(domain=["inside", "highest or lowest tried"], range=["circle", "triangle-up"]),
        legend=alt.Legend(titleOrient="left"),
    )
    base = alt.Chart(alt.Data(values=lines)).encode(x=x, y=y, color=color, opacity=opacity)
    mark = base.mark_point(size=110, filled=True).encode(shape=shape, tooltip=tip)
    seed_tip = ["recipe:N", "depth:Q", "seed:Q", alt.Tooltip("seed_loss:Q", format=".4f")]
    dots = (
        alt.Chart(alt.Data(values=seeds))
        .mark_circle(size=26)
        .encode(x=x, y="seed_loss:Q", color=color, opacity=opacity, tooltip=seed_tip)
    )
    bars = base.transform_filter("datum.low != null").mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q")
    beside = hops.read(results)
    width = 820 if beside is None else 520
    layers = _floors(results, width) + base.mark_line(strokeWidth=2.5) + bars + dots + mark
    text = layers.add_params(chosen).properties(width=width, height=380)
    if beside is None:
        return text
    return alt.hconcat(text.properties(title="Text: which recipes can be stacked"), _three_hops(beside), spacing=40)


def _three_hops(results: Results) -> Any:
    """Final loss of each number of layers on three hops, at the best rate, with its interval over seeds from 0 up."""
    rows = [
        {**row, "cells": None, "low": row["low"] and max(row["low"], 0), "top": row["high"] or row["loss"]}
        for row in results.best()
        if row["loss"] is not None
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("depth:O", title="depth (layers)", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("loss:Q", title="final validation loss (nats per answer)", scale=alt.Scale(zero=True)),
    )
    bar = base.mark_bar(size=34, color=PALETTE[0]).encode(
        tooltip=["depth:O", alt.Tooltip("loss:Q", format=".4f"), alt.Tooltip("learning_rate:Q", title="best rate")]
    )
    interval = base.transform_filter("datum.low != null").mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q")
    number = base.mark_text(dy=-8).encode(y="top:Q", text=alt.Text("loss:Q", format=".2f"))
    return (bar + interval + number).properties(width=170, height=380, title="Three hops: what stacking is for")


def _floors(results: Results, width: int) -> Any:
    """Labelled lines: entropies of the validation data, and the lowest loss that any recipe has with zero layers."""
    data = results.base["data"]
    rows = [{"loss": data[name], "label": name} for name in ("unigram", "bigram") if data[name] is not None]
    zero = [row["loss"] for row in results.best() if row["depth"] == 0 and row["loss"] is not None]
    rows += [{"loss": min(zero), "label": "zero layers"}] if zero else []
    base = alt.Chart(alt.Data(values=rows)).encode(y="loss:Q")
    label = base.mark_text(align="left", baseline="middle").encode(x=alt.value(width + 6), text="label:N")
    return base.mark_rule(strokeDash=[5, 4]) + label


def loss_against_steps(results: Results) -> alt.TopLevelMixin | None:
    """Loss against training steps at the best learning rate, a panel for each depth."""
    return _curves(results, "step", "training steps")


def loss_against_tokens(results: Results) -> alt.TopLevelMixin | None:
    """Loss against tokens seen."""
    return _curves(results, "tokens", "training tokens")


def _curves(results: Results, x: str, title: str) -> alt.TopLevelMixin | None:
    rows = []
    for cell in best_cells(results):
        points = [point for point in results.curve(cell) if point["train_loss"] is not None]
        key = {"recipe": cell["recipe"], "depth": cell["depth"], "cell": cell["cell"]}
        rows += [{**key, "panel": f"depth {cell['depth']}", **point} for point in points]
    if not rows:
        return None
    chosen = alt.selection_point(fields=["recipe"], bind="legend")
    base = alt.Chart().encode(
        x=alt.X(f"{x}:Q", title=title, axis=alt.Axis(format="~s", tickCount=5)),
        color=recipe_color(results),
        detail="cell:N",
    )
    y = alt.Scale(zero=False)
    train = base.mark_line(strokeWidth=1.5).encode(
        y=alt.Y("train_loss:Q", title="loss (nats)", scale=y),
        opacity=alt.condition(chosen, alt.value(0.45), alt.value(0.05)),
    )
    valid = base.mark_point(size=34, filled=True).encode(
        y=alt.Y("valid_loss:Q", scale=y),
        opacity=alt.condition(chosen, alt.value(1), alt.value(0.05)),
        tooltip=["recipe:N", "depth:Q", "step:Q", "tokens:Q", alt.Tooltip("valid_loss:Q", format=".4f")],
    )
    panel = (train + valid.transform_filter("datum.valid_loss != null")).properties(width=WIDTH, height=HEIGHT)
    facet = alt.Facet("panel:N", title=None, sort=[f"depth {depth}" for depth in results.depths])
    return panel.add_params(chosen).facet(facet, data=alt.Data(values=rows), columns=COLUMNS)


def loss_against_flops(results: Results) -> alt.TopLevelMixin | None:
    """Validation loss against training FLOPs at the best learning rate: a panel for each recipe, a line a depth."""
    rows = []
    for cell in best_cells(results):
        points = [point for point in results.curve(cell) if point["valid_loss"] is not None and point["flops"]]
        rows += [{"recipe": cell["recipe"], "depth": cell["depth"], "cell": cell["cell"], **point} for point in points]
    if not rows:
        return None
    chosen = alt.selection_point(fields=["depth"], bind="legend")
    x_axis = alt.Axis(values=decades([row["flops"] for row in rows]), format="~s")
    panel = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=22), strokeWidth=2)
        .encode(
            x=alt.X("flops:Q", title="training FLOPs", scale=alt.Scale(type="log", nice=False), axis=x_axis),
            y=alt.Y("valid_loss:Q", title="validation loss (nats)", scale=alt.Scale(zero=False)),
            color=ramp("depth", results.depths),
            detail="cell:N",
            opacity=alt.condition(chosen, alt.value(1), alt.value(0.1)),
            tooltip=["recipe:N", "depth:Q", "step:Q", alt.Tooltip("flops:Q", format=".2e"), "valid_loss:Q"],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return panel.add_params(chosen).facet(recipe_facet(results), data=alt.Data(values=rows), columns=COLUMNS)


def learning_rates(results: Results) -> alt.TopLevelMixin | None:
    """Final loss for every learning rate and depth, a panel for each recipe; divergence and failure are marked."""
    rows = []
    best_rates = {(row["recipe"], row["depth"], row["learning_rate"]) for row in results.best()}
    for cell in results.cells:
        key = {name: cell[name] for name in ("recipe", "depth", "learning_rate")}
        shown = {"rate": f"{cell['learning_rate']:g}", "best": tuple(key.values()) in best_rates}
        rows.append({**key, **shown, "status": cell["status"], "loss": choice(cell)})
    ended = [row for row in rows if row["status"] != "unfinished"]
    if not ended:
        return None
    losses = [row["loss"] for row in ended if row["status"] == "ok"]
    low, high = min(losses, default=0), min(max(losses, default=1), 1.05 * results.base["data"]["unigram"])
    rates = sorted({row["learning_rate"] for row in rows}, reverse=True)
    x = alt.X("depth:O", title="depth", axis=alt.Axis(labelAngle=0))
    y = alt.Y("rate:O", title="learning rate", sort=[f"{rate:g}" for rate in rates])
    base = alt.Chart().encode(x=x, y=y)
    heat = (
        base.transform_filter("datum.status == 'ok'")
        .mark_rect()
        .encode(
            color=alt.Color(
                "mean(loss):Q",
                title="final validation loss",
                scale=alt.Scale(scheme="viridis", reverse=True, domain=[low, max(high, low + 1e-3)], clamp=True),
            ),
            tooltip=["recipe:N", "depth:O", "rate:O", alt.Tooltip("mean(loss):Q", format=".4f"), "count():Q"],
        )
    )
    middle = (low + high) / 2
    number = (
        base.transform_filter("datum.status == 'ok'")
        .transform_aggregate(shown="mean(loss)", groupby=["recipe", "depth", "rate"])
        .mark_text()
        .encode(
            text=alt.Text("shown:Q", format=".2f"),
            color=alt.condition(f"datum.shown > {middle}", alt.value("white"), alt.value("#22221f")),
        )
    )
    ended_badly = base.transform_filter("datum.status == 'diverged' || datum.status == 'failed'")
    cross = ended_badly.mark_rect(fill="#e45756", fillOpacity=0.16, stroke="#e45756").encode(
        tooltip=["recipe:N", "status:N"]
    )
    word = ended_badly.mark_text(color="#e45756", fontSize=11).encode(text="status:N")
    size = alt.Step(64), alt.Step(38)
    best = base.transform_filter("datum.best").mark_rect(fill=None, stroke="#e4572e", strokeWidth=2.5)
    panel = (heat + best + number + cross + word).properties(width=size[0], height=size[1])
    return panel.facet(recipe_facet(results), data=alt.Data(values=ended), columns=COLUMNS)


def cost(results: Results) -> alt.TopLevelMixin | None:
    """Compile time, step time and memory against depth, a line for each recipe."""
    pictures = (
        ("compile_seconds", 1, "compile time of a group (s)", "max"),
        ("step_seconds", 1e3, "step time of a cell (ms)", "median"),
        ("temp_bytes", 2**-20, "temporary memory of a group (MiB)", "max"),
    )
    panels = []
    for name, factor, title, reduce in pictures:
        rows = [
            {"recipe": cell["recipe"], "depth": cell["depth"], "value": factor * cell[name]}
            for cell in results.cells
            if cell[name] is not None
        ]
        if rows:
            panels.append(
                alt.Chart(alt.Data(values=rows))
                .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=2)
                .encode(
                    x=depth_axis(results),
                    y=alt.Y(f"{reduce}(value):Q", title=title, scale=alt.Scale(zero=True)),
                    color=recipe_color(results),
                    tooltip=["recipe:N", "depth:Q", alt.Tooltip(f"{reduce}(value):Q", format=".3g")],
                )
                .properties(width=WIDTH - 30, height=HEIGHT)
            )
    return alt.hconcat(*panels) if panels else None


def best_cells(results: Results, *, depths: Iterable[int] | None = None, one_seed: bool = False) -> list[Json]:
    """The cells at each recipe's and depth's best learning rate; where none ended well, those at the lowest."""
    wanted = set(results.depths if depths is None else depths)
    best = []
    for row in results.best():
        candidates = [c for c in results.cells if (c["recipe"], c["depth"]) == (row["recipe"], row["depth"])]
        lowest = min(cell["learning_rate"] for cell in candidates)
        cells = row["cells"] or [cell for cell in candidates if cell["learning_rate"] == lowest]
        if row["depth"] in wanted:
            best += cells[:1] if one_seed else cells
    return best


def depth_axis(results: Results) -> alt.X:
    """Depth on a logarithmic axis that knows zero, with a tick at each depth tried."""
    axis = alt.Axis(values=results.depths, format="d", grid=False, labelFlush=False)
    scale = alt.Scale(type="symlog", constant=1, zero=False, nice=False, padding=12)
    return alt.X("depth:Q", title="depth (layers)", scale=scale, axis=axis)


def recipe_color(results: Results) -> alt.Color:
    """A colour for each recipe."""
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(results.recipes))]
    return alt.Color("recipe:N", title=None, scale=alt.Scale(domain=results.recipes, range=colors))


def recipe_facet(results: Results, *, labels: bool = True) -> alt.Facet:
    """A panel for each recipe."""
    header = alt.Header() if labels else alt.Header(labelExpr="''", labelFontSize=0, labelPadding=0)
    return alt.Facet("recipe:N", title=None, sort=results.recipes, header=header)
