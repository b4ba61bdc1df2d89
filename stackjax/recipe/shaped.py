"""Shaped attention and activations: close to linear at birth, so that a deep and wide stack without norms is stable."""

from dataclasses import dataclass, fields, replace
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward
from stackjax.parameter import FanIn, Init
from stackjax.recipe.base import Coefficients, Geometry, Recipe, with_coefficients
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Plain
from stackjax.sublayer import Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class ShapedAttention(Attention):
    """Attention with weights I + softmax(logits) - uniform: a zero-mean correction to the identity.

    uniform spreads a weight of 1 over all that a token sees. Observers are shown the softmax.

    Source: Noci et al. 2023, arXiv:2306.17759.
    """

    numbers = Attention.numbers

    def mix_weights(self, params: Params, weights: jax.Array, mask: jax.Array) -> jax.Array:
        n_queries, n_keys = weights.shape[-2:]
        uniform = mask / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)
        return weights - uniform + jnp.eye(n_queries, n_keys, n_keys - n_queries)


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
    default_init: Init = FanIn()
    gate: float = sqrt(0.5)
    temperature: float = 1.0
    slopes: tuple[float, float] = (0.0, -1.0)

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        if isinstance(sublayer, ShapedAttention):
            return sublayer
        if type(sublayer) is Attention:
            if sublayer.cross:
                raise ValueError("shaped attention adds the identity, which cross-attention does not have")
            if sublayer.sinks:
                raise ValueError("shaped attention takes a uniform look away from weights that sum to 1; sinks do not")
            settings: dict[str, Any] = {field.name: getattr(sublayer, field.name) for field in fields(Attention)}
            width = sublayer.head_width(geometry.d_model)
            scale = 1 / (self.temperature * sqrt(geometry.d_model * width))
            return ShapedAttention(**{**settings, "scale": scale, "backend": "plain"})
        if isinstance(sublayer, FeedForward):
            if sublayer.gated:
                raise ValueError("a product with a gate is not nearly linear, whatever its activation: no shaped form")
            positive, negative = (1 + c / sqrt(sublayer.width(geometry.d_model)) for c in self.slopes)
            return replace(sublayer, activation=ShapedReLU(positive, negative))
        raise ValueError(f"Shaped knows Attention and FeedForward; got {type(sublayer).__name__} ({sublayer.name!r})")

    def coefficients(self, geometry: Geometry) -> Coefficients:
        return with_coefficients(super().coefficients(geometry), alpha=sqrt(1 - self.gate**2), beta=self.gate)
