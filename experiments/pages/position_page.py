"""The page of a position encoding, and the table of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import jax
import numpy as np

from stackjax import parameter
from stackjax.position import Both, Position

from ..lab import chart, finding
from ..lab.committed import result
from ..lab.position_matrix import D_MODEL, N_HEADS, equation_and_source, panel, reads_trees
from ..lab.store import Json
from . import implementation, readings

NAMES = {
    "NoPosition": "none",
    "Scalar": "scalar",
    "Sinusoidal": "sinusoidal",
    "Learned": "learned",
    "Rotary": "rotary",
    "Shaw": "shaw",
    "TransformerXL": "transformer_xl",
    "T5Bias": "t5",
    "ALiBi": "alibi",
    "FIRE": "fire",
    "TreePath": "tree_path",
    "TreeRotary": "tree_rotary",
    "TreeBias": "tree_bias",
}
"""Names of the pages, those of the command line where it has one, by the names of the gallery."""
REFERENCE = "none"
"""Encoding that every chart of lengths is compared with."""


def pages(encodings: Mapping[str, Position]) -> dict[str, Position]:
    """Encodings by the name of their page; what composes two others has none."""
    return {NAMES[name]: encoding for name, encoding in encodings.items() if not isinstance(encoding, Both)}


def page(name: str, encoding: Position) -> str:
    """The page of the encoding of this name, in Markdown."""
    equation, source = equation_and_source(encoding)
    title = type(encoding).__name__
    on = "the first 24 leaves of a function's syntax tree" if reads_trees(encoding) else "24 tokens"
    return (
        f"# {title}\n\n`{equation}`\n\nSource: {source}\n\n"
        f"`sj.position.{_call(encoding)}`{_word(name, encoding)}. {learned(encoding)}\n\n"
        f"## The lines that are it\n\n```python\n{implementation.of_position(encoding)}\n```\n\n"
        f"Module `{type(encoding).__module__}`.\n\n"
        f"## What it does to attention\n\n![{name}](figures/{name}.svg)\n\n"
        f"Logits of a query (row) and a key (column) of equal content, over {on}; dark is the lowest. What is "
        "learned is drawn at random, so what counts is which entries are equal.\n\n"
        f"## Beyond the trained length\n\n{lengths(name, encoding)}\n\n[All positions](README.md)\n"
    )


def _call(encoding: Position) -> str:
    return f"{type(encoding).__name__}(n_positions=…)" if encoding.limit is not None else f"{type(encoding).__name__}()"


def _word(name: str, encoding: Position) -> str:
    return "" if reads_trees(encoding) else f", or `{name}` where a command asks for a position"


def learned(encoding: Position) -> str:
    """Sentence on how many numbers the encoding learns."""
    width = D_MODEL // N_HEADS
    stream, shared, layer = (
        _count(specs)
        for specs in (
            encoding.stream_spec(D_MODEL),
            encoding.shared(N_HEADS, width),
            encoding.spec(N_HEADS, width),
        )
    )
    parts = [
        f"{n:,} {where}"
        for n, where in ((stream, "at the embedding"), (shared, "shared by all layers"), (layer, "in each layer"))
        if n
    ]
    sizes = f"at width {D_MODEL} with {N_HEADS} heads"
    return f"Learned numbers {sizes}: {', '.join(parts)}." if parts else "Nothing is learned."


def _count(specs: Any) -> int:
    leaves = jax.tree.leaves(specs, is_leaf=parameter.is_spec)
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


def lengths(name: str, encoding: Position) -> str:
    """Table of the losses at and beyond the trained length, and what the data say of trees."""
    if reads_trees(encoding):
        return (
            "Not measured: the [experiment on lengths](../length_extrapolation/finding.md) reads text without trees. "
            "What knowing the tree is worth was measured [on Python and JSON](../tree_positions/finding.md)."
        )
    rows = readings.lengths(_stretched(name))
    setting = result("length_extrapolation")["setting"]
    trained = setting["context"]
    table = []
    for each in dict.fromkeys(row["encoding"] for row in rows):
        by_length = {row["length"] // trained: row for row in rows if row["encoding"] == each}
        cells = {f"{times} T": _interval(by_length.get(times)) for times in (1, 2, 4, 8)}
        table.append({"encoding": each, **cells, "8 T minus T": _rise(by_length)})
    words = (
        f"Trained on windows of T = {trained} bytes, {setting['depth']} layers of width {setting['d_model']}, "
        f"{setting['steps']} steps; loss in nats of the same bytes at every length, 95 % intervals over "
        f"{setting['seeds']} seeds ([all encodings](../length_extrapolation/finding.md))."
    )
    return f"{words}\n\n{finding.table(table)}"


def _stretched(name: str) -> list[str]:
    rows = result("length_extrapolation")["rows"]
    return [each for each in dict.fromkeys(row["encoding"] for row in rows) if each.split(",")[0] == name]


def _interval(row: Json | None) -> str:
    return "undefined" if row is None else f"{row['loss']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _rise(by_length: Mapping[int, Json]) -> str:
    return f"{by_length[8]['loss'] - by_length[1]['loss']:.2f}" if 8 in by_length else "undefined"


def index(shown: Mapping[str, Position]) -> str:
    """The table of all positions."""
    trained = result("length_extrapolation")["setting"]["context"]
    rows = []
    for name, encoding in shown.items():
        by_length = {row["length"] // trained: row for row in readings.lengths([name])}
        tree = reads_trees(encoding)
        rows.append(
            {
                "position": f"[{name}]({name}.md)",
                "equation": f"`{equation_and_source(encoding)[0]}`",
                "at T": "" if tree else f"{by_length[1]['loss']:.2f}",
                "at 8 T, more by": "needs paths" if tree else _rise(by_length),
            }
        )
    return (
        "# Positions\n\nOne page each: equation, source, the lines that are the implementation, what it does to "
        f"attention, and the loss beyond the trained length. In this table: loss in nats at the trained length T = "
        f"{trained}, and how much higher it is at eight times that "
        "([length extrapolation](../length_extrapolation/finding.md)).\n\n"
        f"{finding.table(rows)}\n\nMade by `python -m experiments.pages --out experiments/results`.\n"
    )


def figure_data(name: str, row: Json) -> Json:
    """Numbers of the encoding's figure: its matrix, and its losses by length beside those of the reference."""
    wanted = dict.fromkeys((*_stretched(name), REFERENCE)) if _stretched(name) else {}
    keep = ("encoding", "length", "loss", "low", "high")
    losses = [{field: each[field] for field in keep} for each in readings.lengths(list(wanted))]
    return {"matrix": row["matrix"], "losses": losses}


def figure(name: str, row: Json, numbers: Json) -> alt.TopLevelMixin:
    """The matrix, and beside it the loss at each length."""
    matrix = np.asarray(numbers["matrix"])
    cell = 8 if "words" not in row else 10
    panels: list[Any] = [panel(name, matrix, cell, row.get("words"))]
    if numbers["losses"]:
        panels.append(_curves(name, numbers["losses"]))
    return alt.hconcat(*panels).resolve_scale(color="independent")


def _curves(name: str, losses: Sequence[Json]) -> Any:
    shown = list(dict.fromkeys((name, *(row["encoding"] for row in losses))))
    others = [each for each in shown if each not in (name, REFERENCE)]
    colours = {name: chart.PALETTE[0], **dict(zip(others, chart.PALETTE[1:], strict=False)), REFERENCE: "#b9b9b4"}
    colour = alt.Color("encoding:N", title=None, scale=alt.Scale(domain=list(colours), range=list(colours.values())))
    lengths = sorted({row["length"] for row in losses})
    x = alt.X("length:Q", title="tokens", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=lengths))
    y = alt.Y("loss:Q", title="loss (nats)", scale=alt.Scale(zero=False))
    base = alt.Chart(alt.Data(values=list(losses))).encode(x=x, color=colour)
    bars = base.mark_rule(strokeWidth=2, aria=False).encode(y="low:Q", y2="high:Q")
    line = base.mark_line(point=alt.OverlayMarkDef(size=40), aria=False).encode(y=y)
    return (bars + line).properties(width=260, height=190, title="Beyond the trained length")
