"""Means of the parameters of one description."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.parameter import path_name


def average(trees: Sequence[Any], weights: Sequence[Any] | None = None) -> Any:
    """The weighted mean of trees of parameters of one description. Source: Wortsman et al. 2022, arXiv:2203.05482.

    Args:
        trees: of equal structure.
        weights: one each, divided by their sum; None means equal ones.

    Raises:
        ValueError: no tree, or another number of weights; leaves of different shapes.
    """
    weights = [1.0] * len(trees) if weights is None else list(weights)
    if not trees or len(weights) != len(trees):
        raise ValueError(f"an average needs one weight for each tree; got {len(trees)} trees, {len(weights)} weights")
    _same_shapes(*trees)
    total = sum(weights)

    def mean(*leaves: jax.Array) -> jax.Array:
        return jnp.asarray(sum(w / total * x for w, x in zip(weights, leaves, strict=True)), leaves[0].dtype)

    return jax.tree.map(mean, *trees)


def interpolate(a: Any, b: Any, t: Any) -> Any:
    """(1 - t) a + t b for trees of parameters of one description; t = 0 is a and t = 1 is b, to the bit.

    Raises:
        ValueError: leaves of different shapes.
    """
    _same_shapes(a, b)
    return jax.tree.map(lambda x, y: ((1 - t) * x + t * y).astype(x.dtype), a, b)


def _same_shapes(*trees: Any) -> None:
    def check(path: Any, *leaves: jax.Array) -> None:
        if len(shapes := dict.fromkeys(leaf.shape for leaf in leaves)) > 1:
            raise ValueError(f"{path_name(path)} must have one shape in all trees; got {', '.join(map(str, shapes))}")

    jax.tree_util.tree_map_with_path(check, *trees)
