"""FIRE: a small network of the distance, measured in units of how far the query stands."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import positive
from stackjax.parameter import Constant, FanIn, Spec, ones, zeros
from stackjax.position.relation import LearnedBias, distance
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True, kw_only=True)
class FIRE(LearnedBias):
    """f(psi(|i - j|) / psi(max(i, M))), psi(x) = log(|c| x + 1), f = relu network with one hidden layer.

    The argument of f stays within [0, 1] at any length, so that f is never asked about what it has not seen.

    Args:
        d_hidden: width of f.
        threshold: initial value of M, below which all queries measure alike; a factor on it is learned.

    Source: Li et al. 2024, arXiv:2310.04418, and the code in its appendix. One f for all layers is the paper's FIRE-S,
    the default here.
    """

    d_hidden: int = 32
    threshold: float = 512.0

    def __post_init__(self):
        positive(self, "d_hidden", "threshold")

    def bias_spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        return {
            "curvature": Spec(shape=(), role="relative", init=Constant(0.1)),
            "threshold": Spec(shape=(), role="relative", init=ones),
            "up": Spec(shape=(1, self.d_hidden), role="relative", init=FanIn()),
            "up_bias": Spec(shape=(self.d_hidden,), role="bias", init=zeros),
            "down": Spec(shape=(self.d_hidden, n_heads), role="relative", init=FanIn()),
            "down_bias": Spec(shape=(n_heads,), role="bias", init=zeros),
        }

    def relate(self, query: Positions, key: Positions) -> tuple[jax.Array, jax.Array]:
        return jnp.abs(distance(query, key)), query["index"][..., None]

    def logits(self, params: Params, relation: tuple[jax.Array, jax.Array]) -> jax.Array:
        far, reach = relation

        def psi(x: jax.Array) -> jax.Array:
            return jnp.log(jnp.abs(params["curvature"] * x) + 1)

        share = psi(far) / (psi(jnp.maximum(reach, jnp.abs(self.threshold * params["threshold"]))) + 1e-6)
        hidden = jax.nn.relu(share[..., None] @ params["up"] + params["up_bias"])
        return jnp.moveaxis(hidden @ params["down"] + params["down_bias"], -1, -3)
