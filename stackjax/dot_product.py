"""The arithmetic of attention, as pure functions.

`dot_product_attention`, written out, is the reference and expresses everything; `fused_attention` hands the cases that
`jax.nn.dot_product_attention` can express to XLA or cuDNN; `visible` says who may look at whom, from positions alone.
"""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stackjax.check import boolean, known
from stackjax.norm import upcast
from stackjax.product import wide_einsum
from stackjax.sequence import shards, split
from stackjax.sublayer import Positions

Parts = Float[Array, "B S G K"] | tuple[Float[Array, "B _ G K"], ...]
"""Keys or values in one array, or in several along S: a cache's, left where they lie, and new ones."""


def behind(cached: Float[Array, "B S *rest"], new: Float[Array, "B T *rest"]) -> Any:
    """New keys or values (B, T, ...) behind those of a cache (B, S, ...), as `Parts`."""
    return (cached.astype(new.dtype), new) if cached.size else new


def joined(parts: Any) -> Float[Array, "B S *rest"]:
    """Keys or values (B, S, ...) of `Parts` in one array."""
    return jnp.concatenate(parts, 1) if isinstance(parts, tuple) else parts


@jax.custom_jvp
def softmax(logits: Float[Array, "... S"]) -> Float[Array, "... S"]:
    """exp(logits) / sum exp(logits) over the last axis; a row of -inf alone gives zeros.

    The backward pass keeps the result alone.
    """
    top = jnp.max(logits, -1, keepdims=True)
    raised = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))
    norm = jnp.sum(raised, -1, keepdims=True)
    return raised / jnp.where(norm == 0, 1, norm)


@softmax.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    weights = softmax(*primals)
    return weights, weights * (tangents[0] - jnp.sum(weights * tangents[0], -1, keepdims=True))


def attention_logits(
    query: Float[Array, "B T H K"],
    key: Parts,
    *,
    scale: float,
    mask: Bool[Array, "#B #H T S"] | None = None,
    score: Float[Array, "#B #H T S"] | None = None,
    bias: Float[Array, "#B #H T S"] | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "B H T S"]:
    """cap(scale (q·k + score)) + bias, -inf where the mask is False.

    Args:
        query: (B, T, H, K)
        key: (B, S, G, K), perhaps in `Parts`; each key head serves H / G query heads.
        scale: of the dot products, normally 1/sqrt(K).
        mask: (B or 1, H or 1, T, S) booleans, True where a query may look; numbers to be added are refused.
        score: (B or 1, H or 1, T, S) content-dependent position logits, added before the scale.
        bias: (B or 1, H or 1, T, S) position logits, added after the scale and the cap.
        soft_cap: c in c tanh(logits / c) (Gemma 2, arXiv:2408.00118, section 2).

    Returns:
        (B, H, T, S), at least float32.
    """
    keys = key if isinstance(key, tuple) else (key,)
    batch, n_queries, n_heads, width = query.shape
    n_groups = keys[0].shape[-2]
    chex.assert_is_divisible(n_heads, n_groups)
    grouped = query.reshape(batch, n_queries, n_groups, n_heads // n_groups, width)
    # einsum makes its last operand the left factor: the smaller of logits and keys is turned, not the larger
    if n_queries * n_heads > n_groups * width:
        products = [wide_einsum("bsgk,btgmk->bgmts", part, grouped) for part in keys]
    else:
        products = [wide_einsum("btgmk,bsgk->bgmts", grouped, part) for part in keys]
    logits = split(jnp.concatenate(products, -1).reshape(batch, n_heads, n_queries, -1), 2)
    logits = scale * (logits if score is None else logits + upcast(score))
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + upcast(bias)
    return logits if mask is None else jnp.where(boolean("mask", mask), logits, -jnp.inf)


def attention_weights(
    query: Float[Array, "B T H K"],
    key: Parts,
    *,
    sinks: Float[Array, " H"] | None = None,
    **options: Any,
) -> tuple[Float[Array, "B H T S"], Float[Array, "B H T S"]]:
    """Softmax of the logits over the keys, and the logits.

    Args:
        query: (B, T, H, K)
        key: (B, S, G, K), perhaps in `Parts`.
        sinks: (H,) a logit for each head that takes part in the softmax and has no value (gpt-oss).
        **options: those of `attention_logits`.

    Returns:
        Weights and logits, both (B, H, T, S), at least float32. A row that may look nowhere has weights of zero.
    """
    logits = attention_logits(query, key, **options)
    if sinks is None:
        return softmax(logits), logits
    sink = jnp.broadcast_to(upcast(sinks)[:, None, None], (*logits.shape[:-1], 1))
    return softmax(jnp.concatenate((logits, sink), -1))[..., :-1], logits


def weighted_sum(weights: Float[Array, "B H T S"], value: Parts) -> Float[Array, "B T H K"]:
    """Sum values by attention weights.

    Args:
        weights: (B, H, T, S)
        value: (B, S, G, K), perhaps in `Parts`, whose sums are added in float32.

    Returns:
        (B, T, H, K), dtype of value.
    """
    if not isinstance(value, tuple):
        return _weighted_sum(jnp.einsum, weights, value)
    apart = jnp.split(weights, np.cumsum([part.shape[1] for part in value])[:-1], -1)
    first, *others = (_weighted_sum(wide_einsum, w, part) for w, part in zip(apart, value, strict=True))
    return sum(others, first).astype(value[0].dtype)


def _weighted_sum(einsum: Callable[..., jax.Array], weights: jax.Array, value: jax.Array) -> jax.Array:
    batch, n_heads, n_queries, n_keys = weights.shape
    if (n_groups := value.shape[-2]) == n_heads:
        return split(einsum("bshk,bhts->bthk", value, weights.astype(value.dtype)), 1)
    grouped = weights.reshape(batch, n_groups, n_heads // n_groups, n_queries, n_keys).astype(value.dtype)
    return split(einsum("bsgk,bgmts->btgmk", value, grouped).reshape(batch, n_queries, n_heads, -1), 1)


def dot_product_attention(
    query: Float[Array, "B T H K"], key: Float[Array, "B S G K"], value: Float[Array, "B S G K_v"], **options: Any
) -> Float[Array, "B T H K_v"]:
    """Scaled dot-product attention, written out.

    Args:
        query: (B, T, H, K)
        key: (B, S, G, K)
        value: (B, S, G, K_v)
        **options: those of `attention_weights`.

    Returns:
        (B, T, H, K_v), dtype of value.

    Source: Vaswani et al. 2017, eq. (1), arXiv:1706.03762; grouped keys: Ainslie et al. 2023, arXiv:2305.13245.
    """
    chex.assert_rank([query, key, value], 4)
    return weighted_sum(attention_weights(query, key, **options)[0], value)


def fused_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    *,
    backend: Literal["xla", "cudnn"],
    scale: float,
    causal: bool = False,
    window: int | None = None,
    mask: Bool[Array, "#B #H T S"] | None = None,
    bias: Float[Array, "#B #H T S"] | None = None,
) -> Float[Array, "B T H K"]:
    """Scaled dot-product attention by `jax.nn`'s fused kernels: no soft cap, no sinks, no value positions.

    Args:
        query: (B, T, H, K)
        key: (B, S, G, K)
        value: (B, S, G, K)
        backend: XLA or cuDNN (GPU, 16-bit floats).
        scale: of the dot products.
        causal: whether token t sees only s <= t; here T = S.
        window: how many tokens back a query sees, itself included.
        mask: (B or 1, H or 1, T, S) booleans on top of the two.
        bias: (B or 1, H or 1, T, S) logits added after the scale.

    Returns:
        (B, T, H, K), dtype of value; zeros for a query that may look nowhere.

    Raises:
        ValueError: cuDNN, and tokens that are split over devices.
    """
    chex.assert_rank([query, key, value], 4)
    if backend == "cudnn" and shards(query, 1) > 1:
        raise ValueError(
            "cuDNN's kernels take whole sequences; with tokens split over the mesh's axis 'sequence', use "
            "backend='blockwise', or None"
        )
    batch, n_queries, n_heads, _ = query.shape
    full = (batch, n_heads, n_queries, key.shape[1])
    ahead = backend == "cudnn" and window is not None and not causal  # its windows look back alone
    if ahead or (mask is not None and (causal or window is not None)):
        near = visible(first_positions(n_queries), first_positions(key.shape[1]), causal=causal, window=window)
        mask, causal, window = near if mask is None else mask & near, False, None
    reach = None if window is None else (window - 1, 0 if causal else window - 1)
    y = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=None if bias is None else jnp.broadcast_to(bias, full).astype(query.dtype),
        mask=None if mask is None else jnp.broadcast_to(mask, (*mask.shape[:2], *full[2:])),
        scale=scale,
        is_causal=causal,
        local_window_size=reach,
        implementation=backend,
    )
    if mask is None:
        return y
    looks = jnp.swapaxes(jnp.any(mask, -1), -1, -2)[..., None]
    return jnp.where(looks, y, 0)


def visible(
    query: Positions,
    key: Positions,
    *,
    causal: bool = False,
    window: int | None = None,
    chunk: int | None = None,
) -> Bool[Array, "... 1 T S"]:
    """The mask of keys that each query may look at, from positions alone.

    Args:
        query: index (..., T) and perhaps segment (..., T); index -1 is an empty slot. A window (..., T) takes the place
            of `window`.
        key: index (..., S) and perhaps segment (..., S).
        causal: only keys whose index is at most the query's.
        window: only keys less than `window` indices away.
        chunk: only keys in the query's own chunk of that many indices.

    Returns:
        (..., 1, T, S) booleans.
    """
    i, j = query["index"][..., :, None], key["index"][..., None, :]
    seen = j >= 0
    if causal:
        seen = seen & (j <= i)
    if "window" in query:
        seen = seen & (jnp.abs(i - j) < query["window"][..., :, None])
    elif window is not None:
        seen = seen & (jnp.abs(i - j) < window)
    if chunk is not None:
        seen = seen & (i // chunk == j // chunk)
    if "segment" in query and "segment" in key:
        seen = seen & (query["segment"][..., :, None] == key["segment"][..., None, :])
    return jnp.broadcast_to(seen, jnp.broadcast_shapes(seen.shape, i.shape[:-1] + j.shape[-1:]))[..., None, :, :]


Ranges = dict[str, tuple[Int[Array, ""], Int[Array, ""]]]
"""Smallest and largest value of each kind of position in a block of tokens; of an empty block, the first is larger."""


def ranges(position: Positions) -> Ranges:
    """The `Ranges` of positions (..., T), those with an index of -1 left out."""
    real = position["index"] >= 0
    return {
        name: (
            jnp.min(jnp.where(real, x, jnp.iinfo(jnp.int32).max)),
            jnp.max(jnp.where(real, x, jnp.iinfo(jnp.int32).min)),
        )
        for name, x in position.items()
        if name in ("index", "segment", "window")
    }


def may_meet(
    query: Ranges, key: Ranges, *, causal: bool = False, window: int | None = None, chunk: int | None = None
) -> Bool[Array, ""]:
    """True if `visible` can be True anywhere between two blocks of tokens, from their ranges alone, or if in doubt.

    Args:
        query: of the queries.
        key: of the keys.
        causal: as for `visible`.
        window: as for `visible`.
        chunk: as for `visible`.

    Returns:
        () boolean.
    """
    (first, last), (low, high) = query["index"], key["index"]
    meet = (first <= last) & (low <= high)
    if causal:
        meet = meet & (low <= last)
    reach = query["window"][1] if "window" in query else window
    if reach is not None:
        meet = meet & (high > first - reach) & (low < last + reach)
    if chunk is not None:
        meet = meet & (high // chunk >= first // chunk) & (low // chunk <= last // chunk)
    if "segment" in query and "segment" in key:
        meet = meet & (key["segment"][0] <= query["segment"][1]) & (key["segment"][1] >= query["segment"][0])
    return meet


def refuse_repeats(position: Positions) -> None:
    """Refuse positions that stand twice in a row, of which the first would see what comes after it.

    They cannot be seen where they are traced.

    Args:
        position: index (B, S) and perhaps segment (B, S); padding (-1) may repeat.

    Raises:
        ValueError: an index stands twice in a row and segment.
    """
    index, segment = known(position["index"]), known(position.get("segment", 0))
    if index is None or segment is None:
        return
    place = index + (index.max(initial=0) + 1) * (segment.astype(np.int64) - segment.min(initial=0))
    place = np.sort(np.where(index < 0, -1, place), -1)
    repeated = (place[..., 1:] == place[..., :-1]) & (place[..., 1:] >= 0)
    if repeated.any():
        raise ValueError(
            "causal attention sees by index, so an index must not stand twice in a sequence; got one at least twice in "
            f"row {int(np.argwhere(repeated)[0][0])}. For documents that are packed, each from index 0, give "
            "position['segment'], the document of each token; for a token that was decoded before, a cache without it"
        )


def flat_positions(position: Positions | None, n: int) -> Positions:
    """Positions with exactly one leading axis, (B or 1, n, ...); None means 0 .. n-1."""
    if position is None:
        return first_positions(n)
    lead = position["index"].ndim - 1
    return {name: x.reshape(-1, *x.shape[lead:]) for name, x in position.items()}


def with_cached(cached: Positions, new: Positions) -> Positions:
    """Positions of the tokens in a cache, followed by those of new ones."""
    return {name: jnp.concatenate((cached[name], x), 1) for name, x in new.items()}


def first_positions(n: int) -> Positions:
    """0 .. n-1, (1, n)."""
    return {"index": jnp.arange(n, dtype=jnp.int32)[None]}
