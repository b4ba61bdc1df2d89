"""The feed-forward network: what the model computes, and remembers, at each token by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from stackjax.block import from_blocks, to_blocks
from stackjax.check import positive
from stackjax.norm import NoNorm, Norm, without_statistics
from stackjax.parameter import linear, matrix
from stackjax.sequence import by_shard, shards
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def keep_slope(function: Activation, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """function(x), elementwise; the backward pass keeps the slope function'(x) and nothing else.

    Left alone, the backward pass of a GELU keeps five arrays of its input's size.
    """
    return function(x)


@keep_slope.defjvp
def _(function: Activation, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y, slope = jax.jvp(function, primals, (jnp.ones_like(primals[0]),))
    return y, slope * tangents[0]


def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0)."""
    return jax.nn.relu(x)


def squared_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0)². Source: So et al. 2021, section 3.1, arXiv:2109.08668."""
    h = jax.nn.relu(x)
    return h * h


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Phi(x), exact. Source: Hendrycks & Gimpel 2016, section 2, arXiv:1606.08415."""
    return keep_slope(partial(jax.nn.gelu, approximate=False), x)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU in the tanh approximation that GPT-2 uses. Source: arXiv:1606.08415, section 2."""
    return keep_slope(jax.nn.gelu, x)


def gelu_sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x), GELU in the approximation that CLIP uses. Source: arXiv:1606.08415, section 2."""
    return keep_slope(_gelu_sigmoid, x)


def _gelu_sigmoid(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(x), also called swish."""
    return keep_slope(jax.nn.silu, x)


@dataclass(frozen=True, kw_only=True)
class ClampedSwish:
    """min(x, limit) sigmoid(slope min(x, limit)): the gate of gpt-oss (its released code)."""

    slope: float = 1.702
    limit: float = 7.0

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.minimum(x, self.limit)
        return x * jax.nn.sigmoid(self.slope * x)


@dataclass(frozen=True, kw_only=True)
class ShiftedClip:
    """1 + x clipped to [-limit, limit]: what the gate of gpt-oss is multiplied by."""

    limit: float = 7.0

    def __call__(self, x: jax.Array) -> jax.Array:
        return 1 + jnp.clip(x, -self.limit, self.limit)


def identity(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x: the control that shows what the non-linearity is for."""
    return x


def two_layer(
    params: Params, x: Float[Array, "... D"], *, activation: Activation = gelu_tanh, norm: Norm = NoNorm()
) -> Float[Array, "... D"]:
    """norm(activation(x W_up + b_up)) W_down + b_down.

    Args:
        params: up (D, F), down (F, D), perhaps up_bias (F,) and down_bias (D,), and inner_norm for `norm`.
        x: (..., D)
        activation: elementwise.
        norm: on the hidden layer; none in the original.

    Returns:
        (..., D), dtype of x.

    Source: Vaswani et al. 2017, eq. (2), arXiv:1706.03762.
    """
    chex.assert_shape(x, (..., params["up"].shape[0]))
    return _project(params, _hidden(params, x, activation), norm)


def gated(
    params: Params, x: Float[Array, "... D"], *, activation: Activation = silu, norm: Norm = NoNorm()
) -> Float[Array, "... D"]:
    """norm(activation(x W_gate) * (x W_up)) W_down: SwiGLU with SiLU, GeGLU with GELU.

    Args:
        params: gate (D, F), up (D, F), down (F, D), perhaps biases, and inner_norm for `norm`.
        x: (..., D)
        activation: elementwise, on the gate.
        norm: on the hidden layer; none in the original.

    Returns:
        (..., D), dtype of x.

    Source: Shazeer 2020, eq. (6), arXiv:2002.05202.
    """
    chex.assert_shape(x, (..., params["up"].shape[0]))
    return _project(params, _gated_hidden(params, x, activation), norm)


def _hidden(params: Params, x: jax.Array, activation: Activation) -> jax.Array:
    return activation(linear(params, "up", x))


def _gated_hidden(params: Params, x: jax.Array, activation: Activation) -> jax.Array:
    return activation(linear(params, "gate", x)) * linear(params, "up", x)


def _project(params: Params, hidden: jax.Array, norm: Norm) -> jax.Array:
    hidden = checkpoint_name(hidden, "feed_forward_hidden")
    return linear(params, "down", norm.apply(params.get("inner_norm", {}), hidden))


@dataclass(frozen=True, kw_only=True)
class FeedForward(Sublayer):
    """The feed-forward sublayer, `two_layer` or `gated`.

    Args:
        d_hidden: F; None means 4 D, or 8/3 D rounded up to a multiple of 8 when gated (equal parameters).
        activation: elementwise, a module-level function.
        gated: whether a second up-projection multiplies the activation.
        bias: whether the projections have biases.
        inner_norm: on the hidden layer (sub-LN, NormFormer).
        block: tokens of each sequence whose hidden layer is there at a time, made again in the backward pass, so that
            memory does not grow with T F, and an edit cannot reach it (no site `hidden`); None for all.
        dropout: rate on the output while training.

    Raises:
        ValueError: batch norm on the hidden layer; a width below 1.
    """

    name: str = "feed_forward"
    d_hidden: int | None = None
    activation: Activation = gelu_tanh
    gated: bool = False
    bias: bool = False
    inner_norm: Norm = NoNorm()
    block: int | None = None

    def __post_init__(self):
        super().__post_init__()
        without_statistics(inner_norm=self.inner_norm)
        positive(self, "d_hidden", "block")

    @property
    def mixes_tokens(self) -> bool:
        return False

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the values inside `apply` that an edit may replace (`stackjax.edit`)."""
        return ("hidden",) if self.block is None else ()

    def width(self, d_model: int) -> int:
        """F, the hidden width."""
        if self.d_hidden is not None:
            return self.d_hidden
        return -(-8 * d_model // 24) * 8 if self.gated else 4 * d_model

    def spec(self, d_model: int) -> dict[str, Any]:
        d_hidden = self.width(d_model)
        gate = matrix(d_model, d_hidden, "gate", bias=self.bias) if self.gated else {}
        return {
            **gate,
            **matrix(d_model, d_hidden, "up", bias=self.bias),
            **matrix(d_hidden, d_model, "down", bias=self.bias),
            "inner_norm": self.inner_norm.spec(d_hidden),
        }

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        if self.block is not None and x.ndim > 1 and x.shape[-2] > self.block:
            run = partial(gated if self.gated else two_layer, params, activation=self.activation, norm=self.inner_norm)
            parts = by_shard(x, shards(x, -2), -2)
            y = from_blocks(jax.lax.map(jax.checkpoint(run), to_blocks(parts, self.block, -2)), parts.shape[-2], -2)
            return self.dropped(y.reshape(x.shape), side_inputs), Aux()
        hidden = (_gated_hidden if self.gated else _hidden)(params, x, self.activation)
        hidden = side_inputs.edited("hidden", hidden)
        y = self.dropped(_project(params, hidden, self.inner_norm), side_inputs)
        return y, Aux(intermediates={"hidden": hidden})
