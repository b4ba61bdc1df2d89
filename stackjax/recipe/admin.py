"""Admin: a learned weight on each skip, born from what the branches before it add."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.norm import upcast
from stackjax.parameter import Declared, Spec, is_spec, ones
from stackjax.recipe.base import Observe, Recipe
from stackjax.recipe.form import Form, FormCoefficients, Function, add
from stackjax.recipe.residual import Normed
from stackjax.sublayer import Params


@dataclass(frozen=True, kw_only=True)
class SkipWeighted(Normed):
    """norm(alpha w * x + beta f(gamma x)), w a learned vector.

    Source: Liu et al. 2020, section 4, arXiv:2004.08249.
    """

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {**super().spec(d_model, depth), "skip": Spec(shape=(d_model,), role="residual", init=ones)}

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, norm: Function, skip: jax.Array) -> jax.Array:
        return norm(add(c.alpha * skip, x, c.beta, f(c.gamma * x)))


def growth(trace: Any) -> dict[str, jax.Array]:
    """Variances in one layer: of what enters it, summed over the branches before each branch, and over all of them."""
    variances, total = {"stream": jnp.var(upcast(trace.before))}, jnp.float32(0)
    for name, branch in trace.intermediates.items():
        variances[f"before/{name}"] = total
        total = total + jnp.var(upcast(branch["output"]))
    return {**variances, "layer": total}


@dataclass(frozen=True, kw_only=True)
class Admin(Recipe):
    """norm(w_s * x + f_s(x)) with w_s² = Var[x_0] + Var[f_1] + ... + Var[f_{s-1}] at first, and w_1 = 1.

    `calibrate` profiles one batch with all w at 1 and then sets them; without it this is post-norm. An encoder and a
    decoder are calibrated each by itself, the decoder beside the calibrated encoder.

    Source: Liu et al. 2020, section 4.2, arXiv:2004.08249. The authors' code sets each w as its profiling pass goes, so
    that later branches already see it; the variances differ by what one norm leaves of that.
    """

    residual: Form = SkipWeighted()

    def calibrate(self, params: Params, declaration: Params, observe: Observe) -> Params:
        even = _weighted(params, declaration, lambda sublayer: jnp.float32(1))
        variances = observe(even, growth)
        if not len(variances["layer"]):
            return params
        earlier = variances["stream"][0] + jnp.cumsum(variances["layer"]) - variances["layer"]
        start = jnp.arange(len(earlier)) == 0

        def weight(sublayer: str) -> jax.Array:
            before = variances[f"before/{sublayer}"]
            return jnp.where(start & (before == 0), 1, jnp.sqrt(earlier + before))

        return _weighted(params, declaration, weight)


def _weighted(params: Params, declaration: Params, weight: Callable[[str], jax.Array]) -> Params:
    """`params` with every skip's vector set to its sublayer's number, () or (L,)."""

    def one(declared: Declared, leaf: jax.Array) -> jax.Array:
        group, *rest = declared.name.split("/")
        if group != "residual" or rest[1:] != ["skip"]:
            return leaf
        if not declared.stacked:
            raise ValueError("Admin gives each layer skip weights of its own, so its layers cannot share parameters")
        return jnp.broadcast_to(declared.spread(weight(rest[0])), leaf.shape).astype(leaf.dtype)

    return jax.tree.map(one, declaration, params, is_leaf=is_spec)
