"""Descriptions shown at a prompt and in a notebook.

A description prints the fields that differ from their defaults, and no more; a stack prints one line for each run of
equal layers, however deep it is; the table of parameters has a row for each role.
"""

import dataclasses
import html
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.description import field_values, shown_value
from stackjax.parameter import Declared, is_spec, path_name

if TYPE_CHECKING:
    from stackjax.abstract_model import AbstractModel

MANY = 8
"""Lines of one kind that are printed before the rest is counted instead."""

BARS = "▁▂▃▄▅▆▇█"

MOST_BARS = 32
"""Bars in one row of text."""


def field_lines(description: Any) -> list[list[str]]:
    """The lines of each field's value."""
    return [repr(value).splitlines() for _, value, _ in field_values(description)]


def segment_lines(segment: Any) -> list[str]:
    """One line for each run of equal layers in a segment's pattern, or in all of it where their numbers differ."""
    runs = [(layer, len(list(run))) for layer, run in itertools.groupby(segment.unlike or segment.layers)]
    note = " sharing one copy of the parameters" if segment.looped else ""
    if len(runs) == 1:
        return [f"{segment.depth} x {_sublayers(runs[0][0])}{note}"]
    head = f"{segment.depth} layers as one program" if segment.unlike else f"{segment.n} x{note}"
    return [head, *shortened([f"  {n} x {_sublayers(layer)}" for layer, n in runs])]


def _sublayers(layer: Any) -> str:
    return " -> ".join(map(repr, layer.sublayers))


def stack_lines(stack: Any) -> list[str]:
    """One line for each run of equal layers in a stack."""
    blocks = shortened(["\n".join(segment_lines(segment)) for segment in stack.segments])
    return "\n".join(blocks).splitlines()


def shortened(lines: Sequence[str]) -> list[str]:
    """The lines, or the first and last few with a count of those between."""
    if len(lines) <= MANY:
        return list(lines)
    half = MANY // 2
    return [*lines[:half], f"... {len(lines) - 2 * half} more", *lines[-half:]]


def block(title: str, lines: Iterable[str]) -> str:
    """A title with indented lines below it."""
    return "\n".join([title, *("  " + line for line in lines)])


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Args:
        header: names of the columns.
        rows: one tuple of cells each.
        title: text above both.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            [*self.title.splitlines(), *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)]
        )

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        title = f"<pre>{html.escape(self.title)}</pre>" if self.title else ""
        return f"{title}<table>{row(self.header, 'th')}{''.join(row(cells, 'td') for cells in self.rows)}</table>"


def table(model: "AbstractModel", params: Any = None) -> Table:
    """The parameters of a model or a stack, a row for each role.

    Args:
        model: a stack, a model or an encoder-decoder, whose sides have rows of their own.
        params: its parameters; if given, a column shows their standard deviation.

    Returns:
        A `Table`: how many, the stored shapes, the initialiser with the recipe's gain on it, the recipe's factors on
        learning rate, weight decay and epsilon.
    """
    placed = jax.tree_util.tree_leaves_with_path(model.declaration(), is_leaf=is_spec)
    stacks = jax.tree.leaves(model.drawn_by())
    factors = jax.tree.leaves(model.multipliers(), is_leaf=lambda x: hasattr(x, "learning_rate"))
    values = [None] * len(placed) if params is None else jax.tree.leaves(model.checked(params))
    several = len(model.stacks()) > 1
    groups: dict[tuple[str, ...], list[tuple[Declared, Any]]] = {}
    for (path, declared), stack, factor, value in zip(placed, stacks, factors, values, strict=True):
        spec = declared.spec
        init = shown_value(spec.init or stack.recipe.default_init)
        init = re.sub(r"\d+\.\d{5,}", lambda match: number(float(match[0])), init)
        gain = number(stack.gain(spec.role))
        key = (
            *((path[0].key,) if several else ()),
            spec.role,
            init if gain in ("1", "") else f"{gain} {init}",
            *(number(getattr(factor, name)) for name in ("learning_rate", "weight_decay", "eps")),
        )
        groups.setdefault(key, []).append((declared, value))
    rows = []
    for (*names, init, learning_rate, weight_decay, eps), group in groups.items():
        total = f"{sum(math.prod(declared.shape) for declared, _ in group):,}"
        shapes = dict.fromkeys("x".join(map(str, declared.shape)) or "1" for declared, _ in group)
        row = [*names, total, ", ".join(shortened(list(shapes))), init, learning_rate, weight_decay, eps]
        if params is not None:
            row.append(f"{jnp.std(jnp.concatenate([jnp.ravel(value) for _, value in group])):.3g}")
        rows.append(tuple(row))
    header = ("role", "parameters", "shapes", "init", "learning rate x", "weight decay x", "epsilon x")
    header = (*(("part",) if several else ()), *header, *(() if params is None else ("std",)))
    return Table(header=header, rows=tuple(rows))


def parameters(model: "AbstractModel", params: Any) -> Table:
    """Every parameter below the model's description: its shape in one layer, its size, its spread in each layer.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters.

    Returns:
        A `Table` with the standard deviation as a range over the layers, and as a bar for each, up from 0; of many
        layers one bar is the mean of a few neighbours.
    """
    leaves = jax.tree_util.tree_leaves_with_path(model.checked(params))
    rows = []
    for (path, leaf), declared in zip(leaves, jax.tree.leaves(model.declaration(), is_leaf=is_spec), strict=True):
        rows_of = leaf if declared.stacked else leaf[None]
        spread = (
            np.asarray(jnp.std(rows_of.astype(jnp.float32).reshape(len(rows_of), -1), 1)) if leaf.size else np.zeros(0)
        )
        layers = shown_layers(declared.layers)
        shape = " x ".join(map(str, declared.spec.shape)) or "1"
        cells = declared.spec.role, layers, shape, f"{leaf.size:,}", number(spread)
        rows.append((path_name(path), *cells, bars(spread) if declared.stacked else ""))
    header = ("parameter", "role", "layers", "shape", "size", "std", "std by layer")
    return Table(header=header, rows=tuple(rows), title=repr(model))


def shown_layers(layers: tuple[int, ...]) -> str:
    """Indices of layers, those at equal distances as a range."""
    if len(layers) < 3 or len(set(np.diff(layers))) > 1:
        return ", ".join(shortened([str(layer) for layer in layers]))
    step = layers[1] - layers[0]
    return f"{layers[0]} .. {layers[-1]}" + (f" by {step}" if step > 1 else "")


def bars(values: np.ndarray) -> str:
    """Numbers of 0 or more as bars of text, the highest for the largest; ? for what is not finite."""
    groups = [np.mean(group) for group in np.array_split(values, min(len(values), MOST_BARS) or 1) if len(group)]
    top = max((value for value in groups if np.isfinite(value)), default=0) or 1
    return "".join(BARS[round((len(BARS) - 1) * value / top)] if np.isfinite(value) else "?" for value in groups)


def number(value: Any) -> str:
    """A factor, or the range of an array of them."""
    numbers = jnp.ravel(jnp.asarray(value))
    if not numbers.size:
        return ""
    low, high = float(numbers.min()), float(numbers.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"
