"""Losses of logits: cross-entropy, and the loss of the next token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from stackjax.check import ids, known
from stackjax.norm import upcast


def cross_entropy(
    logits: Float[Array, "*shape V"],
    targets: Int[Array, "*shape"],
    weights: Num[Array, "*shape"] | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy in nats.

    Args:
        logits: (..., T, V)
        targets: (..., T) integers below V; negative ones are left out.
        weights: (..., T) of each target in the mean, 0 or more; None means 1. Where it is 0 the target may be anything.
        label_smoothing: share of the target's probability spread over all classes (Szegedy et al. 2015).
        z_loss: factor on log(Z)² (PaLM, arXiv:2204.02311, section 5).

    Returns:
        (), at least float32; NaN if nothing counts, or a target that counts is V or more.

    Raises:
        ValueError: other shapes; where they are known, weights below 0, nothing that counts, a target beyond V.
    """
    targets = jnp.asarray(targets)
    if logits.shape[:-1] != targets.shape or (weights is not None and jnp.shape(weights) != targets.shape):
        given = "" if weights is None else f" and weights {jnp.shape(weights)}"
        raise ValueError(
            f"targets and weights must have the shape of the logits without V; got logits {logits.shape}, targets "
            f"{targets.shape}{given}"
        )
    weights = jnp.where(targets >= 0, 1 if weights is None else weights, 0)
    counted = jnp.where(weights == 0, 0, targets)
    ids("targets", counted, logits.shape[-1])
    numbers = known(weights)
    if numbers is not None and not ((numbers >= 0).all() and numbers.any()):
        raise ValueError(
            "a mean needs weights of 0 or more and at least one target that counts; got "
            + (f"weights from {numbers.min()} to {numbers.max()}" if numbers.size else "no targets")
        )
    logits = jnp.where(weights[..., None] == 0, 0, upcast(logits))
    log_z = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, counted[..., None], -1, mode="fill", fill_value=jnp.nan)[..., 0]
    loss = log_z - (1 - label_smoothing) * chosen
    if label_smoothing:
        loss = loss - label_smoothing * jnp.mean(logits, -1)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_z)
    return jnp.sum(loss * weights) / jnp.sum(weights)


def next_token(
    logits: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    weights: Num[Array, "*B T"] | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Array, ""]:
    """`cross_entropy` of each token given those before it.

    Args:
        logits: (..., T, V) for the same tokens.
        tokens: (..., T), T at least 2.
        weights: (..., T) of each token as a target; the first is no target, and its weight is not read. In packed
            documents it is 0 for the first token of each, which the document before does not foretell.
        label_smoothing: see `cross_entropy`.
        z_loss: see `cross_entropy`.

    Raises:
        ValueError: other shapes, a single token, and what `cross_entropy` raises.
    """
    shapes = [jnp.shape(logits)[:-1], jnp.shape(tokens), *([] if weights is None else [jnp.shape(weights)])]
    if len(set(shapes)) > 1 or shapes[0][-1:] < (2,):
        raise ValueError(
            "logits (..., T, V), tokens (..., T) and weights (..., T) must be of the same T, at least 2 (a weight for "
            f"each token, the first one's is not read); got {', '.join(map(str, shapes))} without V"
        )
    weights = None if weights is None else weights[..., 1:]
    return cross_entropy(logits[..., :-1, :], tokens[..., 1:], weights, label_smoothing=label_smoothing, z_loss=z_loss)
