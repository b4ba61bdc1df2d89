"""Shaped attention and activations: close to linear at birth, so that a deep and wide stack without norms is stable."""

from dataclasses import dataclass, fields, replace
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attend import weighted_sum
from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward
from stackjax.parameter import FanIn, Init
from stackjax.recipe.base import Geometry, Recipe, Schedule, with_sub
from stackjax.recipe.residual import Form, Plain
from stackjax.sublayer import Given, Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class ShapedAttention(Attention):
    """Attention with weights 1 + softmax(logits) - uniform: the identity plus what looking is worth.

    uniform spreads a weight of 1 over all that a token sees. Observers are shown the softmax.
    """

    def _attend(self, params: Params, query: jax.Array, key: jax.Array, value: jax.Array, given: Given):
        _, weights, logits = super()._attend(params, query, key, value, given)
        n_queries, n_keys = logits.shape[-2:]
        seen = given.table["mask"]
        uniform = seen / jnp.maximum(jnp.sum(seen, -1, keepdims=True), 1)
        shaped = weights - uniform + jnp.eye(n_queries, n_keys, n_keys - n_queries)
        y = weighted_sum(shaped, value)
        extra = self.position.value(params["position"], given.table["position"], shaped)
        return (y if extra is None else y + extra.astype(y.dtype)), weights, logits


@dataclass(frozen=True)
class ShapedReLU:
    """c (s_+ max(x, 0) + s_- min(x, 0)), with c such that a unit normal keeps its second moment.

    Args:
        positive: s_+.
        negative: s_-.
    """

    positive: float
    negative: float

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = sqrt(2 / (self.positive**2 + self.negative**2))
        return scale * (self.positive * jax.nn.relu(x) - self.negative * jax.nn.relu(-x))


@dataclass(frozen=True, kw_only=True)
class Shaped(Recipe):
    """sqrt(1 - g²) x + g f(x), no norm, with attention weights 1 + softmax - uniform and activations near the identity.

    Logits are divided by t sqrt(D K), a further sqrt(D) than usual, and the slopes of the activation are 1 and
    1 - 1/sqrt(F): what is not linear shrinks with the width. Tokens stay apart, and the stream keeps its size while
    the depth is no more than the width; beyond, logits feed on a stream that has wandered, and it may grow without
    bound. The recipe chooses scale, backend and activation of its sublayers.

    Args:
        gate: g.
        temperature: t.
        slopes: c_+ and c_- in the slopes 1 + c / sqrt(F).

    Source: Noci et al. 2023, arXiv:2306.17759, with value and output matrices where the paper has one matrix.
    """

    residual: Form = Plain()
    law: Init = FanIn()
    gate: float = sqrt(0.5)
    temperature: float = 1.0
    slopes: tuple[float, float] = (0.0, -1.0)

    def adapt(self, sub: Sublayer, geometry: Geometry) -> Sublayer:
        if isinstance(sub, ShapedAttention):
            return sub
        if type(sub) is Attention:
            if sub.cross:
                raise ValueError("shaped attention adds the identity, which cross-attention does not have")
            if sub.sinks:
                raise ValueError("shaped attention takes a uniform look away from weights that sum to 1; sinks do not")
            own: dict[str, Any] = {field.name: getattr(sub, field.name) for field in fields(Attention)}
            width = sub.head_width(geometry.d_model)
            scale = 1 / (self.temperature * sqrt(geometry.d_model * width))
            return ShapedAttention(**{**own, "scale": scale, "backend": "plain"})
        if isinstance(sub, FeedForward):
            if sub.gated:
                raise ValueError("a product with a gate is not nearly linear, whatever its activation: no shaped form")
            positive, negative = (1 + c / sqrt(sub.width(geometry.d_model)) for c in self.slopes)
            return replace(sub, activation=ShapedReLU(positive, negative))
        raise ValueError(f"Shaped knows Attention and FeedForward; got {type(sub).__name__} ({sub.name!r})")

    def schedule(self, geometry: Geometry) -> Schedule:
        return with_sub(super().schedule(geometry), alpha=sqrt(1 - self.gate**2), beta=self.gate)
