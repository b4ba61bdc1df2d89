"""Stochastic depth: a network that is short while it trains and deep afterwards."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from stackjax.recipe.around import Around, AroundForm
from stackjax.recipe.base import Coefficients, Geometry, sublayer_index, with_coefficients
from stackjax.recipe.form import Branch, Form, FormCoefficients
from stackjax.recipe.residual import NoResidual
from stackjax.sublayer import Aux, Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class DropBranch(AroundForm):
    """Any form, its beta replaced by b beta with b in {0, 1} while training, and by p beta in evaluation (key None).

    p is the coefficient `keep`. beta multiplies what the form adds to its skip, behind any norm of the branch's
    output. A dropped branch is computed and multiplied by zero.

    Args:
        each: whether b is drawn once for the batch or for each example (all leading axes of x).
    """

    each: Literal["batch", "example"] = "batch"

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        super().check(layers, looped)
        under = self.inner
        while isinstance(under, AroundForm):
            under = under.inner
        if isinstance(under, NoResidual):
            raise ValueError("stochastic depth needs a skip: without one, nothing is left where a branch is dropped")

    def apply(
        self, params: Params, c: FormCoefficients, stream: Any, branch: Branch, key: jax.Array | None = None
    ) -> tuple[Any, Aux]:
        if key is None:
            inner_key, share = None, c.keep
        else:
            drop_key, inner_key = jax.random.split(key)
            shape = (*self.view(stream).shape[:-2], 1, 1) if self.each == "example" else ()
            share = jax.random.bernoulli(drop_key, c.keep, shape).astype(jnp.float32)
        return self.inner.apply(params, c.replace(beta=share * c.beta), stream, branch, inner_key)


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

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        return DropBranch(inner=self.base.form(sublayer, index, layer, geometry), each=self.each)

    def coefficients(self, geometry: Geometry) -> Coefficients:
        s = sublayer_index(geometry)
        return with_coefficients(self.base.coefficients(geometry), keep=1 - s / max(s.size, 1) * (1 - self.last))
