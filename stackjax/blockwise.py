"""Attention in memory that grows with the number of tokens, not its square: softmax over one block of keys at a time.

    m' = max(m, max_s l_s)      n' = e^(m - m') n + sum_s e^(l_s - m')      y' = e^(m - m') y + sum_s e^(l_s - m') v_s

runs over blocks of keys for each block of queries; y / n at the end is the softmax's weighted sum. The backward pass is
written by hand and computes the logits l of each block again, from the queries, the keys and the log of the normaliser
of each row. Blocks of keys that no query of a block may look at are passed over, so a window of W tokens costs T W.
Where tokens are split over devices (`stackjax.sequence`), each has the blocks of its own queries and gathers the keys.

What a block's logits are is a function of the block alone (`Scores`), so every mask, bias and encoding that follows
from positions goes through it.

Source: Milakov & Gimelshein 2018, arXiv:1805.02867 (the running softmax); Rabe & Staats 2021, arXiv:2112.05682
(blocks in linear memory); Dao et al. 2022, algorithms 1 and 4, arXiv:2205.14135 (the backward pass).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from stackjax import sequence
from stackjax.block import from_blocks, to_blocks
from stackjax.dot_product import attention_logits, may_meet, ranges, visible, weighted_sum
from stackjax.norm import upcast
from stackjax.position.base import NoPosition, Position
from stackjax.sublayer import Params, Positions

Where = tuple[Positions, Positions]
"""Positions of queries and of keys."""

BLOCK = 256
"""Tokens in a block of queries and in one of keys, on a CPU; twice as many elsewhere, where small products are slow."""

LARGE = 2**20
"""Queries times keys from which attention is blockwise if nothing else is asked for: 1,024 tokens, all with all."""


def large(n_queries: int, n_keys: int) -> bool:
    """True if the weights of these many queries and keys are too large to be kept."""
    return n_queries > 1 and n_queries * n_keys >= LARGE


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores between one block of queries and one of keys: masks, encodings and bounds of attention.

    Args:
        scale: of the dot products.
        position: encoding; its tables are made for each pair of blocks.
        soft_cap: as for `attention_logits`.
        causal: as for `visible`.
        window: as for `visible`.
        chunk: as for `visible`.
        d_position: width of the part of a head that the encoding turns; None means all.
    """

    scale: float
    position: Position = NoPosition()
    soft_cap: float | None = None
    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    d_position: int | None = None

    @property
    def reach(self) -> dict[str, Any]:
        """Arguments of `visible` and `may_meet`."""
        return {"causal": self.causal, "window": self.window, "chunk": self.chunk}

    def table(self, params: Params, where: Where, n_heads: int, d_head: int) -> Any:
        """The encoding's table for two blocks."""
        query, key = where
        sizes = {"n_heads": n_heads, "d_head": d_head if self.d_position is None else self.d_position}
        return self.position.prepare(params["shared"], query=query, key=key, new_key=key, **sizes)

    def logits(self, params: Params, query: jax.Array, key: jax.Array, where: Where) -> jax.Array:
        """(B, H, t, s) logits of a block of queries (B, t, H, K) and one of keys (B, s, G, K)."""
        table = self.table(params, where, *query.shape[2:])
        return attention_logits(
            query,
            key,
            scale=self.scale,
            mask=visible(*where, **self.reach),
            score=self.position.score(params["position"], table, query, key),
            bias=self.position.bias(params["position"], table),
            soft_cap=self.soft_cap,
        )

    def mix(self, params: Params, weights: jax.Array, value: jax.Array, where: Where) -> jax.Array:
        """(B, t, H, K) from weights (B, H, t, s) and values (B, s, G, K); linear in the weights."""
        y = weighted_sum(weights, value)
        table = self.table(params, where, weights.shape[1], value.shape[-1])
        extra = self.position.value(params["position"], table, weights)
        return y if extra is None else y + extra.astype(y.dtype)


def blockwise_attention(
    scores: Scores,
    params: Params,
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K_v"],
    where: Where,
    *,
    sinks: Float[Array, " H"] | None = None,
    block: int | None = None,
) -> Float[Array, "B T H K_v"]:
    """Softmax attention, block by block.

    Args:
        scores: masks, encodings and bounds.
        params: {position: of the encoding, shared: with other layers}.
        query: (B, T, H, K)
        key: (B, S, G, K)
        value: (B, S, G, K_v)
        where: positions of the queries and of the keys, dicts of arrays (B or 1, T or S, ...); an `index` of -1 is a
            key that nobody sees.
        sinks: (H,) a logit for each head that takes part in the softmax and has no value.
        block: tokens in a block, or fewer where a device has fewer; None means `BLOCK`, or twice that where it is not a
            CPU.

    Returns:
        (B, T, H, K_v), dtype of value; zeros for a query that may look nowhere.
    """
    if block is None:
        block = BLOCK if jax.default_backend() == "cpu" else 2 * BLOCK
    sinks = jnp.full(query.shape[2], -jnp.inf, jnp.float32) if sinks is None else upcast(sinks)
    n_shards = sequence.shards(query, 1)
    if n_shards == 1:
        return _padded_attend(scores, block, None, params, query, key, value, where, sinks)
    block = min(block, -(-max(query.shape[1], key.shape[1]) // n_shards))
    key, value, at_key = _filled((key, value, where[1]), n_shards)
    whole, split = PartitionSpec(), PartitionSpec(None, sequence.AXIS)
    on_each_device = jax.shard_map(
        partial(_padded_attend, scores, block, sequence.AXIS),
        mesh=sequence.mesh_in_use(query),
        in_specs=(whole, split, split, split, split, whole),
        out_specs=split,
        axis_names={sequence.AXIS},
        check_vma=False,
    )
    return jax.jit(on_each_device)(params, query, key, value, (where[0], at_key), sinks)


def _padded_attend(scores: Scores, block: int, axis: str | None, params, query, key, value, where, sinks) -> jax.Array:
    """Attention, all tokens filled up to whole blocks; on an axis of a mesh, that of each device's own queries."""
    queries, at_query = _filled((query, where[0]), block)
    keys, values, at_key = _filled((key, value, where[1]), block)
    y: jax.Array = _attend(scores, block, axis, params, queries, keys, values, (at_query, at_key), sinks)
    return y[:, : query.shape[1]]


def _filled(tree: Any, n: int) -> Any:
    """Arrays (B, T, ...) with T filled up to a multiple of n, positions by -1."""

    def fill(x: jax.Array) -> jax.Array:
        widths = [(0, -x.shape[1] % n if axis == 1 else 0) for axis in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=-1 if jnp.issubdtype(x.dtype, jnp.integer) else 0)

    return jax.tree.map(fill, tree)


def _blocks(tree: Any, block: int) -> Any:
    """(B, n block, ...) as (n, B, block, ...)."""
    return jax.tree.map(lambda x: to_blocks(x, block, 1), tree)


def _gathered(axis: str | None, blocks: Any) -> Any:
    """Blocks (n, B, block, ...) of all devices of an axis of the mesh, if there is one."""
    return blocks if axis is None else jax.lax.all_gather(blocks, axis, tiled=True)


def _scattered(axis: str | None, blocks: Any) -> Any:
    """The transpose of `_gathered`: sums over the devices, of which each keeps those of its own blocks."""
    return blocks if axis is None else jax.lax.psum_scatter(blocks, axis, tiled=True)


def _whole(blocks: jax.Array) -> jax.Array:
    """The inverse of `_blocks`."""
    return from_blocks(blocks, blocks.shape[0] * blocks.shape[2], 1)


def _take(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), tree)


def _reach(scores: Scores, at_queries: Any, at_keys: Any) -> tuple[jax.Array, jax.Array]:
    """The blocks of keys that each block of queries may look at, before the others, and how many they are."""
    queries, keys = (jax.vmap(ranges)(where) for where in (at_queries, at_keys))
    meet = jax.vmap(lambda query: jax.vmap(lambda key: may_meet(query, key, **scores.reach))(keys))(queries)
    return jnp.argsort(~meet, axis=1), jnp.sum(meet, 1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(scores: Scores, block: int, axis: str | None, params, query, key, value, where, sinks):
    return _forward(scores, block, axis, params, query, key, value, where, sinks)[0]


def _forward(scores: Scores, block: int, axis: str | None, params, query, key, value, where, sinks):
    """The output, and what the backward pass needs: the log of each row's normaliser (B, H, T) beside the inputs."""
    keys, values, at_keys = _gathered(axis, _blocks((key, value, where[1]), block))
    dtype = jnp.promote_types(value.dtype, jnp.float32)

    def one(block_of_queries: Any) -> tuple[jax.Array, jax.Array]:
        q, at_query, (order, count) = block_of_queries
        batch, n, heads = q.shape[:3]

        def step(i: Any, carry: Any) -> Any:
            top, norm, y = carry
            k, v, at_key = _take((keys, values, at_keys), order[i])
            logits = scores.logits(params, q, k, (at_query, at_key))
            new = jnp.maximum(top, jnp.max(logits, -1))
            base = jnp.where(jnp.isfinite(new), new, 0)
            weights = jnp.exp(logits - base[..., None])
            shrink = jnp.exp(top - base)
            y = y * jnp.moveaxis(shrink, 1, 2)[..., None]
            y = y + scores.mix(params, weights.astype(value.dtype), v, (at_query, at_key)).astype(dtype)
            return new, norm * shrink + jnp.sum(weights, -1), y

        begin = (
            jnp.broadcast_to(sinks[None, :, None], (batch, heads, n)).astype(dtype),
            jnp.broadcast_to(jnp.isfinite(sinks)[None, :, None], (batch, heads, n)).astype(dtype),
            jnp.zeros((batch, n, heads, value.shape[-1]), dtype),
        )
        top, norm, y = jax.lax.fori_loop(0, count, step, begin)
        safe = jnp.where(norm == 0, 1, norm)
        y = y / jnp.moveaxis(safe, 1, 2)[..., None]
        return y.astype(value.dtype), jnp.where(norm == 0, jnp.inf, top + jnp.log(safe))

    at_queries = _blocks(where[0], block)
    y, log_norm = jax.lax.map(one, (_blocks(query, block), at_queries, _reach(scores, at_queries, at_keys)))
    y = _whole(y)
    return y, (params, query, key, value, where, sinks, y, log_norm)


def _backward(scores: Scores, block: int, axis: str | None, saved: Any, cotangent: jax.Array) -> Any:
    params, query, key, value, where, sinks, y, log_norm = saved
    keys, values, at_keys = _gathered(axis, _blocks((key, value, where[1]), block))
    dtype = log_norm.dtype
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)))

    def one(carry: Any, block_of_queries: Any) -> Any:
        q, at_query, dy, y, log_norm, (order, count) = block_of_queries
        delta = jnp.moveaxis(jnp.sum(dy.astype(dtype) * y.astype(dtype), -1), -1, 1)

        def step(i: Any, carry: Any) -> Any:
            d_params, d_q, d_keys, d_values = carry
            j = order[i]
            k, v, at_key = _take((keys, values, at_keys), j)
            at = (at_query, at_key)
            logits, pull_logits = jax.vjp(lambda params, q, k: scores.logits(params, q, k, at), params, q, k)
            weights = jnp.exp(logits - log_norm[..., None])
            rounded = weights.astype(value.dtype)
            _, pull_mix = jax.vjp(lambda params, w, v: scores.mix(params, w, v, at), params, rounded, v)
            d_params_mix, d_weights, d_v = pull_mix(dy)
            d_params_logits, d_q_block, d_k = pull_logits(weights * (d_weights.astype(dtype) - delta[..., None]))
            add = partial(jax.tree.map, lambda a, *b: a + sum(x.astype(a.dtype) for x in b))
            return (
                add(d_params, d_params_mix, d_params_logits),
                add(d_q, d_q_block),
                d_keys.at[j].add(d_k.astype(d_keys.dtype)),
                d_values.at[j].add(d_v.astype(d_values.dtype)),
            )

        d_params, d_keys, d_values, d_sinks = carry
        d_params, d_q, d_keys, d_values = jax.lax.fori_loop(0, count, step, (d_params, zeros(q), d_keys, d_values))
        weight = jnp.exp(sinks[None, :, None] - log_norm)
        return (d_params, d_keys, d_values, d_sinks - jnp.sum(weight * delta, (0, 2))), d_q

    blocks = _blocks((query, where[0], cotangent, y), block)
    rows = (*blocks, log_norm, _reach(scores, blocks[1], at_keys))
    begin = (zeros(params), zeros(keys), zeros(values), jnp.zeros(sinks.shape, dtype))
    (d_params, d_keys, d_values, d_sinks), d_query = jax.lax.scan(one, begin, rows)
    d_params = jax.tree.map(lambda d, x: d.astype(x.dtype), d_params, params)
    d_keys, d_values = _scattered(axis, (d_keys, d_values))
    d_query, d_key, d_value = (
        _whole(d).astype(x.dtype) for d, x in ((d_query, query), (d_keys, key), (d_values, value))
    )
    no_gradient = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), where)
    return d_params, d_query, d_key, d_value, no_gradient, d_sinks.astype(sinks.dtype)


_attend.defvjp(_forward, _backward)
