"""The report of a run: one HTML file that needs no network, its charts as SVG and PNG, and the finding."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt

from ..lab import finding, headline, page
from ..lab.chart import export
from ..lab.results import Results
from ..lab.store import Json, write
from . import hops, layer_chart, loss_chart

Chart = Callable[[Results], alt.TopLevelMixin | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the report.

    Args:
        charts: {tab: (file name, function)}; one chart needs no tab.
        caption: what to look for.
    """

    charts: dict[str, tuple[str, Chart]]
    caption: str


def one(name: str, make: Chart, caption: str) -> Figure:
    """A figure of a single chart."""
    return Figure(charts={"": (name, make)}, caption=caption)


SECTIONS: dict[str, tuple[Figure, ...]] = {
    "Loss against depth": (
        one(
            "final_loss",
            loss_chart.final_loss,
            "Final validation loss of each recipe at its own best learning rate, on the half of the validation windows "
            "that did not choose it. Small dots are seeds, bars 95 % intervals over them. A triangle says "
            "that the best rate is the lowest or highest of those tried, so a wider grid may do better. Dashed lines: "
            "entropy of the validation data's single bytes or tokens (what one learns by counting them) and of each "
            "given the one before; the lowest loss with zero layers. Beside it, where there is one, a task that asks "
            "for two layers: follow a pointer three times.",
        ),
    ),
    "Loss while training": (
        Figure(
            charts={
                "steps": ("loss_against_steps", loss_chart.loss_against_steps),
                "tokens": ("loss_against_tokens", loss_chart.loss_against_tokens),
                "FLOPs": ("loss_against_flops", loss_chart.loss_against_flops),
            },
            caption="Each at its best learning rate. Lines: training loss, the mean of ten steps; dots: validation "
            "loss. FLOPs are those of the model's matrix products, forward and backward, nothing recomputed.",
        ),
    ),
    "Learning rate and depth": (
        one(
            "learning_rates",
            loss_chart.learning_rates,
            "Final loss on the half of the validation windows by which rates are chosen, averaged over seeds; the best "
            "rate at each depth is outlined. A recipe whose best rate stays in place as depth grows can be tuned on a "
            "shallow model.",
        ),
    ),
    "In the layers": (
        Figure(
            charts={
                "stream": ("stream_over_time", layer_chart.stream_over_time),
                "gradients": ("gradients_over_time", layer_chart.gradients_over_time),
                "branches": ("branches_over_time", layer_chart.branches_over_time),
            },
            caption="The deepest models over training, each recipe at its best learning rate (at the lowest where none "
            "trained), first seed. Measured on validation windows; gradients and updates at the training step before.",
        ),
        Figure(
            charts={
                "stream": ("stream_over_depth", layer_chart.stream_over_depth),
                "gradients": ("gradients_over_depth", layer_chart.gradients_over_depth),
                "branches": ("branches_over_depth", layer_chart.branches_over_depth),
            },
            caption="All depths at the end of training, layers as a share of the depth. Updates are those of the last "
            "step, where a learning rate that decays is close to zero.",
        ),
    ),
    "Cost": (
        one(
            "cost",
            loss_chart.cost,
            "Compile time is that of a group of lanes (learning rates and seeds) and is missing where programs came "
            "from the cache; the time of a step is the group's, divided by the lanes that took it; where several "
            "groups ran at the same time, both are of a shared machine. Memory is XLA's count of temporary bytes "
            "while training, of one lane where they run one after another, else of all.",
        ),
    ),
}


def write_report(results: Results) -> Path:
    """Write report.html and figures/, and say where the report is."""
    specs: dict[str, Json] = {}
    sections = []
    for title, figures in SECTIONS.items():
        drawn = [_figure(figure, results, specs) for figure in figures]
        sections.append(f"<h2>{title}</h2>" + ("".join(drawn) or '<p class="note">Nothing has ended yet.</p>'))
    for name, spec in specs.items():
        export(results.folder.path / "figures", name, spec)
    path = results.folder.path / "report.html"
    write(path, _page(results, specs, "".join(sections)))
    return path


def headlines(results: Results) -> list[str]:
    """Sentences on what came of the sweep, and of the three hops beside it."""
    beside = hops.read(results)
    return headline.sentences(results) + ([] if beside is None else [hops.sentence(beside)])


def write_finding(results: Results) -> Path:
    """Write finding.md and result.json: who is best at each depth, at which learning rate."""
    losses = _table_by_depth(results, results.best(), _ended)
    compared = [row for row in results.best() if headline.gain(results, row) is not None]
    gains = _table_by_depth(results, compared, lambda row: _gained(headline.gain(results, row)))
    sentences = "\n".join(f"- {sentence}" for sentence in headlines(results))
    beside = hops.read(results)
    rows = [*results.best(), *([] if beside is None else [{**row, "task": hops.TASK} for row in beside.best()])]
    text = (
        sentences,
        _setting(results),
        f"{headline.rule(results)} {headline.noise(results)}".strip(),
        "![Final validation loss against depth](figures/final_loss.svg)",
        "Final validation loss in nats per token, the mean over seeds with its 95 % interval where there are several, "
        "and the learning rate that it belongs to:",
        losses,
        "The same less the loss of the recipe's own zero layers, paired by seed:" if gains else "",
        gains,
        "Every cell is in [results.csv](results.csv), every chart in `report.html`.",
    )
    return finding.write(
        results.folder.path,
        question="Which recipes can be stacked, and how deep?",
        setting={**results.base["setting"], "data": results.base["data"]},
        predictions=(),
        rows=[{**row, "cells": [cell["cell"] for cell in row["cells"]]} for row in rows],
        figures={},
        text="\n\n".join(part for part in text if part),
        provenance=results.provenance(),
    )


def _setting(results: Results) -> str:
    """Sentence on the sizes, the steps and the data."""
    setting, data = results.base["setting"], results.base["data"]
    return (
        f"D = {setting['d_model']}, H = {setting['n_heads']}, {setting['steps']} steps of B = {setting['batch']} "
        f"windows of T = {setting['context']} tokens with {setting['optimizer']}; data: {data['name']}."
    )


def _table_by_depth(results: Results, rows: Sequence[Json], word: Callable[[Json], str]) -> str:
    """Table with a line for each recipe and a column for each depth."""
    by_recipe: dict[str, Json] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], {})[f"depth {row['depth']}"] = word(row)
    depths = [column for depth in results.depths if any((column := f"depth {depth}") in x for x in by_recipe.values())]
    return finding.table(
        [{"recipe": name, **{column: line.get(column, "") for column in depths}} for name, line in by_recipe.items()]
    )


def _ended(row: Json) -> str:
    if row["loss"] is None:
        return "no rate ends well"
    return f"{row['loss']:.2f}{headline.interval(row['low'], row['high'])} at {row['learning_rate']:g}"


def _gained(change: finding.Estimate | None) -> str:
    return "" if change is None else f"{change.mean:+.2f}{headline.interval(change.low, change.high)}"


def _figure(figure: Figure, results: Results, specs: dict[str, Json]) -> str:
    made = {tab: (name, make(results)) for tab, (name, make) in figure.charts.items()}
    charts = {tab: (name, drawn) for tab, (name, drawn) in made.items() if drawn is not None}
    return page.figure(charts, figure.caption, specs) if charts else ""


def _page(results: Results, specs: dict[str, Json], sections: str) -> str:
    sweep, setting = results.base["data"], results.base["setting"]
    under = (
        f"{sweep['name']}, {sweep['size']} · D = {setting['d_model']}, "
        f"T = {setting['context']}, B = {setting['batch']} · {setting['steps']} steps of {setting['optimizer']}"
        f"{f' · mesh {mesh}' if (mesh := setting.get('mesh')) else ''}"
    )
    body = f"""<p class="note">{html.escape(f"{headline.rule(results)} {headline.noise(results)}")}</p>
{sections}
<h2>Divergence and failure</h2>
{_failures(results)}
<h2>All cells</h2>
{_cells(results)}
<h2>Environment</h2>
{_environment(results)}"""
    return page.document(title="Depth sweep", under=under, headline=headlines(results), body=body, specs=specs)


def _failures(results: Results) -> str:
    bad = [cell for cell in results.cells if cell["status"] in ("diverged", "failed")]
    if not bad:
        return '<p class="note">None: no cell diverged or failed.</p>'
    return _table(bad, ("recipe", "depth", "learning_rate", "seed", "status", "diverged_step", "message"))


def _cells(results: Results) -> str:
    note = '<p class="note">Click on a heading to sort. All columns, in plain units, are in results.csv.</p>'
    return note + _table(results.cells, tuple(COLUMNS))


COLUMNS = {
    "recipe": ("recipe", "", 1),
    "depth": ("depth", "d", 1),
    "learning_rate": ("rate", "g", 1),
    "seed": ("seed", "d", 1),
    "status": ("status", "", 1),
    "params": ("params", ",", 1),
    "flops": ("FLOPs", ".1e", 1),
    "train_loss": ("train loss", ".3f", 1),
    "valid_loss": ("valid loss", ".3f", 1),
    "choice_loss": ("to choose", ".3f", 1),
    "report_loss": ("reported", ".3f", 1),
    "best_valid_loss": ("best", ".3f", 1),
    "best_step": ("at step", "d", 1),
    "compile_seconds": ("compile s", ".1f", 1),
    "step_seconds": ("step ms", ".1f", 1e3),
    "temp_bytes": ("temp MiB", ".0f", 2**-20),
}
"""Columns of the table of cells: heading, format and factor of each."""
WORDS = {"recipe", "status", "message"}


def _table(rows: Sequence[Json], columns: Sequence[str]) -> str:
    heading = {name: COLUMNS.get(name, (name.replace("_", " "), "", 1)) for name in columns}
    return page.table(rows, heading, WORDS)


def _environment(results: Results) -> str:
    base, data = results.base, results.base["data"]
    facts = {
        "device": base["device"],
        **base["versions"],
        "data": f"{data['name']}; {data['size']}; sha256 {data['sha256']}",
        "entropy": f"unigram {data['unigram']:.3f} nats"
        + ("" if data["bigram"] is None else f", bigram {data['bigram']:.3f} nats"),
        **{name.replace("_", " "): value for name, value in base["setting"].items()},
    }
    return page.environment(facts, [entry["command"] for entry in base.get("commands", [])])
