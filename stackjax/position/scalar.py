"""The naive answer: add the position's index, as a number, along one learned direction."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import positive
from stackjax.parameter import FanIn, Spec
from stackjax.position.base import Position
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True, kw_only=True)
class Scalar(Position):
    """x_t + t / period * w, with a learned direction w (D,).

    Unbounded in t: a sequence longer than those trained on leaves the range that the layers have seen.

    Args:
        period: index at which the added vector reaches the length of w.

    Source: none; the baseline that every other encoding improves on.
    """

    period: float = 1.0

    def __post_init__(self):
        positive(self, "period")

    def stream_spec(self, d_model: int) -> dict[str, Any]:
        return {"direction": Spec(shape=(1, d_model), role="position", init=FanIn())}

    def embed(self, params: Params, position: Positions, x: jax.Array) -> jax.Array:
        index = position["index"].astype(jnp.float32)[..., None] / self.period
        return x + (index * params["direction"][0]).astype(x.dtype)
