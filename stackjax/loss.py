"""Losses of logits: cross-entropy, and the loss of the next token; from the stream in blocks where V is large.

`cross_entropy` takes logits (..., T, V), which for 65,536 tokens of 100,000 kinds are 26 GB. `blockwise_cross_entropy`
takes the stream and the function that makes logits of it, and makes them for a block of tokens at a time, in the
backward pass again:

    x, result = model.hidden(params, tokens[..., :-1])
    loss = sj.loss.blockwise_cross_entropy(functools.partial(model.logits, params), x, tokens[..., 1:])

Documents packed into one row: indices begin anew, `segment` keeps each from seeing another, and a weight of 0 takes out
the first token of a document, which the one before cannot foretell:

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> params = jax.jit(model.init)(jax.random.key(0))
    >>> tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2]])
    >>> position = {"index": jnp.array([[0, 1, 2, 0, 1, 2, 3]]), "segment": jnp.array([[0, 0, 0, 1, 1, 1, 1]])}
    >>> apply = jax.jit(model.apply)
    >>> logits, _ = apply(params, tokens, sj.SideInputs(position=position))
    >>> weights = (position["index"] > 0).astype(int)
    >>> packed = sj.loss.next_token(logits, tokens, weights)
    >>> alone = [sj.loss.next_token(apply(params, part)[0], part) for part in (tokens[:, :3], tokens[:, 3:])]
    >>> bool(jnp.allclose(packed, (2 * alone[0] + 3 * alone[1]) / 5, rtol=1e-5))
    True

The router's losses come back summed over the layers, to be added to the model's:

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> experts = sj.MixtureOfExperts(n_experts=4, top_k=2, d_hidden=32)
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2, feed_forward=experts)
    >>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
    >>> logits, result = jax.jit(model.apply)(params, tokens)
    >>> sorted(result.loss)
    ['balance', 'router_z']
    >>> loss = sj.loss.next_token(logits, tokens) + sum(result.loss.values())
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from stackjax.block import to_blocks
from stackjax.check import ids, known
from stackjax.norm import upcast
from stackjax.sequence import by_shard, gathered, shards
from stackjax.tensor_parallel import gather_tokens


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
        ValueError: other shapes; a share of smoothing outside of 0 to 1, a z_loss below 0; where they are known,
            weights below 0, nothing that counts, a target beyond V.
    """
    total, weight = _sums(logits, *_counted(jnp.shape(logits), targets, weights), label_smoothing, z_loss)
    return total / weight


BLOCK_LOGITS = 2**24
"""Logits that `blockwise_cross_entropy` makes at a time: 64 MiB in float32."""


def blockwise_cross_entropy(
    head: Callable[[Float[Array, "*B t D"]], Float[Array, "*B t V"]],
    x: Float[Array, "*B T D"],
    targets: Int[Array, "*B T"],
    weights: Num[Array, "*B T"] | None = None,
    *,
    block: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Array, ""]:
    """`cross_entropy` of head(x) to rounding, with the logits of one block of tokens there at a time.

    Args:
        head: from the stream to logits, each token by itself, such as `functools.partial(model.logits, params)`.
        x: (..., T, D) the stream, as `model.hidden` returns it.
        targets: as for `cross_entropy`.
        weights: as for `cross_entropy`.
        block: tokens of each sequence in a block; None takes as many as have `BLOCK_LOGITS` logits.
        label_smoothing: as for `cross_entropy`.
        z_loss: as for `cross_entropy`.

    Returns:
        (), at least float32; NaN as for `cross_entropy`.

    Raises:
        ValueError: a block below 1, and what `cross_entropy` raises.
    """
    shape = jax.eval_shape(head, x).shape
    x, (counted, weights) = gather_tokens(x), _counted(shape, targets, weights)
    if (n := shards(x, -2)) > 1:
        x, counted, weights = by_shard(x, n, -2), by_shard(counted, n, -1), by_shard(weights, n, -1)
    n_tokens = x.shape[-2]
    if block is None:
        block = max(1, BLOCK_LOGITS // (math.prod(shape) // n_tokens))
    if block < 1:
        raise ValueError(f"block must be 1 token or more; got {block}")

    @jax.checkpoint
    def of_block(x: jax.Array, counted: jax.Array, weights: jax.Array) -> jax.Array:
        return _sums(head(x), counted, weights, label_smoothing, z_loss)

    def step(sums: jax.Array, parts: Any) -> tuple[jax.Array, None]:
        return sums + of_block(*parts), None

    if block >= n_tokens:
        total, weight = _sums(head(x), counted, weights, label_smoothing, z_loss)
        return total / weight
    parts = (to_blocks(x, block, -2), to_blocks(counted, block, -1), to_blocks(weights, block, -1))
    first = jax.eval_shape(of_block, *(part[0] for part in parts))
    (total, weight), _ = jax.lax.scan(step, jnp.zeros(first.shape, first.dtype), parts)
    return total / weight


def _counted(shape: tuple[int, ...], targets: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
    """Targets with a class in every place, and their weights, 0 where a target is left out; all of them on each device.

    Args:
        shape: of the logits.
        targets: as for `cross_entropy`.
        weights: as for `cross_entropy`.

    Raises:
        ValueError: see `cross_entropy`.
    """
    targets = jnp.asarray(targets)
    if shape[:-1] != targets.shape or (weights is not None and jnp.shape(weights) != targets.shape):
        given = "" if weights is None else f" and weights {jnp.shape(weights)}"
        raise ValueError(
            f"targets and weights must have the shape of the logits without V; got logits {shape}, targets "
            f"{targets.shape}{given}"
        )
    weights = jnp.where(targets >= 0, 1 if weights is None else weights, 0)
    counted = jnp.where(weights == 0, 0, targets)
    ids("targets", counted, shape[-1])
    numbers = known(weights)
    if numbers is not None and not ((numbers >= 0).all() and numbers.any()):
        raise ValueError(
            "a mean needs weights of 0 or more and at least one target that counts; got "
            + (f"weights from {numbers.min()} to {numbers.max()}" if numbers.size else "no targets")
        )
    return gathered(counted, -1), gathered(weights, -1)


def _sums(
    logits: jax.Array, counted: jax.Array, weights: jax.Array, label_smoothing: float, z_loss: float
) -> jax.Array:
    """The weighted sum of the losses and that of the weights, (2,), on a mesh of devices one sum over all of them."""
    if not (0 <= label_smoothing <= 1 and z_loss >= 0):
        raise ValueError(
            "label_smoothing must be a share, 0 to 1, and z_loss 0 or more; "
            f"got label_smoothing={label_smoothing}, z_loss={z_loss}"
        )
    logits = jnp.where(weights[..., None] == 0, 0, upcast(logits))
    log_z = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, counted[..., None], -1, mode="fill", fill_value=jnp.nan)[..., 0]
    loss = log_z - (1 - label_smoothing) * chosen
    if label_smoothing:
        loss = loss - label_smoothing * jnp.mean(logits, -1)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_z)
    return jnp.sum(jnp.stack((loss * weights, weights.astype(loss.dtype))), tuple(range(1, loss.ndim + 1)))


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
    # The last logits are weighted by 0, not cut off, so that tokens split over devices stay in equal parts.
    tokens, weights = jnp.asarray(tokens), jnp.ones(shapes[1], int) if weights is None else jnp.asarray(weights)
    targets, weights = (jnp.concatenate((x[..., 1:], jnp.zeros_like(x[..., :1])), -1) for x in (tokens, weights))
    return cross_entropy(logits, targets, weights, label_smoothing=label_smoothing, z_loss=z_loss)
