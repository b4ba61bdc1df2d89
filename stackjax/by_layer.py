"""Numbers by layer: fields in which the layers of one scan may differ, since only numbers follow from them.

A description names them (`Description.numbers`). Layers that are equal up to these are one program: the scan hands each
layer its own as `SideInputs.numbers`, nested like the fields. `None`, a number without a bound, is `LARGEST` there.
A few unlike layers stay apart, each with its numbers in the program (`segment.MANY`). A window for each layer:

    >>> import stackjax as sj
    >>> windows = [sj.Attention(n_heads=2, window=2 + i) for i in range(32)]
    >>> layers = [sj.Layer(sublayers=(attention, sj.FeedForward())) for attention in windows]
    >>> stack = sj.Stack.of(*layers, depth=32, d_model=16, recipe=sj.recipe.PreNorm())
    >>> [(segment.n, len(segment.layers)) for segment in stack.segments]
    [(32, 1)]
"""

from collections.abc import Hashable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.description import Description, field_values

Numbers = dict[str, Any]
"""{field: a number, or the `Numbers` of the description, or {name: `Numbers`} of the sublayers, that it holds}."""

LARGEST = 2**30
"""The number in place of None: no index is as large, and two can be added in 32 bits."""


def numbers_of(value: Any) -> Any:
    """The `Numbers` of a description or of a tuple of sublayers; any other value is a number itself."""
    if isinstance(value, tuple):
        return {one.name: numbers_of(one) for one in value}
    if not isinstance(value, Description):
        return value
    return {name: numbers_of(getattr(value, name)) for name in _declared(value)}


def without_numbers(value: Any) -> Hashable:
    """All of a description but its numbers: equal for two that are one program."""
    if isinstance(value, tuple):
        return tuple(map(without_numbers, value))
    if not isinstance(value, Description):
        return None
    declared = _declared(value)
    fields = [(name, without_numbers(one) if name in declared else one) for name, one, _ in field_values(value)]
    return type(value), tuple(fields)


def with_numbers(value: Any, numbers: Any) -> Any:
    """A description, or a tuple of sublayers, with other numbers.

    Args:
        value: the description, or a number that is replaced.
        numbers: some of its `Numbers`.
    """
    if isinstance(value, tuple):
        return tuple(with_numbers(one, numbers.get(one.name, {})) for one in value)
    if not (isinstance(value, Description) and is_dataclass(value)):
        return numbers
    return replace(value, **{name: with_numbers(getattr(value, name), new) for name, new in numbers.items()})


def unlike(each: Sequence[Numbers]) -> Numbers:
    """The numbers that are not the same in all layers, as tuples with one for each layer."""
    columns: Numbers = {}
    for name, first in each[0].items():
        column = [numbers[name] for numbers in each]
        if isinstance(first, dict):
            columns |= {name: inner} if (inner := unlike(column)) else {}
        elif len(set(column)) > 1:
            columns[name] = tuple(column)
    return columns


def largest(columns: Numbers) -> Numbers:
    """The largest of each number, for what must hold every layer's, such as a cache; None if one has no bound."""
    return _by_column(lambda column: None if None in column else max(column), columns)


def arrays(columns: Numbers) -> Numbers:
    """Each number as an array over the layers."""
    return _by_column(lambda column: jnp.asarray([LARGEST if one is None else one for one in column]), columns)


def _by_column(change: Any, columns: Numbers) -> Numbers:
    return jax.tree.map(change, columns, is_leaf=lambda value: isinstance(value, tuple))


def _declared(description: Description) -> tuple[str, ...]:
    """The fields that a description's own class names; what a subclass does with them is not known."""
    return description.numbers if "numbers" in vars(type(description)) else ()
