"""Figures in a notebook: a picture, and with it the numbers that it shows, so that a test can compare them."""

import base64
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import vl_convert

from . import chart
from .store import Json

DIGITS = 4
"""Significant digits of the numbers beside a picture."""


def show(figure: alt.TopLevelMixin, *, raster: bool = False) -> None:
    """Show a chart as a picture, with its numbers in the output's metadata.

    Args:
        figure: the chart.
        raster: whether the picture is a PNG, which is smaller where there are thousands of cells.
    """
    from IPython.display import display  # only a notebook has it

    spec = figure.to_dict(validate=False)
    svg = vl_convert.vegalite_to_svg({**spec, "config": {**chart.theme(), "aria": False}})
    picture = {"image/svg+xml": svg}
    if raster:
        picture = {"image/png": base64.b64encode(compressed(vl_convert.svg_to_png(svg))).decode()}
    numbers = [{name: _column([row.get(name) for row in rows]) for name in rows[0]} for rows in _tables(spec)]
    display({**picture, "text/plain": "<figure>"}, raw=True, metadata={"numbers": numbers})


def compressed(png: bytes) -> bytes:
    """A PNG with its pixels packed as tightly as zlib can, which the renderer does not do."""
    chunks, place = [], 8
    while place < len(png):
        (size,) = struct.unpack_from(">I", png, place)
        chunks.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + size]))
        place += size + 12
    pixels = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    packed = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    packed.insert(-1, (b"IDAT", zlib.compress(pixels, 9)))
    return png[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in packed
    )


def _tables(part: Any) -> Iterator[list[Json]]:
    """Every table of rows in a chart."""
    if isinstance(part, dict):
        for name, inner in part.items():
            if name == "datasets":
                yield from inner.values()
            elif name == "values" and isinstance(inner, list) and inner and isinstance(inner[0], dict):
                yield inner
            else:
                yield from _tables(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _tables(inner)


def _column(values: Sequence[Any]) -> str:
    """Numbers in a row; words with how often they stand there in a row."""
    if all(isinstance(value, (int, float)) for value in values):
        return " ".join(f"{value:.{DIGITS}g}" for value in values)
    return ", ".join(f"{value} {len(list(same))}x" for value, same in itertools.groupby(values))
