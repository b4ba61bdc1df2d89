"""Hyper-connections: N parallel streams, and learned weights for which to read, which to write and how to mix."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import positive
from stackjax.norm import upcast, without_statistics
from stackjax.parameter import Constant, Spec, ones, zeros
from stackjax.recipe.base import Geometry, Recipe
from stackjax.recipe.form import Form, FormCoefficients, Function, add
from stackjax.recipe.residual import Normed
from stackjax.sublayer import Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class ReadLane:
    """Init of the reading weights: e_s mod N, where s = stride * layer + offset counts the sublayers."""

    offset: int
    stride: int

    def __call__(self, key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
        lane = (self.stride * layer + self.offset) % shape[0]
        return (jnp.arange(shape[0]) == lane).astype(jnp.float32)


def identity(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """The identity matrix."""
    return jnp.eye(shape[0], dtype=jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Streams(Normed):
    """H' = A_r^T H + b f(norm(A_m^T H))^T, with N streams H (..., N, T, D) that start equal.

    A subclass says what the weights are, and how the streams become one again.

    Args:
        n: number of streams N.
        norm: of the branch's input, and at the end.
    """

    n: int = 4

    def __post_init__(self):
        positive(self, "n")
        without_statistics(norm=self.norm)

    @property
    def kind(self) -> Hashable:
        return f"{self.n} hyper-connected streams"

    @property
    def leave_norms(self) -> tuple[str, ...]:
        return ("norm",)

    def enter(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[..., None, :, :], (*x.shape[:-2], self.n, *x.shape[-2:]))

    def weights(self, params: Params, stream: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A_r (..., T, N, N), A_m (..., T, N) and b (..., T, N), from the parameters other than the norm."""
        raise NotImplementedError(f"{type(self).__name__} must override weights")

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, norm: Function, **parameters: Any) -> jax.Array:
        h = upcast(x)
        mix, read, write = self.weights(parameters, x)
        y = f(c.gamma * norm(combine(read, h).astype(x.dtype)))
        mixed = jnp.moveaxis(jnp.moveaxis(h, -3, -1) @ mix, -1, -3)
        written = jnp.swapaxes(write, -1, -2)[..., None] * upcast(y)[..., None, :, :]
        beta = jnp.expand_dims(c.beta, -1)  # one number, or one for each example
        return add(c.alpha, mixed, beta, written).astype(x.dtype)


def combine(weights: jax.Array, h: jax.Array) -> jax.Array:
    """sum_n weights_n h_n: weights (..., T, N) or (1, N), streams (..., N, T, D), to (..., T, D)."""
    return jnp.sum(h * jnp.swapaxes(weights, -1, -2)[..., None], -3)


@dataclass(frozen=True, kw_only=True)
class HyperConnected(Streams):
    """Streams whose weights are learned numbers A_r (N, N), A_m (N,), b (N,), and depend on the stream if `dynamic`.

    Dynamic weights gain s tanh(norm(H) W), with W zero and s = 0.01 at first; A_m and A_r share their s. A_r starts as
    the identity, b as ones, and A_m as e_(k mod N) in sublayer k, so that the form starts as pre-norm either way. The
    streams are summed at the end.

    Args:
        dynamic: whether the weights depend on the stream.
        offset: which sublayer of its layer this is.
        stride: sublayers in a layer.

    Source: Zhu et al. 2024, eq. (1) to (14) and algorithm 2, arXiv:2409.19606.
    """

    dynamic: bool = True
    offset: int = 0
    stride: int = 1

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        n = self.n
        lane = ReadLane(offset=self.offset, stride=self.stride)
        specs = {
            "norm": self.norm.spec(d_model),
            "mix": Spec(shape=(n, n), role="residual", init=identity),
            "read": Spec(shape=(n,), role="residual", init=lane),
            "write": Spec(shape=(n,), role="residual", init=ones),
        }
        if self.dynamic:
            small = Constant(0.01)
            specs["dynamic"] = {
                "norm": self.norm.spec(d_model),
                "mix": Spec(shape=(d_model, n), role="mix", init=zeros),
                "read": Spec(shape=(d_model,), role="mix", init=zeros),
                "write": Spec(shape=(d_model,), role="mix", init=zeros),
                "read_scale": Spec(shape=(), role="residual", init=small),
                "write_scale": Spec(shape=(), role="residual", init=small),
            }
        return specs

    def leave(self, stream: jax.Array, norm: Function) -> jax.Array:
        return norm(self.view(stream))

    def view(self, stream: jax.Array) -> jax.Array:
        return jnp.sum(upcast(stream), -3).astype(stream.dtype)

    def weights(self, params: Params, stream: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mix, read, write = params["mix"][None], params["read"][None], params["write"][None]
        if self.dynamic:
            dynamic = params["dynamic"]
            h = jnp.moveaxis(upcast(self.norm.apply(dynamic["norm"], stream)), -3, -2)
            mix = mix + dynamic["read_scale"] * jnp.tanh(h @ dynamic["mix"])
            read = read + dynamic["read_scale"] * jnp.tanh(h @ dynamic["read"])
            write = write + dynamic["write_scale"] * jnp.tanh(h @ dynamic["write"])
        return mix, read, write


@dataclass(frozen=True, kw_only=True)
class HyperConnections(Recipe):
    """N parallel streams around pre-normed branches; weight decay on the dynamic weights and not on the static ones.

    Args:
        residual: the form; its `offset` and `stride` are set here for each sublayer.

    Source: Zhu et al. 2024, arXiv:2409.19606. Its section 4 also scales the initial output projections "by a factor of
    sqrt(N)" so that the output keeps its deviation. It does not say which way, neither way does that to a sum of equal
    streams, and both contradict the equality with pre-norm of section 2.3: left out here (override `gain` to have it).
    """

    residual: HyperConnected = HyperConnected()

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        return replace(self.residual, offset=index, stride=geometry.n_sublayers)
