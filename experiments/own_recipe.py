"""A recipe of your own, whole, in one file outside the library: every sublayer ends with an equal share of the stream.

    python -m experiments.depth_sweep --recipes pre_norm experiments.own_recipe:recipe --depths 4 16 64

The question it asks: pre-norm lets the stream grow, so that each later branch is a smaller part of it. What if the
stream kept its size, and sublayer s = 1 .. S were mixed in as the s-th term of a running mean?

    x_s = sqrt(s / (s + 1)) x_{s-1} + sqrt(1 / (s + 1)) norm(f_s(x_{s-1}))

For independent terms the variance stays 1, and at the end each of the S + 1 terms holds 1 / (S + 1) of it. S updates
that agree move x_S by S / sqrt(S + 1), so the learning rate of the matrices is divided by sqrt(S + 1).

`stackjax.testing.check_recipe(recipe)` says whether it keeps the promises that recipes inside the library keep.
"""

from dataclasses import dataclass

import jax.numpy as jnp

import stackjax as sj
from stackjax.norm import Norm
from stackjax.recipe import Coefficients, Geometry, Multiplier, Recipe, sublayer_index, with_coefficients
from stackjax.recipe.form import Form, add


@dataclass(frozen=True, kw_only=True)
class Mixed(Form):
    """alpha x + beta norm(f(x)): how a branch joins the stream. The stack ends as it is, already of unit size."""

    norm: Norm = sj.RMSNorm()
    norms = ("norm",)

    def update(self, x, f, c, norm):
        return add(c.alpha, x, c.beta, norm(f(x)))


@dataclass(frozen=True, kw_only=True)
class EqualShares(Recipe):
    """The form, its coefficients by depth, and the learning rates that go with them."""

    residual: Form = Mixed()

    def coefficients(self, geometry: Geometry) -> Coefficients:
        s = sublayer_index(geometry)
        plain = super().coefficients(geometry)
        return with_coefficients(plain, alpha=jnp.sqrt(s / (s + 1)), beta=jnp.sqrt(1 / (s + 1)))

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        if role not in sj.parameter.MATRICES:
            return Multiplier()
        return Multiplier(learning_rate=(geometry.depth * geometry.n_sublayers + 1) ** -0.5)


recipe = EqualShares()
