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

from stackjax.parameter import Declared, is_spec

if TYPE_CHECKING:
    from stackjax.abstract_model import AbstractModel

MANY = 8
"""Lines of one kind that are printed before the rest is counted instead."""


class Description:
    """Base of the frozen descriptions: `repr` leaves out what is at its default."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # dataclass() writes its own __repr__ unless the class itself holds one.
        cls.__repr__ = cls.__repr__

    def __repr__(self) -> str:
        changed = [f"{name}={_value(value)}" for name, value, usual in _fields(self) if not usual]
        return f"{type(self).__name__}({', '.join(changed)})"


def field_lines(description: Any) -> list[list[str]]:
    """The lines of each field's value."""
    return [repr(value).splitlines() for _, value, _ in _fields(description)]


def _fields(description: Any) -> list[tuple[str, Any, bool]]:
    """Name and value of each field, and whether it is at its default."""
    found = []
    for field in dataclasses.fields(description):
        value = getattr(description, field.name)
        found.append((field.name, value, field.default is not dataclasses.MISSING and value == field.default))
    return found


def _value(value: Any) -> str:
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)


def segment_lines(segment: Any) -> list[str]:
    """One line for each run of equal layers in a segment's pattern."""
    runs = [(layer, len(list(run))) for layer, run in itertools.groupby(segment.layers)]
    note = " sharing one copy of the parameters" if segment.looped else ""
    if len(runs) == 1:
        return [f"{segment.depth} x {_sublayers(runs[0][0])}{note}"]
    return [f"{segment.n} x{note}", *shortened([f"  {n} x {_sublayers(layer)}" for layer, n in runs])]


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
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        return f"<table>{row(self.header, 'th')}{''.join(row(cells, 'td') for cells in self.rows)}</table>"


def table(model: "AbstractModel", params: Any = None) -> Table:
    """The parameters of a model or a stack, a row for each role.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters; if given, a column shows their standard deviation.

    Returns:
        A `Table`: how many, the stored shapes, the initialiser with the recipe's gain on it, the recipe's factors on
        learning rate, weight decay and epsilon.
    """
    declared = jax.tree.leaves(model.declaration(), is_leaf=is_spec)
    factors = jax.tree.leaves(model.multipliers(), is_leaf=lambda x: hasattr(x, "learning_rate"))
    values = [None] * len(declared) if params is None else jax.tree.leaves(params)
    stacks = {stack.recipe: stack for stack in model.stacks().values()}
    (stack, *_) = stacks.values()
    groups: dict[tuple[str, str], list[tuple[Declared, Any, Any]]] = {}
    for d, factor, value in zip(declared, factors, values, strict=True):
        init = _value(d.spec.init or stack.recipe.default_init)
        init = re.sub(r"\d+\.\d{5,}", lambda match: number(float(match[0])), init)
        groups.setdefault((d.spec.role, init), []).append((d, factor, value))
    rows = []
    for (role, init), group in groups.items():
        gain = number(stack.gain(role))
        shapes = dict.fromkeys("x".join(map(str, d.shape)) or "1" for d, _, _ in group)
        row = [
            role,
            f"{sum(math.prod(d.shape) for d, _, _ in group):,}",
            ", ".join(shortened(list(shapes))),
            init if gain in ("1", "") else f"{gain} {init}",
            *(number(getattr(group[0][1], name)) for name in ("learning_rate", "weight_decay", "eps")),
        ]
        if params is not None:
            row.append(f"{jnp.std(jnp.concatenate([jnp.ravel(v) for _, _, v in group])):.3g}")
        rows.append(tuple(row))
    header = ("role", "parameters", "shapes", "init", "learning rate x", "weight decay x", "epsilon x")
    return Table(header=header if params is None else (*header, "std"), rows=tuple(rows))


def number(value: Any) -> str:
    """A factor, or the range of an array of them."""
    numbers = jnp.ravel(jnp.asarray(value))
    if not numbers.size:
        return ""
    low, high = float(numbers.min()), float(numbers.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"
