"""Checks at the library's doors: a mistake is a `ValueError` where it can be seen, and NaN where it is traced."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stackjax.sequence import gathered
from stackjax.tensor_parallel import by_replica


def known(x: Any) -> np.ndarray | None:
    """The values of an array, or None where they cannot be seen: inside a transformation, or on other hosts."""
    if isinstance(x, Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


def shown(value: Any) -> str:
    """A value as an error names it."""
    if isinstance(value, type):
        return f"the class {value.__name__}; make one of it: {value.__name__}(...)"
    if isinstance(value, str):
        return f"the string {value!r}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = re.sub(r"\s+", " ", repr(value))
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def instance(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another type.

    Args:
        name: of the argument.
        value: what was given.
        kind: the type that it must have.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(value, kind):
        advice = "; names are understood at the command line alone" if isinstance(value, str) else ""
        raise ValueError(f"{name} must be an instance of {kind.__name__}; got {shown(value)}{advice}")


def hashable(name: str, value: Any) -> None:
    """Refuse a description with a field that cannot be hashed, such as a list or an array.

    Raises:
        ValueError: there is one.
    """
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be hashable, as jit takes it for static: numbers, words, tuples and functions in its fields; "
            f"{error}"
        ) from error


def positive(described: Any, *names: str) -> None:
    """Refuse a description with numbers of 0 or below; None is none.

    Args:
        described: the description.
        *names: of its fields.

    Raises:
        ValueError: a number that is not positive.
    """
    for name in names:
        number = getattr(described, name)
        if number is not None and not number > 0:
            raise ValueError(f"{type(described).__name__}: {name} must be positive; got {number}")


def nearest_divisors(size: int, wanted: int) -> str:
    """The divisors of a size next below and above what was wanted, as an error advises them."""
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    divisors = sorted({*small, *(size // n for n in small)})
    below = max(n for n in divisors if n <= wanted)
    above = min((n for n in divisors if n > wanted), default=below)
    return " or ".join(map(str, dict.fromkeys((below, above))))


def rate(described: Any, *names: str) -> None:
    """Refuse a description with dropout rates outside of [0, 1).

    Args:
        described: the description.
        *names: of its fields.

    Raises:
        ValueError: such a rate.
    """
    for name in names:
        value = getattr(described, name)
        if not 0 <= value < 1:
            raise ValueError(f"{type(described).__name__}: {name} must be at least 0 and below 1; got {value}")


def integers(name: str, value: Any) -> None:
    """Refuse what is not an array of integers with at least one axis.

    Raises:
        ValueError: something else.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or not value.ndim:
        raise ValueError(f"{name} must be an array (..., T) of integers; got {shown(value)}")


def first_axis(name: str, tree: Any, length: int) -> None:
    """Refuse arrays whose first axis has another length.

    Raises:
        ValueError: one has.
    """
    for leaf in jax.tree.leaves(tree):
        if jnp.shape(leaf)[:1] != (length,):
            raise ValueError(f"{name} must have a first axis of length {length}; got the shape {jnp.shape(leaf)}")


def ids(name: str, values: jax.Array, size: int, *, least: int = 0) -> None:
    """Refuse integers outside a range, where they are known; `rows` makes NaN of them where they are not.

    Args:
        name: what they are.
        values: integers.
        size: one more than the largest.
        least: the smallest.

    Raises:
        ValueError: one is outside.
    """
    numbers = known(values)
    if numbers is not None and numbers.size and not least <= numbers.min() <= numbers.max() < size:
        raise ValueError(f"{name} must be {least} .. {size - 1}; got {numbers.min()} .. {numbers.max()}")


def rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """The rows of a table (N, D) at an index (...), (..., D); NaN where the index is outside 0 .. N - 1."""
    return by_replica(gathered(table, -1).at[index].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False))
