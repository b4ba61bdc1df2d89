"""Arrays cut into blocks of tokens, for computations that hold one block of something large at a time."""

import jax
import jax.numpy as jnp


def to_blocks(x: jax.Array, block: int, axis: int, filler: int = 0) -> jax.Array:
    """An array with one axis cut into blocks, (n, ..., block, ...).

    Args:
        x: (..., T, ...)
        block: entries in a block; the last one is filled up.
        axis: the one that is cut.
        filler: what it is filled up with.
    """
    axis %= x.ndim
    filled = jnp.pad(x, [(0, -x.shape[i] % block if i == axis else 0) for i in range(x.ndim)], constant_values=filler)
    return jnp.moveaxis(filled.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :]), axis, 0)


def from_blocks(blocks: jax.Array, n: int, axis: int) -> jax.Array:
    """The inverse of `to_blocks`.

    Args:
        blocks: (n blocks, ..., block, ...)
        n: entries of the whole axis; what filled up the last block is left out.
        axis: of the whole array.
    """
    axis %= blocks.ndim - 1
    parts = jnp.moveaxis(blocks, 0, axis)
    whole = parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])
    return jax.lax.slice_in_dim(whole, 0, n, axis=axis)
