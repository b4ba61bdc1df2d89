"""Hyper-connections: N parallel streams, and learned weights for which to read, which to write and how to mix."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.norm import LayerNorm, Norm, wide, without_statistics
from stackjax.parameter import Constant, Spec, ones, zeros
from stackjax.recipe.base import Geometry, Recipe
from stackjax.recipe.residual import Form, add, times
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
class HyperConnected(Form):
    """H' = A_r^T H + b f(norm(A_m^T H))^T, with the stream H (..., N, T, D).

    Static weights A_r (N, N), A_m (N,), b (N,); with `dynamic`, each gains 0.01 tanh(norm(H) W), W zero at first, so
    that the form starts as pre-norm either way. The streams start equal and are summed at the end.

    Args:
        n: number of streams N.
        dynamic: whether the weights depend on the stream.
        norm: of the branch's input, of the streams for the dynamic weights, and at the end.
        offset: which sublayer of its layer this is.
        stride: sublayers in a layer.

    Source: Zhu et al. 2024, eq. (2) to (14), arXiv:2409.19606.
    """

    n: int = 4
    dynamic: bool = True
    norm: Norm = LayerNorm()
    offset: int = 0
    stride: int = 1

    def __post_init__(self):
        without_statistics(norm=self.norm)

    @property
    def kind(self) -> Hashable:
        return f"{self.n} hyper-connected streams"

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
                "mix": Spec(shape=(d_model, n), role="residual", init=zeros),
                "read": Spec(shape=(d_model,), role="residual", init=zeros),
                "write": Spec(shape=(d_model,), role="residual", init=zeros),
                "read_scale": Spec(shape=(), role="residual", init=small),
                "write_scale": Spec(shape=(), role="residual", init=small),
            }
        return specs

    def ends(self, d_model: int, depth: int) -> dict[str, Any]:
        return {"enter": {}, "leave": {"norm": self.norm.spec(d_model)}}

    def enter(self, params: Params, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[..., None, :, :], (*x.shape[:-2], self.n, *x.shape[-2:]))

    def leave(self, params: Params, stream: jax.Array) -> jax.Array:
        return self.norm.apply(params["norm"], self.view(stream))

    def view(self, stream: jax.Array) -> jax.Array:
        return jnp.sum(wide(stream), -3).astype(stream.dtype)

    def weights(self, params: Params, stream: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A_r (..., T, N, N), A_m (..., T, N) and b (..., T, N); T is 1 and there are no leading axes when static."""
        mix, read, write = params["mix"][None], params["read"][None], params["write"][None]
        if self.dynamic:
            own = params["dynamic"]
            h = jnp.moveaxis(wide(self.norm.apply(own["norm"], stream)), -3, -2)
            mix = mix + own["read_scale"] * jnp.tanh(h @ own["mix"])
            read = read + own["read_scale"] * jnp.tanh(h @ own["read"])
            write = write + own["write_scale"] * jnp.tanh(h @ own["write"])
        return mix, read, write

    def apply(self, params, scale, stream, branch, key=None):
        h = wide(stream)
        mix, read, write = self.weights(params, stream)
        x = jnp.sum(h * jnp.swapaxes(read, -1, -2)[..., None], -3).astype(stream.dtype)
        y, out = branch(times(scale["gamma"], self.norm.apply(params["norm"], x)))
        lanes = jnp.moveaxis(h, -3, -1)
        mixed = jnp.moveaxis(lanes @ mix, -1, -3)
        written = jnp.swapaxes(write, -1, -2)[..., None] * wide(y)[..., None, :, :]
        return add(scale["alpha"], mixed, scale["beta"], written).astype(stream.dtype), out


@dataclass(frozen=True, kw_only=True)
class HyperConnections(Recipe):
    """N parallel streams around pre-normed branches.

    Args:
        residual: the form; its `offset` and `stride` are set here for each sublayer.
        law: init of the matrices.

    Source: Zhu et al. 2024, arXiv:2409.19606.
    """

    residual: HyperConnected = HyperConnected()

    def form(self, sub: Sublayer, slot: int, layer: int, geometry: Geometry) -> Form:
        return replace(self.residual, offset=slot, stride=geometry.n_sublayers)
