"""Attention: the one sublayer through which tokens see each other."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer

from stackjax import blockwise, dot_product
from stackjax.backend import Backend, choose, reads_apart, takes_mask
from stackjax.check import nearest_divisors, positive, rate
from stackjax.dot_product import Parts, behind, flat_positions, joined, visible, with_cached
from stackjax.norm import NoNorm, Norm, upcast, without_statistics
from stackjax.parameter import Spec, as_rows, linear, matrix, zeros
from stackjax.position.base import ATTENTION_HOOKS, NoPosition, Position, total
from stackjax.sequence import shards
from stackjax.sublayer import Aux, CachedPositions, Params, SideInputs, Sublayer, dropout


@dataclass(frozen=True, kw_only=True)
class Attention(Sublayer):
    """Multi-head attention, self or cross.

    Args:
        n_heads: H.
        n_kv_heads: G, a divisor of H; None means H. 1 is multi-query attention.
        d_head: K; None means D / H.
        causal: whether a token sees only itself and earlier ones; cross-attention sees all of the memory.
        window: how many tokens back a token sees, itself included; None for all.
        chunk: a token sees only its own chunk of this many tokens (Llama 4); None for all.
        cross: whether keys and values come from `side_inputs.memory`.
        position: encoding that acts inside attention.
        scale: of the dot products; None means 1/sqrt(K).
        soft_cap: bound on the logits; None for none.
        sinks: whether each head has a learned attention-sink logit, which enters the softmax's denominator and has no
            value (gpt-oss).
        gate: "head" or "feature" multiplies each head's output, or each feature of it, by the sigmoid of a linear map
            of the query's input (Qiu et al. 2025, section 2.2, arXiv:2505.06708); None for no gate.
        qk_norm: over K, on queries and keys before rotation.
        value_norm: over K, on values.
        inner_norm: over H K, before the output projection (sub-LN).
        bias: which projections have biases: of query, key, value, out, gate.
        backend: "plain" is written out and keeps all weights; "blockwise" keeps none (`stackjax.blockwise`), so that
            observers see no weights; "xla" and "cudnn" go through jax.nn.dot_product_attention. None takes cuDNN on a
            GPU in 16 bits where it can express the case, with a mask up to `backend.MASKED`, and tokens are not split
            over devices, else "blockwise" from `blockwise.LARGE` on, else "plain".
        weight_dropout: rate on the softmax's weights while training (Vaswani et al. 2017's released code), which only
            "plain" has.
        transform_value: a module-level function (value (B, S, G, K), side_inputs) to value, applied before anything
            else reads the values; a recipe's hook (value residual). None for none.
        dropout: rate on the output while training.

    Raises:
        ValueError: choices that do not fit together, or of which nothing could come.
    """

    name: str = "attention"
    n_heads: int
    n_kv_heads: int | None = None
    d_head: int | None = None
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    cross: bool = False
    position: Position = NoPosition()
    scale: float | None = None
    soft_cap: float | None = None
    sinks: bool = False
    gate: Literal["head", "feature"] | None = None
    qk_norm: Norm = NoNorm()
    value_norm: Norm = NoNorm()
    inner_norm: Norm = NoNorm()
    bias: tuple[str, ...] = ()
    backend: Backend | None = None
    weight_dropout: float = 0.0
    transform_value: Callable[[jax.Array, SideInputs], jax.Array] | None = None
    sites = ("weights", "heads")
    numbers = ("window", "position")

    def __post_init__(self):
        super().__post_init__()
        positive(self, "n_heads", "n_kv_heads", "d_head", "window", "chunk", "soft_cap")
        rate(self, "weight_dropout")
        if self.n_heads % self.groups:
            raise ValueError(f"n_kv_heads must divide n_heads; got {self.n_kv_heads} and {self.n_heads}")
        without_statistics(qk_norm=self.qk_norm, value_norm=self.value_norm, inner_norm=self.inner_norm)
        if self.cross and (self.window or self.chunk):
            raise ValueError(f"cross-attention sees all of the memory; got window={self.window}, chunk={self.chunk}")
        if unknown := set(self.bias) - {"query", "key", "value", "out", "gate" if self.gate else "out"}:
            raise ValueError(f"bias names projections: query, key, value, out, gate if any; got {sorted(unknown)}")
        if not self.position.acts_on(ATTENTION_HOOKS) and type(self.position) is not NoPosition:
            raise ValueError(f"{self.position!r} does not act inside attention; give it to the model's embedding")
        if self.backend == "blockwise" and not self._plain_weights:
            raise ValueError(f"{type(self).__name__} changes or drops weights; backend='blockwise' never has a row")
        if self.backend in ("xla", "cudnn") and not self._fusable:
            what = "a soft cap, sinks, value positions, or changed or dropped weights"
            raise ValueError(f"backend={self.backend!r} cannot express {what}; use backend='plain'")

    @property
    def groups(self) -> int:
        """G, the number of key/value heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def _fusable(self) -> bool:
        return self._plain_weights and not (self.soft_cap or self.sinks or self.position.acts_on(("value",)))

    @property
    def _linear(self) -> bool:
        """True if a fused kernel needs no tables of logits (H, T, S) beside queries, keys and values."""
        return self._fusable and not self.position.acts_on(("score", "bias"))

    @property
    def _plain_weights(self) -> bool:
        """True if the softmax's weights meet the values as they are."""
        return type(self).mix_weights is Attention.mix_weights and not self.weight_dropout

    @property
    def attends(self) -> bool:
        return True

    @property
    def reads_memory(self) -> bool:
        return self.cross

    @property
    def mixes_tokens(self) -> bool:
        return not self.cross

    def head_width(self, d_model: int) -> int:
        """K, the width of a head."""
        if self.d_head is not None:
            return self.d_head
        if d_model % self.n_heads:
            raise ValueError(
                f"n_heads must divide d_model; got d_model={d_model}, n_heads={self.n_heads}; "
                f"try n_heads={nearest_divisors(d_model, self.n_heads)}, or give d_head"
            )
        return d_model // self.n_heads

    def spec(self, d_model: int) -> dict[str, Any]:
        width = self.head_width(d_model)
        prefix = "cross_" if self.cross else ""
        sizes = {
            "query": (d_model, self.n_heads * width),
            "key": (d_model, self.groups * width),
            "value": (d_model, self.groups * width),
            "out": (self.n_heads * width, d_model),
        }
        specs: dict[str, Any] = {}
        for name, (n_in, n_out) in sizes.items():
            specs |= matrix(n_in, n_out, prefix + name, name=name, bias=name in self.bias)
        specs |= {"query_norm": self.qk_norm.spec(width), "key_norm": self.qk_norm.spec(width)}
        specs |= {"value_norm": self.value_norm.spec(width), "inner_norm": self.inner_norm.spec(self.n_heads * width)}
        specs["position"] = self.position.spec(self.n_heads, width)
        if self.sinks:
            specs["sinks"] = Spec(shape=(self.n_heads,), role="bias", init=zeros)
        if self.gate is not None:
            n_gates = self.n_heads * (width if self.gate == "feature" else 1)
            specs |= matrix(d_model, n_gates, prefix + "query", name="gate", bias="gate" in self.bias)
        return specs

    def shared(self, d_model: int) -> dict[str, Any]:
        return self.position.shared(self.n_heads, self.head_width(d_model))

    def prepare(
        self,
        shared: Params,
        side_inputs: SideInputs,
        n_tokens: int,
        d_model: int,
        cached: CachedPositions | None = None,
    ) -> Any:
        query = new_key = key = flat_positions(side_inputs.position, n_tokens)
        if self.cross:
            n_keys = n_tokens if side_inputs.memory is None else side_inputs.memory.shape[-2]
            new_key = key = flat_positions(side_inputs.memory_position, n_keys)
        elif cached is not None:
            key = with_cached(cached[self._capacity(max(cached))], new_key)
        if self.causal and not self.cross:
            dot_product.refuse_repeats(key)
        if "window" in side_inputs.numbers:
            query = {**query, "window": jnp.full_like(query["index"], side_inputs.numbers["window"])}
        sizes = {"n_heads": self.n_heads, "d_head": self.head_width(d_model), **side_inputs.numbers.get("position", {})}
        position, n_keys = self.position.for_attention(causal=self.causal), key["index"].shape[-1]
        in_blocks = self._blockwise(n_tokens, n_keys, side_inputs.edits_at("weights"))
        unmasked = in_blocks and not (self._linear and takes_mask(n_tokens, n_keys))
        return {
            "mask": None if unmasked else visible(query, key, **self._scores(self.head_width(d_model)).reach),
            "position": position.prepare(shared, query=query, key=key, new_key=new_key, **sizes),
            "where": (query, key),
            "shared": shared,
        }

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        if self.cross:
            return None
        if not self.causal:
            raise ValueError(f"decoding needs causal attention; {self.name!r} has causal=False, an encoder's")
        shape = (batch, self.groups, self._capacity(capacity), self.head_width(d_model))
        return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}

    def _capacity(self, capacity: int) -> int:
        """The number of the last `capacity` tokens that any later query can reach."""
        return min(reach for reach in (capacity, self.window, self.chunk) if reach is not None)

    def remember(self, params: Params, memory: jax.Array) -> Any:
        if not self.cross:
            return None
        key, value = self._keys_values(params, as_rows(memory), math.prod(memory.shape[:-2]))
        return {"key": key.swapaxes(1, 2), "value": value.swapaxes(1, 2)}

    def _keys_values(self, params: Params, rows: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        width = params["key"].shape[-1] // self.groups
        key, value = (linear(params, name, rows).reshape(batch, -1, self.groups, width) for name in ("key", "value"))
        return self.qk_norm.apply(params["key_norm"], key), self.value_norm.apply(params["value_norm"], value)

    def keys_values(self, params: Params, rows: jax.Array, side_inputs: SideInputs, batch: int) -> tuple[Any, ...]:
        """The rotated keys and the values, `Parts`, that are attended to, new state, and what observers see."""
        cache = side_inputs.cache
        if not self.cross:
            key, value = self._keys_values(params, rows, batch)
        elif cache is not None:
            key, value = cache["key"].swapaxes(1, 2), cache["value"].swapaxes(1, 2)
        elif side_inputs.memory is not None:
            memory = side_inputs.memory
            key, value = self._keys_values(params, as_rows(memory), batch)
        else:
            raise ValueError("cross-attention needs side_inputs.memory, the encoder's output (..., S, D)")
        plain, state = value, {}
        if self.transform_value is not None:
            value = self.transform_value(value, side_inputs)
        key = self.rotate(params, side_inputs.prepared["position"], "key", key)
        if cache is not None and not self.cross:
            state = {"cache": {"key": key.swapaxes(1, 2), "value": value.swapaxes(1, 2)}}
            key, value = (behind(cache[name].swapaxes(1, 2), x) for name, x in (("key", key), ("value", value)))
        return key, value, state, {"value": plain, "attended_key": key, "attended_value": value}

    def _scores(self, width: int) -> blockwise.Scores:
        """Masks, encoding and bounds as one description."""
        return blockwise.Scores(
            scale=width**-0.5 if self.scale is None else self.scale,
            position=self.position.for_attention(causal=self.causal),
            soft_cap=self.soft_cap,
            causal=self.causal and not self.cross,
            window=self.window,
            chunk=self.chunk,
        )

    def rotate(self, params: Params, table: Any, side: str, x: jax.Array) -> jax.Array:
        """Queries or new keys (B, T, H or G, K), as the side says, rotated; a subclass may change them further."""
        return self.position.rotate(table, side, x)

    def mix_weights(self, params: Params, weights: jax.Array, mask: Any) -> jax.Array:
        """A subclass's change to the softmax's weights (B, H, T, S); the mask says which keys a query may look at."""
        return weights

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        """Attend: softmax(query · key) value, projected back to the width of the stream.

        Args:
            params: as declared by `spec`.
            x: (..., T, D)
            side_inputs: positions, memory, what `prepare` returned, this layer's cache and key.

        Returns:
            (..., T, D). State while decoding: the new `cache` entries. Intermediates: `value` (B, S, G, K) before any
            mixing, `attended_key` and `attended_value`, `Parts` of which the first are in the cache, `weights` and
            `logits` (B, H, T, S), with all leading axes as one B; `heads` (..., T, H, K).

        Raises:
            ValueError: cross-attention without a memory; an edit of weights that the backend never makes.
        """
        lead, n_tokens, d_model = x.shape[:-2], x.shape[-2], x.shape[-1]
        chex.assert_shape(x, (..., n_tokens, params["query"].shape[0]))
        if side_inputs.prepared is None:
            side_inputs = replace(side_inputs, prepared=self.prepare({}, side_inputs, n_tokens, d_model))
        batch, width = math.prod(lead), self.head_width(d_model)
        rows = as_rows(x)

        query = linear(params, "query", rows).reshape(batch, n_tokens, self.n_heads, width)
        query = self.qk_norm.apply(params["query_norm"], query)
        key, value, state, intermediates = self.keys_values(params, rows, side_inputs, batch)
        query = self.rotate(params, side_inputs.prepared["position"], "query", query)
        y, looked = self._mix(params, query, key, value, side_inputs)
        if self.gate is not None:
            gate = jax.nn.sigmoid(upcast(linear(params, "gate", rows)))
            y = (y * gate.reshape(batch, n_tokens, self.n_heads, -1)).astype(y.dtype)
        y = checkpoint_name(y.reshape(*lead, n_tokens, -1), "attention_heads")
        y = self.inner_norm.apply(params["inner_norm"], y)
        heads = side_inputs.edited("heads", y.reshape(*y.shape[:-1], self.n_heads, -1))
        y = self.dropped(linear(params, "out", heads.reshape(y.shape)), side_inputs)
        return y, Aux(state=state, intermediates={**intermediates, **looked, "heads": heads})

    def _mix(
        self, params: Params, query: jax.Array, key: Parts, value: Parts, side_inputs: SideInputs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """softmax(query · key) value with all that shapes it; and the weights and logits for observers."""
        prepared, scores = side_inputs.prepared, self._scores(query.shape[-1])
        whole_key, whole_value = joined(key), joined(value)
        plain = self.chunk is None and not self.cross and "window" not in side_inputs.numbers
        standard = plain and side_inputs.position is None and side_inputs.cache is None
        edited = side_inputs.edits_at("weights")
        in_blocks = self._blockwise(query.shape[1], whole_key.shape[1], edited)
        table, mask = prepared["position"], prepared["mask"]
        fuses = self._fusable and shards(query, 1) == 1 and (mask is not None or (standard and self._linear))
        fuses = fuses and (in_blocks or not reads_apart(query, key))
        backend = choose(self.backend, query.dtype, fuses=fuses, blockwise=in_blocks, edited=edited)
        if backend == "blockwise":
            within = {"position": params["position"], "shared": prepared["shared"]}
            where, sinks = prepared["where"], params.get("sinks")
            return blockwise.blockwise_attention(scores, within, query, whole_key, whole_value, where, sinks=sinks), {}
        score = self.position.score(params["position"], table, query, whole_key)
        bias = self.position.bias(params["position"], table)
        intermediates = {}
        # A fused kernel makes no weights: these are made again for observers, and the compiler drops them if there is
        # none. Without a compiler they are not made at all.
        if backend == "plain" or (isinstance(query, Tracer) and mask is not None):
            shape = {"score": score, "bias": bias, "soft_cap": self.soft_cap, "sinks": params.get("sinks")}
            weights, logits = dot_product.attention_weights(query, key, scale=scores.scale, mask=mask, **shape)
            intermediates = {"weights": side_inputs.edited("weights", weights), "logits": logits}
        if backend == "plain":
            dropout_key = None if side_inputs.key is None else jax.random.fold_in(side_inputs.key, 1)
            dropped = dropout(dropout_key, intermediates["weights"], self.weight_dropout)
            mixed = self.mix_weights(params, dropped, mask)
            y, extra = dot_product.weighted_sum(mixed, value), self.position.value(params["position"], table, mixed)
            return (y if extra is None else y + extra.astype(y.dtype)), intermediates
        y = dot_product.fused_attention(
            query,
            whole_key,
            whole_value,
            backend=backend,
            scale=scores.scale,
            causal=standard and self.causal,
            window=self.window if standard else None,
            mask=None if standard else mask,
            bias=total([None if score is None else scores.scale * score, bias]),
        )
        return y, intermediates

    def _blockwise(self, n_queries: int, n_keys: int, edited: bool) -> bool:
        """True if attention of these many queries and keys is blockwise where no fused kernel is taken."""
        large = blockwise.large(n_queries, n_keys) and self._plain_weights and not edited
        return self.backend == "blockwise" or (self.backend is None and large)
