"""Losses of logits: cross-entropy, and the loss of the next token."""

import chex
import jax
import jax.numpy as jnp

from stackjax.norm import upcast


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> jax.Array:
    """Mean cross-entropy in nats.

    Args:
        logits: (..., T, V)
        targets: (..., T) integers; negative ones are left out.
        weights: (..., T) of each target in the mean; None means 1.
        label_smoothing: share of the target's probability spread over all classes (Szegedy et al. 2015).
        z_loss: factor on log(Z)² (PaLM, arXiv:2204.02311, section 5).

    Returns:
        (), at least float32; 0 if nothing counts.
    """
    chex.assert_equal_shape_prefix((logits, targets), targets.ndim)
    weights = jnp.where(targets >= 0, 1 if weights is None else weights, 0)
    logits = jnp.where(weights[..., None] == 0, 0, upcast(logits))
    log_z = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    loss = log_z - (1 - label_smoothing) * chosen
    if label_smoothing:
        loss = loss - label_smoothing * jnp.mean(logits, -1)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_z)
    total = jnp.sum(weights)
    return jnp.sum(loss * weights) / jnp.where(total == 0, 1, total)


def next_token(logits: jax.Array, tokens: jax.Array, **options) -> jax.Array:
    """`cross_entropy` of each token given those before it.

    Args:
        logits: (..., T, V) for the same tokens.
        tokens: (..., T)
        **options: of `cross_entropy`.
    """
    return cross_entropy(logits[..., :-1, :], tokens[..., 1:], **options)
