"""Manifold-constrained hyper-connections: the mixing of the streams neither creates nor loses anything."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.norm import Norm, RMSNorm, rms_norm, upcast
from stackjax.parameter import Constant, FanIn, Spec
from stackjax.recipe.base import Recipe
from stackjax.recipe.form import Function
from stackjax.recipe.hyper_connections import Streams, combine
from stackjax.sublayer import Params


def sinkhorn(logits: jax.Array, *, steps: int = 20, eps: float = 1e-6) -> jax.Array:
    """exp(logits), with rows and then columns divided by their sums, again and again: nearly doubly stochastic.

    The columns are exact, up to eps; the rows are as good as the number of steps makes them.

    Args:
        logits: (..., N, N)
        steps: how often each is divided, at least 1.
        eps: added to every sum, and to the entries after the first division of the rows.

    Returns:
        (..., N, N)

    Source: Xie et al. 2025, eq. (9), arXiv:2512.24880, on the transpose of its matrix; eps as in DeepSeek-V4's code.
    """

    def over(m: jax.Array, axis: int) -> jax.Array:
        return m / (jnp.sum(m, axis, keepdims=True) + eps)

    start = over(jax.nn.softmax(logits, -1) + eps, -2)
    return jax.lax.fori_loop(1, steps, lambda _, m: over(over(m, -1), -2), start)


@dataclass(frozen=True)
class Biases:
    """Initial biases of the weights [read (N), write (N), mix (N N)] before their sigmoids and Sinkhorn.

    read = sigmoid(-log(N - 1)) = 1/N, the mean of the streams; write = 2 sigmoid(0) = 1; mix: `diagonal` times I.
    """

    n: int
    diagonal: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
        read, write = jnp.full(self.n, -jnp.log(self.n - 1)), jnp.zeros(self.n)
        return jnp.concatenate((read, write, self.diagonal * jnp.eye(self.n).reshape(-1))).astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class ManifoldHyperConnected(Streams):
    """Streams with A_r doubly stochastic, A_m in (0, 1) and b in (0, 2), all three computed from all the streams.

        [m, w, R] = gate * (rms_norm(vec H) W) + bias
        A_m = sigmoid(m) + eps      b = 2 sigmoid(w)      A_r = sinkhorn(R)

    At the end the streams are summed with weights like A_m of their own, and normalised.

    Args:
        diagonal: d in the initial bias d I of R. 5 mixes 2 % of a stream with the others at first, for N = 4, and 0
            averages the streams in every sublayer.
        steps: of `sinkhorn`.
        eps: of `sinkhorn` and A_m; the paper has none.

    Raises:
        ValueError: fewer than 2 streams.

    Source: Xie et al. 2025, eq. (3) and (7) to (9), arXiv:2512.24880, where A_r is the transpose of its H_res. It
    states one initial value, gate = 0.01; biases and W (variance 1 / (N D)) are ours. What comes before the final norm
    is that of DeepSeek-V4's code.
    """

    norm: Norm = RMSNorm()
    diagonal: float = 5.0
    steps: int = 20
    eps: float = 1e-6

    def __post_init__(self):
        if self.n < 2:
            raise ValueError(f"mHC needs at least 2 streams; got n={self.n}; with one stream it is pre-norm")

    @property
    def kind(self) -> Hashable:
        return f"{self.n} manifold-constrained streams"

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        n = self.n
        return {
            "norm": self.norm.spec(d_model),
            "weights": Spec(shape=(n * d_model, 2 * n + n * n), role="mix", init=FanIn()),
            "bias": Spec(shape=(2 * n + n * n,), role="residual", init=Biases(n, self.diagonal)),
            "gate": Spec(shape=(3,), role="residual", init=Constant(0.01)),
        }

    def leave_spec(self, d_model: int, depth: int) -> dict[str, Any]:
        n = self.n
        return {
            "norm": self.norm.spec(d_model),
            "weights": Spec(shape=(n * d_model, n), role="mix", init=FanIn()),
            "bias": Spec(shape=(n,), role="residual", init=Constant(0.0)),
            "gate": Spec(shape=(), role="residual", init=Constant(0.01)),
        }

    def leave(self, stream: jax.Array, norm: Function, **parameters: jax.Array) -> jax.Array:
        weights, bias, gate = (parameters[name] for name in ("weights", "bias", "gate"))
        read = jax.nn.sigmoid(gate * self._project(weights, stream) + bias) + self.eps
        return norm(combine(read, upcast(stream)).astype(stream.dtype))

    def view(self, stream: jax.Array) -> jax.Array:
        return jnp.mean(upcast(stream), -3).astype(stream.dtype)

    def _project(self, weights: jax.Array, stream: jax.Array) -> jax.Array:
        flat = jnp.moveaxis(upcast(stream), -3, -2).reshape(*stream.shape[:-3], stream.shape[-2], -1)
        return rms_norm({}, flat) @ weights

    def weights(self, params: Params, stream: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        n = self.n
        gate = jnp.repeat(params["gate"], jnp.array((n, n, n * n)), total_repeat_length=2 * n + n * n)
        read, write, mix = jnp.split(gate * self._project(params["weights"], stream) + params["bias"], (n, 2 * n), -1)
        doubly = sinkhorn(mix.reshape(*mix.shape[:-1], n, n), steps=self.steps, eps=self.eps)
        return doubly, jax.nn.sigmoid(read) + self.eps, 2 * jax.nn.sigmoid(write)


@dataclass(frozen=True, kw_only=True)
class ManifoldHyperConnections(Recipe):
    """mHC: hyper-connections whose product over any number of layers stays doubly stochastic.

    Source: Xie et al. 2025, arXiv:2512.24880.
    """

    residual: ManifoldHyperConnected = ManifoldHyperConnected()
