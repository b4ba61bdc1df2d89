"""Normalisation: pure functions of one vector, and the descriptions that name their parameters.

Layer norm, RMS norm and dynamic tanh act on each token by itself (statistics over D): no example and no token sees
another. Batch norm is here for the comparison that the field always asks for, and is the exception: it mixes
examples and tokens, and must carry running statistics.

Statistics are taken in float32 (float64 stays float64); the output has the dtype of the input.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from stackjax.check import floating
from stackjax.description import Description
from stackjax.parameter import Constant, Spec, ones, zeros

Params = dict[str, Any]


def upcast(x: Num[Array, "..."]) -> Num[Array, "..."]:
    """Cast to at least float32, the dtype in which statistics and residual sums are taken."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit_rms(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """y = x / sqrt(mean x² + eps) over the last axis; its backward pass keeps y and the root alone."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


@unit_rms.defjvp
def _(eps: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    inverse = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    y = x * inverse
    return y, inverse * (t - y * jnp.mean(y * t, -1, keepdims=True))


def layer_norm(params: Params, x: Float[Array, "... D"], *, eps: float = 1e-5) -> Float[Array, "... D"]:
    """(x - mean x) / sqrt(var x + eps) * scale + bias, over the last axis.

    Args:
        params: scale (D,), bias (D,), either may be missing.
        x: (..., D)
        eps: added to the variance.

    Returns:
        (..., D), dtype of x.

    Raises:
        ValueError: x of whole numbers, to which the result would be rounded.

    Source: Ba et al. 2016, eq. (4), arXiv:1607.06450.
    """
    chex.assert_axis_dimension_gt(x, -1, 0)
    floating("x", x.dtype)
    h = upcast(x)
    h = unit_rms(h - jnp.mean(h, -1, keepdims=True), eps)
    return _affine(params, h).astype(x.dtype)


def rms_norm(params: Params, x: Float[Array, "... D"], *, eps: float = 1e-6) -> Float[Array, "... D"]:
    """x / sqrt(mean x² + eps) * scale, over the last axis.

    Args:
        params: scale (D,), may be missing.
        x: (..., D)
        eps: added to the mean square.

    Returns:
        (..., D), dtype of x.

    Raises:
        ValueError: x of whole numbers, to which the result would be rounded.

    Source: Zhang & Sennrich 2019, eq. (4), arXiv:1910.07467.
    """
    chex.assert_axis_dimension_gt(x, -1, 0)
    floating("x", x.dtype)
    return _affine(params, unit_rms(upcast(x), eps)).astype(x.dtype)


def dynamic_tanh(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """scale * tanh(alpha x) + bias: a norm's shape without its statistics.

    Args:
        params: alpha (), scale (D,), bias (D,).
        x: (..., D)

    Returns:
        (..., D), dtype of x.

    Source: Zhu et al. 2025, eq. (3), arXiv:2503.10622.
    """
    return _affine(params, jnp.tanh(params["alpha"] * upcast(x))).astype(x.dtype)


def batch_norm(
    params: Params,
    x: Float[Array, "... D"],
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Float[Array, "... D"], dict[str, Float[Array, " D"]]]:
    """Normalise each feature by its statistics over every leading axis; running statistics go in and come out.

    Args:
        params: scale (D,), bias (D,), mean (D,) and variance (D,), the last two being running statistics.
        x: (..., D)
        training: True takes the statistics of this batch, False the running ones.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        (..., D) in the dtype of x, and the running statistics {mean, variance} after this batch.

    Source: Ioffe & Szegedy 2015, algorithm 1, arXiv:1502.03167. The running variance is the biased one.
    """
    h = upcast(x)
    old = {"mean": params["mean"], "variance": params["variance"]}
    if not training:
        return _standardise(params, h, old, eps).astype(x.dtype), old
    axes = tuple(range(h.ndim - 1))
    mean = jnp.mean(h, axes)
    batch = {"mean": mean, "variance": jnp.mean(jnp.square(h - mean), axes)}
    running = jax.tree.map(lambda a, b: (1 - momentum) * a + momentum * b.astype(a.dtype), old, batch)
    return _standardise(params, h, batch, eps).astype(x.dtype), jax.lax.stop_gradient(running)


def _standardise(params: Params, h: jax.Array, statistics: Params, eps: float) -> jax.Array:
    h = (h - statistics["mean"]) * jax.lax.rsqrt(statistics["variance"] + eps)
    return _affine(params, h)


def _affine(params: Params, h: jax.Array) -> jax.Array:
    if "scale" in params:
        h = h * params["scale"]
    if "bias" in params:
        h = h + params["bias"]
    return h


@dataclass(frozen=True, kw_only=True)
class Norm(Description):
    """A normalisation as a description: base of every norm, with do-nothing defaults.

    A norm of your own is a subclass that overrides `spec` and `apply`.
    """

    def spec(self, d: int) -> dict[str, Spec]:
        """Parameters of one norm over d features."""
        return {}

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D)."""
        return x

    def state(self, params: Params, x: jax.Array) -> Params:
        """New values of the parameters of role `statistic`, if there are any."""
        return {}

    @property
    def mixes_tokens(self) -> bool:
        """True if a token's output depends on other tokens, so that one token cannot be decoded after another."""
        return False


@dataclass(frozen=True, kw_only=True)
class NoNorm(Norm):
    """The identity: x itself, no norm."""


def without_statistics(**norms: Norm) -> None:
    """Refuse norms with running statistics where nobody would update them.

    Raises:
        ValueError: such a norm.
    """
    for name, norm in norms.items():
        if any(spec.role == "statistic" for spec in norm.spec(1).values()):
            raise ValueError(
                f"{name} cannot be {type(norm).__name__}: its running statistics would never be updated there; use it "
                "in a residual form"
            )


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """`layer_norm`, with or without its scale and bias.

    Args:
        eps: added to the variance.
        scale: whether to learn a scale.
        bias: whether to learn a bias.
    """

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True

    def spec(self, d: int) -> dict[str, Spec]:
        names = {"scale": ones} if self.scale else {}
        if self.bias:
            names["bias"] = zeros
        return {name: Spec(shape=(d,), role="norm", init=init) for name, init in names.items()}

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        return layer_norm(params, x, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class LayerNorm1P(LayerNorm):
    """`LayerNorm` whose scale is stored as its difference from 1, so that weight decay pulls it to 1 (Nemotron)."""

    def spec(self, d: int) -> dict[str, Spec]:
        return {name: replace(spec, init=zeros) for name, spec in super().spec(d).items()}

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        scale = {"scale": 1 + upcast(params["scale"])} if self.scale else {}
        return layer_norm({**params, **scale}, x, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Norm):
    """`rms_norm`, with or without its scale.

    Args:
        eps: added to the mean square.
        scale: whether to learn a scale.
        unit_offset: whether the scale is stored as its difference from 1, so that weight decay pulls it towards 1
            (Gemma).
    """

    eps: float = 1e-6
    scale: bool = True
    unit_offset: bool = False

    def spec(self, d: int) -> dict[str, Spec]:
        init = zeros if self.unit_offset else ones
        return {"scale": Spec(shape=(d,), role="norm", init=init)} if self.scale else {}

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        if self.unit_offset:
            params = {name: 1 + upcast(value) for name, value in params.items()}
        return rms_norm(params, x, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class DynamicTanh(Norm):
    """`dynamic_tanh`.

    Args:
        alpha: initial slope; the paper lowers it with the width (0.5 for vision, 0.2 to 0.8 for LLaMA).
    """

    alpha: float = 0.5

    def spec(self, d: int) -> dict[str, Spec]:
        return {
            "alpha": Spec(shape=(), role="norm", init=Constant(self.alpha)),
            "scale": Spec(shape=(d,), role="norm", init=ones),
            "bias": Spec(shape=(d,), role="norm", init=zeros),
        }

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        return dynamic_tanh(params, x)


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Norm):
    """`batch_norm`. The one norm that mixes examples, and tokens: a causal model with it is not causal.

    Residual forms return its new running statistics in `Result.state`, and `update_statistics` writes them into the
    parameters.

    Args:
        training: True normalises by the batch, False by the running statistics. Evaluate with
            `dataclasses.replace(norm, training=False)`.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.
    """

    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-5

    def spec(self, d: int) -> dict[str, Spec]:
        return {
            "scale": Spec(shape=(d,), role="norm", init=ones),
            "bias": Spec(shape=(d,), role="norm", init=zeros),
            "mean": Spec(shape=(d,), role="statistic", init=zeros),
            "variance": Spec(shape=(d,), role="statistic", init=ones),
        }

    @property
    def mixes_tokens(self) -> bool:
        return self.training

    def _run(self, params: Params, x: jax.Array) -> tuple[jax.Array, Params]:
        return batch_norm(params, x, training=self.training, momentum=self.momentum, eps=self.eps)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        return self._run(params, x)[0]

    def state(self, params: Params, x: jax.Array) -> Params:
        return self._run(params, x)[1]
