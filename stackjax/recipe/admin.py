"""Admin: a learned weight on each skip, born from what the branches before it add."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.norm import LayerNorm, Norm, wide
from stackjax.parameter import Declared, Spec, is_spec, ones
from stackjax.recipe.base import Observe, Recipe
from stackjax.recipe.residual import Form, add, times, with_state
from stackjax.sublayer import Params


@dataclass(frozen=True, kw_only=True)
class SkipWeighted(Form):
    """norm(alpha w * x + beta f(gamma x)), w a learned vector.

    Source: Liu et al. 2020, section 4, arXiv:2004.08249.
    """

    norm: Norm = LayerNorm()

    def spec(self, d_model, depth):
        return {"norm": self.norm.spec(d_model), "skip": Spec(shape=(d_model,), role="residual", init=ones)}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], stream))
        total = add(scale["alpha"] * params["skip"], stream, scale["beta"], y)
        out = with_state(out, "norm", self.norm.state(params["norm"], total))
        return self.norm.apply(params["norm"], total), out


def growth(trace: Any) -> dict[str, jax.Array]:
    """Variances in one layer: of what enters it, summed over the branches before each branch, and over all of them."""
    found, total = {"stream": jnp.var(wide(trace.before))}, jnp.float32(0)
    for name, seen in trace.seen.items():
        found[f"before/{name}"] = total
        total = total + jnp.var(wide(seen["y"]))
    return {**found, "layer": total}


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
        even = _weighted(params, declaration, lambda sub: jnp.float32(1))
        seen = observe(even, growth)
        if not len(seen["layer"]):
            return params
        earlier = seen["stream"][0] + jnp.cumsum(seen["layer"]) - seen["layer"]
        start = jnp.arange(len(earlier)) == 0

        def weight(sub: str) -> jax.Array:
            before = seen[f"before/{sub}"]
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
