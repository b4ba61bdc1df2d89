"""The report of a run: one HTML file that needs no network, and its charts as SVG and PNG."""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from experiments.lab import chart, headline, layer_chart
from experiments.lab.results import Results
from experiments.lab.store import Json, write

HERE = Path(__file__).parent
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
            chart.final_loss,
            "Final validation loss of each recipe at its own best learning rate. Small dots are seeds. A triangle says "
            "that the best rate is the lowest or highest of those tried, so a wider grid may do better. Dashed lines: "
            "entropy of the validation data's single bytes or tokens (what one learns by counting them) and of each "
            "given the one before.",
        ),
    ),
    "Loss while training": (
        Figure(
            charts={
                "steps": ("loss_against_steps", chart.loss_against_steps),
                "tokens": ("loss_against_tokens", chart.loss_against_tokens),
                "FLOPs": ("loss_against_flops", chart.loss_against_flops),
            },
            caption="Each at its best learning rate. Lines: training loss, the mean of ten steps; dots: validation "
            "loss. FLOPs are those of the model's matrix products, forward and backward, nothing recomputed.",
        ),
    ),
    "Learning rate and depth": (
        one(
            "learning_rates",
            chart.learning_rates,
            "Final validation loss, averaged over seeds; the best rate at each depth is outlined. A recipe whose best "
            "rate stays in place as depth grows can be tuned on a shallow model.",
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
            chart.cost,
            "Compile time is that of a group of lanes (learning rates and seeds) and is missing where programs came "
            "from the cache; the time of a step is the group's, divided by its lanes; memory is XLA's own count of "
            "temporary bytes in a training chunk.",
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
        _export(results.folder.path / "figures", name, spec)
    path = results.folder.path / "report.html"
    write(path, _page(results, specs, "".join(sections)))
    return path


def _figure(figure: Figure, results: Results, specs: dict[str, Json]) -> str:
    tabs, charts = [], []
    for tab, (name, make) in figure.charts.items():
        made = make(results)
        if made is not None:
            spec = made.to_dict(validate=False)
            specs[name] = {key: part for key, part in spec.items() if key not in ("$schema", "config")}
            tabs.append(f'<button type="button">{html.escape(tab)}</button>')
            charts.append(f'<div class="chart" id="{name}"></div>')
    if not charts:
        return ""
    row = f'<div class="tabs">{"".join(tabs)}</div>' if len(tabs) > 1 else ""
    return f"<figure>{row}{''.join(charts)}<figcaption>{html.escape(figure.caption)}</figcaption></figure>"


def _export(folder: Path, name: str, spec: Json) -> None:
    svg = vl_convert.vegalite_to_svg({**spec, "config": chart.theme()})
    write(folder / f"{name}.svg", svg)
    write(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))


def _page(results: Results, specs: dict[str, Json], sections: str) -> str:
    def data(name: str, value: Any) -> str:
        text = json.dumps(value).replace("</", "<\\/")
        return f'<script type="application/json" id="{name}">{text}</script>'

    sweep, setting = results.base["data"], results.base["setting"]
    under = (
        f"{sweep['name']}, {sweep['train_tokens']:,} training tokens · D = {setting['d_model']}, "
        f"T = {setting['context']}, B = {setting['batch']} · {setting['steps']} steps of {setting['optimizer']}"
    )
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    themes = {"light": {**chart.theme(), "background": "transparent"}, "dark": chart.theme(dark=True)}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Depth sweep</title>
<style>{(HERE / "report.css").read_text()}</style>
</head>
<body>
<main>
<h1>Depth sweep</h1>
<p class="under">{html.escape(under)}</p>
<ul class="headline">{"".join(f"<li>{html.escape(line)}</li>" for line in headline.sentences(results))}</ul>
<p class="note">{html.escape(headline.rule(results))}</p>
{sections}
<h2>Divergence and failure</h2>
{_failures(results)}
<h2>All cells</h2>
{_cells(results)}
<h2>Environment</h2>
{_environment(results)}
</main>
{data("specs", specs)}
{data("themes", themes)}
<script>{bundle}</script>
<script>{(HERE / "report.js").read_text()}</script>
</body>
</html>
"""


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
    "best_valid_loss": ("best", ".3f", 1),
    "best_step": ("at step", "d", 1),
    "compile_seconds": ("compile s", ".1f", 1),
    "step_seconds": ("step ms", ".1f", 1e3),
    "temp_bytes": ("temp MiB", ".0f", 2**-20),
}
"""Of the table of cells: heading, format and factor of each."""
WORDS = {"recipe", "status", "message"}


def _table(rows: Sequence[Json], columns: Sequence[str]) -> str:
    heading = {name: COLUMNS.get(name, (name.replace("_", " "), "", 1)) for name in columns}

    def cell(name: str, value: Any) -> str:
        _, form, factor = heading[name]
        kind = ("word " if name in WORDS else "") + ("long" if name == "message" else "")
        kind += f" status-{value}" if name == "status" else ""
        text = "" if value is None else value if isinstance(value, str) else format(factor * value, form)
        raw = html.escape("" if value is None else str(value))
        return f'<td class="{kind.strip()}" data-value="{raw}">{html.escape(text)}</td>'

    heads = "".join(
        f'<th class="sortable{" word" if name in WORDS else ""}">{heading[name][0]}</th>' for name in columns
    )
    body = "".join(f"<tr>{''.join(cell(name, row[name]) for name in columns)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _environment(results: Results) -> str:
    base, data = results.base, results.base["data"]
    facts = {
        "device": base["device"],
        **base["versions"],
        "data": f"{data['name']}; {data['valid_tokens']:,} validation tokens; sha256 {data['sha256']}",
        "entropy": f"unigram {data['unigram']:.3f} nats"
        + ("" if data["bigram"] is None else f", bigram {data['bigram']:.3f} nats"),
        **{name.replace("_", " "): value for name, value in base["setting"].items()},
    }
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    commands = "\n".join(dict.fromkeys(entry["command"] for entry in base.get("commands", [])))
    return f"<pre>{html.escape(commands)}</pre><dl>{rows}</dl>"
