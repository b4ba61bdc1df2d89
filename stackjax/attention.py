"""Attention: the one sublayer through which tokens see each other."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from stackjax.attend import attend_fused, attention_weights, flat_positions, visible, weighted_sum, with_past
from stackjax.norm import NoNorm, Norm, wide, without_statistics
from stackjax.parameter import Spec, linear, matrix, zeros
from stackjax.position.base import ATTENTION_HOOKS, NoPosition, Position, total
from stackjax.sublayer import Given, Out, Params, Past, Sublayer, dropout

Backend = Literal["plain", "xla", "cudnn"]


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
        cross: whether keys and values come from `given.memory`.
        position: encoding that acts inside attention.
        scale: of the dot products; None means 1/sqrt(K).
        soft_cap: bound on the logits; None for none.
        sinks: whether each head learns a logit that takes weight and gives nothing.
        gate: "head" or "feature" multiplies each head's output, or each feature of it, by the sigmoid of a linear map
            of the query's input (Qiu et al. 2025, section 2.2, arXiv:2505.06708); None for no gate.
        qk_norm: over K, on queries and keys before rotation.
        value_norm: over K, on values.
        inner_norm: over H K, before the output projection (sub-LN).
        bias: which projections have biases: of query, key, value, out, gate.
        backend: "plain" is written out, "xla" and "cudnn" go through jax.nn.dot_product_attention; None takes cuDNN
            on a GPU in 16 bits where it can express the case, else "plain".
        dropout: rate on the output while training.

    Raises:
        ValueError: heads that do not divide, a soft cap or sinks with a fused backend, a stream position, a causal
            mask over another sequence, biases of projections that do not exist, running statistics.
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

    def __post_init__(self):
        super().__post_init__()
        if self.n_heads < 1 or self.groups < 1 or self.n_heads % self.groups:
            raise ValueError(
                f"n_kv_heads must divide n_heads; got n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}"
            )
        without_statistics(qk_norm=self.qk_norm, value_norm=self.value_norm, inner_norm=self.inner_norm)
        for name, reach in (("window", self.window), ("chunk", self.chunk)):
            if reach is not None and reach < 1:
                raise ValueError(f"{name} must be at least 1 (the token itself); got {reach}")
            if reach is not None and self.cross:
                raise ValueError(f"cross-attention sees all of the memory; got {name}={reach}")
        if self.gate not in (None, "head", "feature"):
            raise ValueError(f"gate must be None, 'head' or 'feature'; got {self.gate!r}")
        if self.soft_cap is not None and self.soft_cap <= 0:
            raise ValueError(f"soft_cap must be positive, or None for none; got {self.soft_cap}")
        if unknown := set(self.bias) - {"query", "key", "value", "out", "gate"}:
            raise ValueError(f"bias names projections out of query, key, value, out, gate; got {sorted(unknown)}")
        if self.backend not in (None, "plain", "xla", "cudnn"):
            raise ValueError(f"backend must be 'plain', 'xla', 'cudnn' or None; got {self.backend!r}")
        if not self.position.acts_on(ATTENTION_HOOKS) and type(self.position) is not NoPosition:
            raise ValueError(
                f"{type(self.position).__name__} does not act inside attention; give it to the model's embedding"
            )
        if self.backend in ("xla", "cudnn") and not self._fusable:
            raise ValueError(
                f"backend={self.backend!r} cannot express soft_cap, sinks or value positions; use backend='plain'"
            )

    @property
    def groups(self) -> int:
        """G."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def _fusable(self) -> bool:
        return self.soft_cap is None and not self.sinks and not self.position.acts_on(("value",))

    def head_width(self, d_model: int) -> int:
        """K."""
        if self.d_head is not None:
            return self.d_head
        if d_model % self.n_heads:
            nearest = [n for n in range(1, d_model + 1) if d_model % n == 0]
            below = max(n for n in nearest if n <= self.n_heads)
            above = min((n for n in nearest if n > self.n_heads), default=below)
            raise ValueError(
                f"n_heads must divide d_model; got d_model={d_model}, n_heads={self.n_heads}; "
                f"try n_heads={below} or {above}, or give d_head"
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
        specs["query_norm"] = self.qk_norm.spec(width)
        specs["key_norm"] = self.qk_norm.spec(width)
        specs["value_norm"] = self.value_norm.spec(width)
        specs["inner_norm"] = self.inner_norm.spec(self.n_heads * width)
        specs["position"] = self.position.spec(self.n_heads, width)
        if self.sinks:
            specs["sinks"] = Spec(shape=(self.n_heads,), role="bias", init=zeros)
        if self.gate is not None:
            n_gates = self.n_heads * (width if self.gate == "feature" else 1)
            specs |= matrix(d_model, n_gates, prefix + "query", name="gate", bias="gate" in self.bias)
        return specs

    def shared(self, d_model: int) -> dict[str, Any]:
        return self.position.shared(self.n_heads, self.head_width(d_model))

    def prepare(self, shared: Params, given: Given, n_tokens: int, d_model: int, past: Past | None = None) -> Any:
        query = new_key = key = flat_positions(given.position, n_tokens)
        if self.cross:
            n_keys = n_tokens if given.memory is None else given.memory.shape[-2]
            new_key = key = flat_positions(given.memory_position, n_keys)
        elif past is not None:
            key = with_past(past[self._slots(max(past))], new_key)
        reach = {"window": self.window, "chunk": self.chunk}
        sizes = {"n_heads": self.n_heads, "d_head": self.head_width(d_model)}
        return {
            "mask": visible(query, key, causal=self.causal and not self.cross, **reach),
            "position": self.position.prepare(shared, query=query, key=key, new_key=new_key, **sizes),
        }

    def cache(self, batch: int, slots: int, d_model: int, dtype: Any) -> Any:
        if self.cross:
            return None
        shape = (batch, self.groups, self._slots(slots), self.head_width(d_model))
        return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}

    def _slots(self, slots: int) -> int:
        """How many of the last `slots` tokens are worth keeping."""
        return min(reach for reach in (slots, self.window, self.chunk) if reach is not None)

    def remember(self, params: Params, memory: jax.Array) -> Any:
        if not self.cross:
            return None
        rows = memory.reshape(-1, memory.shape[-1])
        key, value = self._keys_values(params, rows, rows, math.prod(memory.shape[:-2]))
        return {"key": key.swapaxes(1, 2), "value": value.swapaxes(1, 2)}

    def _keys_values(self, params: Params, key_rows: jax.Array, value_rows: jax.Array, batch: int):
        width = params["key"].shape[-1] // self.groups
        key = linear(params, "key", key_rows).reshape(batch, -1, self.groups, width)
        value = linear(params, "value", value_rows).reshape(batch, -1, self.groups, width)
        return self.qk_norm.apply(params["key_norm"], key), self.value_norm.apply(params["value_norm"], value)

    def apply(self, params: Params, x: Any, given: Given) -> tuple[jax.Array, Out]:
        """Attend.

        Args:
            params: as declared by `spec`.
            x: (..., T, D), or a tuple of three for queries, keys and values.
            given: what travels beside x.

        Returns:
            (..., T, D). State while decoding: the new `cache` entries. Seen: `value` (B, S, G, K) before any mixing,
            `weights` and `logits` (B, H, T, S), with all leading axes as one B.
        """
        inputs = x if isinstance(x, tuple) else (x, x, x)
        lead, n_tokens, d_model = inputs[0].shape[:-2], inputs[0].shape[-2], inputs[0].shape[-1]
        if self.cross and given.cache is None:
            if given.memory is None:
                raise ValueError("cross-attention needs given.memory, the encoder's output (..., S, D)")
            inputs = (inputs[0], given.memory, given.memory)
        if given.table is None:
            given = replace(given, table=self.prepare({}, given, n_tokens, d_model))
        chex.assert_shape(inputs[0], (..., n_tokens, params["query"].shape[0]))
        query_rows, key_rows, value_rows = _rows(inputs)
        batch, width = math.prod(lead), self.head_width(d_model)

        query = linear(params, "query", query_rows).reshape(batch, n_tokens, self.n_heads, width)
        query = self.qk_norm.apply(params["query_norm"], query)
        if self.cross and given.cache is not None:
            key, value = given.cache["key"].swapaxes(1, 2), given.cache["value"].swapaxes(1, 2)
        else:
            key, value = self._keys_values(params, key_rows, value_rows, batch)
        own_value = value
        if given.value is not None:
            own, other, first = given.value
            value = (own * value + other * first.reshape(value.shape)).astype(value.dtype)

        table = given.table["position"]
        query = self.position.rotate(table, "query", query)
        key = self.position.rotate(table, "key", key)
        state = {}
        if given.cache is not None and not self.cross:
            new = {"key": key.swapaxes(1, 2), "value": value.swapaxes(1, 2)}
            state = {"cache": new}
            both = {name: jnp.concatenate((given.cache[name].astype(x.dtype), x), -2) for name, x in new.items()}
            key, value = both["key"].swapaxes(1, 2), both["value"].swapaxes(1, 2)

        y, weights, logits = self._attend(params, query, key, value, given)
        if self.gate is not None:
            gate = jax.nn.sigmoid(wide(linear(params, "gate", query_rows)))
            y = (y * gate.reshape(batch, n_tokens, self.n_heads, -1)).astype(y.dtype)
        y = checkpoint_name(y.reshape(*lead, n_tokens, -1), "attention_heads")
        y = linear(params, "out", self.inner_norm.apply(params["inner_norm"], y))
        seen = {"value": own_value, "weights": weights, "logits": logits}
        return dropout(given.key, y, self.dropout), Out(state=state, seen=seen)

    def _attend(self, params: Params, query: jax.Array, key: jax.Array, value: jax.Array, given: Given):
        table, mask = given.table["position"], given.table["mask"]
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        score = self.position.score(params["position"], table, query, key)
        bias = self.position.bias(params["position"], table)
        weights, logits = attention_weights(
            query,
            key,
            scale=scale,
            mask=mask,
            score=score,
            bias=bias,
            soft_cap=self.soft_cap,
            sinks=params.get("sinks"),
        )
        backend = self._backend(query.dtype)
        if backend == "plain":
            y = weighted_sum(weights, value)
            extra = self.position.value(params["position"], table, weights)
            return (y if extra is None else y + extra.astype(y.dtype)), weights, logits
        standard = given.position is None and given.cache is None and self.chunk is None and not self.cross
        y = attend_fused(
            query,
            key,
            value,
            backend=backend,
            scale=scale,
            causal=standard and self.causal,
            window=self.window if standard else None,
            mask=None if standard else mask,
            bias=total([None if score is None else scale * score, bias]),
        )
        return y, weights, logits

    def _backend(self, dtype: Any) -> Backend:
        if self.backend is not None:
            return self.backend
        sixteen_bits = dtype in (jnp.bfloat16, jnp.float16)
        return "cudnn" if jax.default_backend() == "gpu" and sixteen_bits and self._fusable else "plain"


def _rows(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Each input as (tokens, D); one array given twice is reshaped once, so that the backward pass keeps one copy."""
    rows = {id(x): x.reshape(-1, x.shape[-1]) for x in inputs}
    return tuple(rows[id(x)] for x in inputs)
