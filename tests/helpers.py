"""What many tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def perturbed(params: Any, *, key: int = 99, size: float = 0.1) -> Any:
    """Parameters moved away from their init, where gates are zero and anything agrees with anything."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), max(len(leaves), 1))
    moved = [x + size * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(tree, moved)


def filled(params: Any, weights: dict[str, Any]) -> Any:
    """Parameters with a weight for every leaf, by its path `a/b/c`; groups that hold no parameter stay as declared."""
    flat = flatten_dict(params, sep="/", keep_empty_nodes=True)
    shapes = {path: leaf.shape for path, leaf in flat.items() if hasattr(leaf, "shape")}
    assert shapes == {path: weight.shape for path, weight in weights.items()}
    return unflatten_dict({**flat, **weights}, sep="/")


def largest_difference(a: Any, b: Any) -> float:
    """Over all leaves, max |a - b| relative to the largest entry of the pair's leaf, with a floor."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape, (x.shape, y.shape)
        if x.size:
            assert np.isfinite(x).all() and np.isfinite(y).all()
            worst = max(worst, float(np.abs(x - y).max() / (np.abs(y).max() + 1e-6)))
    return worst


def normal(*shape: int, key: int = 0, dtype: Any = None) -> jax.Array:
    """Gaussian numbers."""
    return jax.random.normal(jax.random.key(key), shape, dtype or jnp.result_type(float))
