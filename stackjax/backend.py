"""The programs that can compute attention, and the one that is taken where none is asked for."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

Backend = Literal["plain", "blockwise", "xla", "cudnn"]

MASKED = 2**22
"""Queries times keys up to which cuDNN is given a mask (B, 1, T, S) for what it cannot express, such as packed
documents: 2,048 tokens, all with all. From there on attention in blocks is faster, in memory that grows with T alone
(an H200, documents of 512 tokens: 3.8 and 4.5 ms at 2,048 tokens, 12.9 and 6.8 at 8,192, forward and backward)."""

TOGETHER = 2**10
"""Tokens of prompts up to which a CPU reads several at once: what a layer makes of more is larger than the CPU's cache
(8 layers of width 256 on two cores, 32 prompts of 512 tokens: 1.16 seconds all at once, 0.91 by twos, in 0.4 of the
memory; 8 prompts: 0.27 and 0.23 seconds)."""


def takes_mask(n_queries: int, n_keys: int) -> bool:
    """True if a kernel of cuDNN with a mask is better than blocks for these many queries and keys on this machine."""
    return jax.default_backend() == "gpu" and n_queries * n_keys <= MASKED


def reads_apart(query: jax.Array, key: jax.Array | tuple[jax.Array, ...]) -> bool:
    """True if keys and values of a cache are better read where they lie than copied into one array for a kernel.

    They are where the weights, which a kernel would not write, are smaller than the keys, which it would have copied:
    for a few new tokens.

    Args:
        query: (B, T, H, K)
        key: of the cache and of the new tokens, or in one array.
    """
    return isinstance(key, tuple) and math.prod(query.shape[1:3]) <= math.prod(key[0].shape[2:])


def copies_slices() -> bool:
    """True if a scan copies what its body reads of stacked arrays, as XLA's programs for a CPU do."""
    return jax.default_backend() == "cpu"


def rows_together(batch: int, n_tokens: int) -> int:
    """The number of prompts, a divisor of the batch, that are best read at the same time on this machine.

    Args:
        batch: B.
        n_tokens: T of each prompt.
    """
    if jax.default_backend() != "cpu":
        return batch
    fitting = max(1, TOGETHER // n_tokens)
    return max(rows for rows in range(1, batch + 1) if batch % rows == 0 and rows <= fitting)


def choose(asked: Backend | None, dtype: Any, *, fuses: bool, blockwise: bool, edited: bool) -> Backend:
    """The backend to take.

    Args:
        asked: by the user; None for any.
        dtype: of the queries.
        fuses: whether a fused kernel can express the case.
        blockwise: whether to go by blocks if it cannot.
        edited: whether the softmax's weights are edited.

    Raises:
        ValueError: an edit of weights that the backend asked for never makes.
    """
    if edited and asked not in (None, "plain"):
        raise ValueError(f"backend={asked!r} makes no weights to edit; use backend='plain', or None")
    if asked is not None or edited:
        return asked or "plain"
    if jax.default_backend() == "gpu" and dtype in (jnp.bfloat16, jnp.float16) and fuses:
        return "cudnn"
    return "blockwise" if blockwise else "plain"
