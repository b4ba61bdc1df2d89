"""A recipe of your own, whole, in one file outside the library: every sublayer ends with an equal share of the stream.

    python -m experiments.depth_sweep --recipes pre_norm experiments.own_recipe:recipe --depths 4 16 64

The question it asks: pre-norm lets the stream grow, so that each later branch is a smaller part of it. What if the
stream kept its size, and sublayer s = 1 .. S were mixed in as the s-th term of a running mean?

    x_s = sqrt(s / (s + 1)) x_{s-1} + sqrt(1 / (s + 1)) norm(f_s(x_{s-1}))

For independent terms the variance stays 1, and at the end each of the S + 1 terms holds 1 / (S + 1) of it. S updates
that agree move x_S by S / sqrt(S + 1), so the learning rate of the matrices is divided by sqrt(S + 1).
"""

from dataclasses import dataclass

import jax.numpy as jnp

import stackjax as sj
from stackjax.recipe import Geometry, Multiplier, Recipe
from stackjax.recipe.residual import Form, add


@dataclass(frozen=True, kw_only=True)
class Mixed(Form):
    """alpha x + beta norm(f(x)): how a branch joins the stream. The stack ends as it is, already of unit size."""

    norm: sj.RMSNorm = sj.RMSNorm()

    def spec(self, d_model, depth):
        return {"norm": self.norm.spec(d_model)}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(stream)
        return add(scale["alpha"], stream, scale["beta"], self.norm.apply(params["norm"], y)), out


@dataclass(frozen=True, kw_only=True)
class EqualShares(Recipe):
    """The form, its numbers by depth, and the learning rates that go with them."""

    residual: Form = Mixed()

    def schedule(self, geometry: Geometry):
        shape = (geometry.depth, geometry.n_sublayers)
        s = jnp.arange(1, geometry.depth * geometry.n_sublayers + 1, dtype=jnp.float32).reshape(shape)
        plain = super().schedule(geometry)
        return {**plain, "sub": {**plain["sub"], "alpha": jnp.sqrt(s / (s + 1)), "beta": jnp.sqrt(1 / (s + 1))}}

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        if role not in sj.parameter.MATRICES:
            return Multiplier()
        return Multiplier(learning_rate=(geometry.depth * geometry.n_sublayers + 1) ** -0.5)


recipe = EqualShares()
