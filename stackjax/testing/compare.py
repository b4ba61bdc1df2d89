"""Comparing trees of arrays, and moving parameters to where a comparison means something."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from stackjax.parameter import path_name


def perturbed(params: Any, *, key: int = 99, size: float = 0.1) -> Any:
    """Parameters moved away from their initial values, where gates are zero and anything agrees with anything.

    Args:
        params: any tree of arrays.
        key: seed of the noise.
        size: its standard deviation.
    """
    random = np.random.default_rng(key)

    def moved(x: Any) -> jax.Array:
        return x + (size * random.standard_normal(x.shape)).astype(x.dtype)

    return jax.tree.map(moved, params)


def differences(a: Any, b: Any) -> dict[str, float]:
    """The distance of each leaf of `a` from that of `b`, max |a - b| / (max |b| + 1e-6), by the leaf's path.

    Raises:
        AssertionError: trees of different structure or shapes, or a value that is not finite.
    """
    by_path: dict[str, float] = {}
    expected = jax.tree_util.tree_leaves_with_path(b)
    assert len(jax.tree.leaves(a)) == len(expected), "the two trees have different structures"
    for x, (path, y) in zip(jax.tree.leaves(a), expected, strict=True):
        x, y, name = np.asarray(x, np.float64), np.asarray(y, np.float64), path_name(path) or "the value"
        assert x.shape == y.shape, f"{name} has the shapes {x.shape} and {y.shape}"
        assert np.isfinite(x).all() and np.isfinite(y).all(), f"{name} is not finite"
        if x.size:
            by_path[name] = float(np.abs(x - y).max() / (np.abs(y).max() + 1e-6))
    return by_path


def largest_difference(a: Any, b: Any) -> float:
    """The largest of `differences`; 0 for trees without entries."""
    return max(differences(a, b).values(), default=0.0)


def check_equal(a: Any, b: Any, tolerance: float) -> None:
    """Raise an AssertionError that names the leaf of `a` that is farthest from that of `b`, if it is too far.

    Args:
        a: tree of arrays.
        b: tree of arrays that `a` should equal.
        tolerance: on `differences`.
    """
    by_path = differences(a, b)
    worst = max(by_path, key=lambda path: by_path[path], default="")
    if worst and not by_path[worst] < tolerance:
        raise AssertionError(
            f"{worst} differs by {by_path[worst]:.1e} of its largest entry; allowed are {tolerance:.0e}"
        )


@contextmanager
def promise(subject: str, what: str) -> Iterator[None]:
    """Whatever fails inside is said to break this promise of the subject.

    Raises:
        AssertionError: in place of any exception.
    """
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{subject}: {what}: {error}") from None
    except Exception as error:
        raise AssertionError(f"{subject}: {what}: {type(error).__name__}: {error}") from error
