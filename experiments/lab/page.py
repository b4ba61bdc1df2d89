"""One page that opens from disk with no network: a title, words, tables and charts that can be hovered."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from experiments.lab import chart
from experiments.lab.finding import Prediction
from experiments.lab.store import write

HERE = Path(__file__).parent


def write_page(
    path: Path,
    *,
    title: str,
    under: str,
    predictions: Sequence[Prediction],
    charts: Mapping[str, tuple[alt.TopLevelMixin, str]],
) -> Path:
    """Write the page.

    Args:
        path: of the file.
        title: of the page.
        under: a line below it.
        predictions: stated beforehand, with what came of them.
        charts: by section, each with a caption.

    Returns:
        The path.
    """
    specs = {f"chart{i}": made.to_dict(validate=False) for i, (made, _) in enumerate(charts.values())}
    specs = {name: {k: v for k, v in spec.items() if k not in ("$schema", "config")} for name, spec in specs.items()}
    sections = "".join(
        f'<h2>{html.escape(name)}</h2><figure><div class="chart" id="chart{i}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for i, (name, (_, caption)) in enumerate(charts.items())
    )
    themes = {"light": {**chart.theme(), "background": "transparent"}, "dark": chart.theme(dark=True)}
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    write(
        path,
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{(HERE / "report.css").read_text()}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<p class="under">{html.escape(under)}</p>
{_verdicts(predictions)}
{sections}
</main>
{_data("specs", specs)}
{_data("themes", themes)}
<script>{bundle}</script>
<script>{(HERE / "report.js").read_text()}</script>
</body>
</html>
""",
    )
    return path


def _verdicts(predictions: Sequence[Prediction]) -> str:
    rows = "".join(
        f"<tr><td class='word'>{html.escape(p.claim)}</td><td>{html.escape(str(p.found))}</td>"
        f"<td class='word'>{p.relation} {p.threshold:g}</td><td class='word'>{p.verdict}</td></tr>"
        for p in predictions
    )
    heads = "".join(f"<th class='word'>{head}</th>" for head in ("stated beforehand", "found", "must be", "verdict"))
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _data(name: str, value: Any) -> str:
    text = json.dumps(value).replace("</", "<\\/")
    return f'<script type="application/json" id="{name}">{text}</script>'
