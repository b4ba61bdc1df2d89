"""Checks at the library's doors: a mistake is a `ValueError` where it can be seen, and NaN where it is traced."""

import difflib
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
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


def whole(**sizes: Any) -> None:
    """Refuse sizes that are no integers.

    Args:
        **sizes: by name.

    Raises:
        ValueError: there is one.
    """
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise ValueError(f"{name} must be an integer; got {shown(size)}")


def numbers_by_row(name: str, value: Any, rows: tuple[int, ...]) -> None:
    """Refuse what is not one number for all, (), or an array with one for each row, (..., 1).

    Args:
        name: of the argument.
        value: what was given.
        rows: the shape of the rows.

    Raises:
        ValueError: something else.
    """
    dtype, shape, wide = getattr(value, "dtype", None), getattr(value, "shape", ()), (*rows, 1)
    plain = isinstance(value, Real) and not isinstance(value, bool)
    real = plain if dtype is None else jnp.issubdtype(dtype, jnp.number)
    fits = len(shape) <= len(wide) and all(n in (1, m) for n, m in zip(shape[::-1], wide[::-1], strict=False))
    if not (real and fits):
        each = f", or one for each row {wide}" if rows else ""
        raise ValueError(f"{name} must be one number{each}; got {shown(value)}")


def boolean(name: str, mask: jax.Array) -> jax.Array:
    """The mask, if it is one of booleans, not of numbers that are elsewhere added to logits.

    Raises:
        ValueError: an array of anything but booleans.
    """
    if mask.dtype != bool:
        raise ValueError(f"{name} must be booleans, True where a query may look; got {shown(mask)}")
    return mask


def floating(name: str, dtype: Any) -> None:
    """Refuse a dtype in which a stream or a parameter would be rounded to whole numbers, or be complex.

    Raises:
        ValueError: no real floating-point dtype.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be of a floating-point dtype, such as bfloat16; got {jnp.dtype(dtype)}")


def prng_key(key: Any) -> jax.Array:
    """The key, if it is one PRNG key, of either kind that JAX has.

    Raises:
        ValueError: something else, or an array of keys.
    """
    dtype, n_axes = getattr(key, "dtype", None), getattr(key, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (n_axes == 0 if typed else n_axes == 1 and dtype == jnp.uint32):
        raise ValueError(f"key must be one PRNG key, as jax.random.key(0) makes it; got {shown(key)}")
    return key


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


INTEGER_POSITIONS = frozenset({"index", "segment", "path"})
"""The positions of tokens that are integers; an encoding of your own may read others."""


def checked_positions(name: str, position: Any, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """The places of tokens as arrays, integers of 32 bits or more: differences of unsigned or narrow ones would wrap.

    Args:
        name: of the argument.
        position: index (..., T), and perhaps others that begin with the same axes.
        shape: of the tokens, (..., T); one position, (T,) or (1, .., T), may serve all leading axes.

    Raises:
        ValueError: no dict of arrays with an index; entries of other shapes, or misspelt; an index, a segment or a
            path that holds no integers; an index below -1.
    """
    if not isinstance(position, Mapping) or "index" not in position:
        got = f"a dict of {sorted(position)}" if isinstance(position, Mapping) else shown(position)
        raise ValueError(f"{name} must be a dict with the entry 'index' (..., T), and perhaps others; got {got}")
    for entry in position.keys() - INTEGER_POSITIONS:
        if meant := difflib.get_close_matches(str(entry), INTEGER_POSITIONS, 1, 0.75):
            raise ValueError(f"{name} has an entry {entry!r}, which nothing reads; is {meant[0]!r} meant?")
    position = {entry: x if isinstance(x, jax.Array) else np.asarray(x) for entry, x in position.items()}
    shapes = {entry: jnp.shape(x) for entry, x in position.items()}
    index = shapes["index"]
    fits = index == tuple(shape) or (index[-1:] == shape[-1:] and math.prod(index[:-1]) == 1)
    if not fits or any(other[: len(index)] != index for other in shapes.values()):
        raise ValueError(
            f"every entry of {name} must begin with the axes of the tokens, {tuple(shape)} or {tuple(shape[-1:])} for "
            f"all alike; got {shapes}"
        )
    for entry in INTEGER_POSITIONS & position.keys():
        if not jnp.issubdtype(position[entry].dtype, jnp.integer):
            raise ValueError(f"{name}[{entry!r}] must be integers; got {shown(position[entry])}")
        if position[entry].dtype not in (jnp.int32, jnp.int64):
            position[entry] = position[entry].astype(jnp.int32)
    numbers = known(position["index"])
    if numbers is not None and numbers.size and numbers.min() < -1:
        raise ValueError(f"{name}['index'] must be 0 or more, or -1 for padding; got {numbers.min()}")
    if len(index) > len(shape):
        position = {entry: x.reshape(shape[-1:] + x.shape[len(index) :]) for entry, x in position.items()}
    return position


def rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """The rows of a table (N, D) at an index (...), (..., D); NaN where the index is outside 0 .. N - 1."""
    table = gathered(jnp.asarray(table), -1)
    return by_replica(table.at[index].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False))
