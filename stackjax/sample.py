"""Choosing a token: small pure functions from logits to logits, and one that draws.

Removed tokens get a logit of -inf. All numbers may be traced, and may be arrays (..., 1) with one number for each row.
"""

from typing import Any

import jax
import jax.numpy as jnp


def temperature(logits: jax.Array, t: Any) -> jax.Array:
    """logits / t: below 1 sharpens, above 1 flattens. (..., V) to (..., V)."""
    return logits / t


def top_k(logits: jax.Array, k: Any) -> jax.Array:
    """Keep the k largest, and what equals the k-th.

    Args:
        logits: (..., V)
        k: 1 or more; V or more keeps all.

    Source: Fan et al. 2018, section 5.2, arXiv:1805.04833.
    """
    falling = -jnp.sort(-logits, -1)
    last = jnp.broadcast_to(jnp.clip(jnp.asarray(k), 1, logits.shape[-1]) - 1, (*logits.shape[:-1], 1))
    return jnp.where(logits >= jnp.take_along_axis(falling, last, -1), logits, -jnp.inf)


def top_p(logits: jax.Array, p: Any) -> jax.Array:
    """Keep the smallest set of most probable tokens whose probability is at least p.

    Args:
        logits: (..., V)
        p: in (0, 1]; the most probable token is always kept.

    Source: Holtzman et al. 2019, eq. (2), arXiv:1904.09751.
    """
    order = jnp.argsort(-logits, -1)
    falling = jnp.take_along_axis(jax.nn.softmax(logits, -1), order, -1)
    before = jnp.cumsum(falling, -1) - falling
    kept = (before < p).at[..., 0].set(True)
    return jnp.where(jnp.take_along_axis(kept, jnp.argsort(order, -1), -1), logits, -jnp.inf)


def draw(key: jax.Array | None, logits: jax.Array, **adjust: Any) -> jax.Array:
    """Draw a token from softmax(logits), adjusted; without a key, the most probable one.

    Args:
        key: PRNG key; None is greedy.
        logits: (..., V)
        **adjust: temperature, top_k, top_p, applied in this order; None leaves one out.

    Returns:
        (...) integers.
    """
    if key is None:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    for change in (temperature, top_k, top_p):
        number = adjust.get(change.__name__)
        logits = logits if number is None else change(logits, number)
    return jax.random.categorical(key, logits).astype(jnp.int32)
