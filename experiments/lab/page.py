"""An HTML page that needs no network: text, figures that turn dark with the reader's screen, tables that sort."""

import html
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from . import chart
from .finding import Prediction
from .store import Json, write

HERE = Path(__file__).parent


def figure(charts: dict[str, tuple[str, alt.TopLevelMixin]], caption: str, specs: dict[str, Json]) -> str:
    """A figure of the page.

    Args:
        charts: {tab: (name, chart)}; one chart needs no tab.
        caption: what to look for.
        specs: the page's charts by name; these are added.

    Returns:
        Its HTML, with places where the charts will be drawn.
    """
    for name, made in charts.values():
        spec = made.to_dict(validate=False)
        specs[name] = {key: part for key, part in spec.items() if key not in ("$schema", "config")}
    tabs = "".join(f'<button type="button">{html.escape(tab)}</button>' for tab in charts)
    row = f'<div class="tabs">{tabs}</div>' if len(charts) > 1 else ""
    places = "".join(f'<div class="chart" id="{name}"></div>' for name, _ in charts.values())
    return f"<figure>{row}{places}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(rows: Sequence[Json], columns: dict[str, tuple[str, str, float]], words: Collection[str] = ()) -> str:
    """Rows under headings that sort.

    Args:
        rows: by column.
        columns: heading, format and factor of each.
        words: columns that hold text.
    """

    def cell(name: str, value: Any) -> str:
        _, form, factor = columns[name]
        kind = ("word " if name in words else "") + ("long" if name == "message" else "")
        kind += f" status-{html.escape(str(value))}" if name == "status" else ""
        text = "" if value is None else value if isinstance(value, str) else format(factor * value, form)
        raw = html.escape("" if value is None else str(value))
        return f'<td class="{kind.strip()}" data-value="{raw}">{html.escape(text)}</td>'

    heads = "".join(
        f'<th class="sortable{" word" if name in words else ""}">{html.escape(heading)}</th>'
        for name, (heading, _, _) in columns.items()
    )
    body = "".join(f"<tr>{''.join(cell(name, row[name]) for name in columns)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def environment(facts: dict[str, Any], commands: Sequence[str]) -> str:
    """Section on the environment in which the numbers were made."""
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    return f"<pre>{html.escape(chr(10).join(dict.fromkeys(commands)))}</pre><dl>{rows}</dl>"


def document(*, title: str, under: str, headline: Sequence[str], body: str, specs: dict[str, Json]) -> str:
    """The whole page.

    Args:
        title: of the page.
        under: what stands below it.
        headline: what was found, in sentences.
        body: HTML.
        specs: the charts by name.
    """

    def data(name: str, value: Any) -> str:
        text = json.dumps(value).replace("<", "\\u003c")
        return f'<script type="application/json" id="{name}">{text}</script>'

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    themes = {"light": {**chart.theme(), "background": "transparent"}, "dark": chart.theme(dark=True)}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{(HERE / "page.css").read_text()}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<p class="under">{html.escape(under)}</p>
<ul class="headline">{"".join(f"<li>{html.escape(line)}</li>" for line in headline)}</ul>
{body}
</main>
{data("specs", specs)}
{data("themes", themes)}
<script>{bundle}</script>
<script>{(HERE / "page.js").read_text()}</script>
</body>
</html>
"""


def write_page(
    path: Path,
    *,
    title: str,
    under: str,
    predictions: Sequence[Prediction],
    charts: Mapping[str, tuple[alt.TopLevelMixin, str]],
) -> Path:
    """Write a page of verdicts and charts.

    Args:
        path: of the file.
        title: of the page.
        under: a line below it.
        predictions: stated beforehand, with what came of them.
        charts: by section, each with a caption.

    Returns:
        The path.
    """
    specs: dict[str, Json] = {}
    sections = "".join(
        f"<h2>{html.escape(name)}</h2>{figure({'': (f'chart{i}', made)}, caption, specs)}"
        for i, (name, (made, caption)) in enumerate(charts.items())
    )
    write(path, document(title=title, under=under, headline=(), body=_verdicts(predictions) + sections, specs=specs))
    return path


def _verdicts(predictions: Sequence[Prediction]) -> str:
    rows = "".join(
        f"<tr><td class='word'>{html.escape(p.claim)}</td><td>{html.escape(str(p.found))}</td>"
        f"<td class='word'>{p.relation} {p.threshold:g}</td><td class='word'>{p.verdict}</td></tr>"
        for p in predictions
    )
    heads = "".join(f"<th class='word'>{head}</th>" for head in ("stated beforehand", "found", "must be", "verdict"))
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
