"""DyT: a dynamic tanh wherever pre-norm has a norm."""

from dataclasses import dataclass, replace
from typing import Any

import jax

from stackjax.norm import DynamicTanh, upcast
from stackjax.parameter import Spec, ones
from stackjax.recipe.base import Geometry, Multiplier, Recipe, is_attention
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Pre
from stackjax.sublayer import Sublayer


def first_slopes(d_model: int) -> tuple[float, float]:
    """alpha_0 before attention and elsewhere: by the width, and not by the depth.

    Source: Zhu et al. 2025, the authors' values for LLaMA (widths 4,096, 5,120 and 8,192), which fall with the width,
    and their default of 0.5 below, arXiv:2503.10622.
    """
    for width, slopes in ((8192, (0.2, 0.05)), (5120, (0.6, 0.15)), (4096, (0.8, 0.2))):
        if d_model >= width:
            return slopes
    return 0.5, 0.5


@dataclass(frozen=True, kw_only=True)
class ScaledPre(Pre):
    """`Pre` around a stream that enters through a learned factor, 1 at first."""

    def enter_spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {"scale": Spec(shape=(), role="embed_scale", init=ones)}

    def enter(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        return (scale * upcast(x)).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class DyT(Recipe):
    """x + f(g * tanh(alpha x) + b), the same at the end, and a learned factor on the embedding.

    Args:
        attention: alpha_0 before attention; None takes `first_slopes` of the width.
        others: alpha_0 before other sublayers. The end takes that of the last sublayer.

    Source: Zhu et al. 2025, eq. (3) and the section on LLaMA, arXiv:2503.10622. The paper's factor on the embedding
    starts at sqrt(D), which `Embedding` already multiplies by; here it starts at 1 with its learning rate divided by
    sqrt(D) and its epsilon multiplied by it, which under Adam gives the same steps.
    """

    residual: ScaledPre = ScaledPre()
    attention: float | None = None
    others: float | None = None

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        slope = self.attention if is_attention(sublayer) else self.others
        if slope is None:
            slope = first_slopes(geometry.d_model)[0 if is_attention(sublayer) else 1]
        return replace(self.residual, norm=DynamicTanh(alpha=slope))

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        if role != "embed_scale":
            return Multiplier()
        return Multiplier(learning_rate=geometry.d_model**-0.5, eps=geometry.d_model**0.5)
