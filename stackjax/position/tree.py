"""Trees as data: a token's path from the root, and how two tokens stand to each other in the tree.

A path is the child index (0, 1, ..) of each step from the root to the token's node, padded with -1. Tokens of one
node (the bytes of a word) have the same path. A node deeper than P steps stands where its ancestor at depth P stands.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from stackjax.sublayer import Positions


def path_of(position: Positions, reader: str) -> Int[Array, "... T P"]:
    """The path (..., T, P) among the positions.

    Raises:
        ValueError: there is none.
    """
    if "path" not in position:
        raise ValueError(f"{reader} reads paths; give position['path'] (..., T, P), child indices padded with -1")
    return position["path"]


def depth_of(path: Int[Array, "*B P"]) -> Int[Array, "*B"]:
    """Steps from the root, (..., P) to (...)."""
    return jnp.sum(path >= 0, -1)


def relate(
    query: Int[Array, "*#B T P"], key: Int[Array, "*#B S P"]
) -> tuple[Int[Array, "*B T S"], Int[Array, "*B T S"], Int[Array, "*B T S"]]:
    """The relation of each key's node to each query's, by way of their lowest common ancestor.

    Args:
        query: (..., T, P) paths.
        key: (..., S, P) paths.

    Returns:
        Steps up from the query's node to the ancestor, steps down from there to the key's node, and how many siblings
        to the right the way down leaves the ancestor of where the way up arrived (0 if one node is the other's
        ancestor). Each (..., T, S).
    """
    chex.assert_equal(query.shape[-1], key.shape[-1])
    steps = (jnp.moveaxis(query, -1, 0)[..., :, None], jnp.moveaxis(key, -1, 0)[..., None, :])

    def step(state: tuple[jax.Array, jax.Array, jax.Array], ab: tuple[jax.Array, jax.Array]):
        together, common, apart = state
        a, b = ab
        both = together & (a >= 0) & (b >= 0)
        together = both & (a == b)
        return (together, common + together, jnp.where(both, b - a, apart)), None

    shape = jnp.broadcast_shapes(steps[0].shape, steps[1].shape)[1:]
    start = (jnp.ones(shape, bool), jnp.zeros(shape, query.dtype), jnp.zeros(shape, query.dtype))
    (_, common, apart), _ = jax.lax.scan(step, start, steps)
    return depth_of(query)[..., :, None] - common, depth_of(key)[..., None, :] - common, apart


def left_child_right_sibling(path: Int[Array, "*B P"], n_steps: int) -> Int[Array, "*B {n_steps}"]:
    """Rewrite a tree with two children a node: 0 goes to the first child, 1 to the next sibling.

    A step to child b becomes a 0 and b ones.

    Args:
        path: (..., P)
        n_steps: P', where longer results are cut.

    Returns:
        (..., P')
    """
    taken = path >= 0
    stops = jnp.cumsum(jnp.where(taken, path + 1, 0), -1)
    starts = jnp.where(taken, stops - path - 1, n_steps)
    place = jnp.arange(n_steps)
    first = jnp.any(starts[..., None] == place, -2)
    return jnp.where(place < stops[..., -1:], jnp.where(first, 0, 1), -1)
