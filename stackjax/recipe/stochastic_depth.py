"""Stochastic depth: a network that is short while it trains and deep afterwards."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from stackjax.recipe.around import Around, AroundForm
from stackjax.recipe.base import Geometry, Schedule, with_sub
from stackjax.recipe.residual import Form, times
from stackjax.sublayer import Sublayer


@dataclass(frozen=True, kw_only=True)
class DropBranch(AroundForm):
    """Any form, its branch f replaced by b f with b in {0, 1} while training, and by p f in evaluation (key None).

    p is the schedule's number `keep`. A dropped branch is computed and multiplied by zero.

    Args:
        each: whether b is drawn once for the batch or for each example (all leading axes of x).
    """

    each: Literal["batch", "example"] = "batch"

    def apply(self, params, scale, stream, branch, key=None):
        drop_key, inner_key = (None, None) if key is None else jax.random.split(key)

        def sometimes(x, **more):
            y, out = branch(x, **more)
            if drop_key is None:
                return times(scale["keep"], y), out
            shape = (*y.shape[:-2], 1, 1) if self.each == "example" else ()
            return jnp.where(jax.random.bernoulli(drop_key, scale["keep"], shape), y, 0), out

        return self.inner.apply(params, scale, stream, sometimes, inner_key)


@dataclass(frozen=True, kw_only=True)
class StochasticDepth(Around):
    """x + b_s f(x), P(b_s = 1) = 1 - s/S (1 - last), over the S sublayers of the stack, around any recipe.

    Args:
        last: probability with which the last sublayer is kept.
        each: whether sublayers are dropped for the whole batch or for each example by itself.

    Source: Huang et al. 2016, eq. (2), (4) and (5), arXiv:1603.09382: drawn once for each mini-batch, and p f in
    evaluation. Their speed-up is not had: a dropped branch is computed.
    """

    last: float = 0.5
    each: Literal["batch", "example"] = "batch"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.last <= 1:
            raise ValueError(f"last is a probability, between 0 and 1; got {self.last}")

    def form(self, sub: Sublayer, slot: int, layer: int, geometry: Geometry) -> Form:
        return DropBranch(inner=self.base.form(sub, slot, layer, geometry), each=self.each)

    def schedule(self, geometry: Geometry) -> Schedule:
        shape = (geometry.depth, geometry.n_sublayers)
        s = jnp.arange(1, shape[0] * shape[1] + 1, dtype=jnp.float32).reshape(shape)
        return with_sub(self.base.schedule(geometry), keep=1 - s / max(s.size, 1) * (1 - self.last))
