"""Charts: their colours, theme and ticks, and their export as SVG and PNG.

The theme comes from outside a chart, so that a page can turn dark.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import altair as alt
import vl_convert

from .store import Json, write

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#d6a419", "#ff9da6", "#8a8d91")
RAMP = ("#4f7bd0", "#b65fb0", "#f0923c")


def export(folder: Path, name: str, spec: Json) -> None:
    """Write a chart as SVG and PNG, on light paper."""
    svg = vl_convert.vegalite_to_svg({**spec, "config": theme()})
    write(folder / f"{name}.svg", svg)
    write(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))


def theme(*, dark: bool = False) -> Json:
    """Vega-Lite's `config` for light or dark paper."""
    ink, quiet, line = ("#e6e6e3", "#a3a39e", "#3a3a38") if dark else ("#22221f", "#6b6b66", "#e4e4df")
    font = "Inter, Helvetica Neue, Helvetica, Arial, sans-serif"
    words = {"labelColor": quiet, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "background": "transparent" if dark else "white",
        "font": font,
        "view": {"stroke": None},
        "axis": {**words, "gridColor": line, "domainColor": quiet, "tickColor": quiet, "titlePadding": 8},
        "legend": {
            **words,
            "orient": "top",
            "direction": "horizontal",
            "symbolOpacity": 1,
            "symbolBaseFillColor": quiet,
            "symbolBaseStrokeColor": quiet,
            "layout": {"top": {"margin": 28}},
        },
        "header": {"labelColor": ink, "titleColor": quiet, "labelFontSize": 13, "labelFontWeight": 600},
        "title": {"color": ink, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "text": {"color": quiet, "fontSize": 12},
        "rule": {"color": quiet},
    }


def ramp(field: str, values: Iterable[float]) -> alt.Color:
    """Colours in order for a field with these values, all of them visible on light and on dark paper."""
    ordered = sorted(set(values))
    return alt.Color(f"{field}:O", title=field, scale=alt.Scale(domain=ordered, range=_between(RAMP, len(ordered))))


def _between(stops: Sequence[str], n: int) -> list[str]:
    """`n` colours along a line through the stops."""
    colors = []
    for i in range(n):
        place = (len(stops) - 1) * (i / (n - 1) if n > 1 else 1.0)
        left = min(int(place), len(stops) - 2)
        pairs = ((int(stops[left][j : j + 2], 16), int(stops[left + 1][j : j + 2], 16)) for j in (1, 3, 5))
        colors.append("#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs))
    return colors


def decades(values: Iterable[float]) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, and where they are few their doubles and halves."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    return powers if high / low > 30 else [m * power for power in powers for m in (1, 2, 5)]
