"""Recipes in which depth only changes the init: GPT-2's, the same without norms, and DS-Init."""

from dataclasses import dataclass

from stackjax.parameter import MATRICES, Gain, Init, Normal, xavier
from stackjax.recipe.base import Geometry, Recipe, layer_index
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Plain, Post, Pre

LAST = frozenset({"out", "down", "cross_out"})
"""Roles of the matrices that write to the stream."""


def by_sublayers(role: str, geometry: Geometry) -> float:
    """1 / sqrt(number of sublayers in the stack) for matrices that write to the stream, 1 for all others."""
    sublayers = max(geometry.depth, 1) * geometry.n_sublayers
    return sublayers**-0.5 if role in LAST else 1.0


@dataclass(frozen=True, kw_only=True)
class ScaledInit(Recipe):
    """x + f(norm(x)), all matrices from N(0, 0.02), those that write to the stream divided by sqrt(2L).

    With cross-attention 2L becomes 3L, the number of sublayers.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """

    residual: Form = Pre()
    default_init: Init = Normal(0.02)

    def gain(self, role: str, geometry: Geometry) -> float:
        return by_sublayers(role, geometry)


@dataclass(frozen=True, kw_only=True)
class PlainScaledInit(ScaledInit):
    """x + f(x), no norm, kept from exploding by 1/sqrt(2L) on the init of the matrices that write to the stream.

    The control that separates what norms do at init from what they do in training.
    """

    residual: Form = Plain()
    default_init: Init = xavier


@dataclass(frozen=True, kw_only=True)
class DSInit(Recipe):
    """norm(x + f(x)), all matrices of layer l = 1 .. L born share / sqrt(l) times as large.

    Args:
        share: alpha in (0, 1].

    Source: Zhang et al. 2019, section 4, arXiv:1908.11365, as a Gaussian. The authors' code passes 1/sqrt(l) to an
    initialiser that takes it for a variance, which makes the standard deviation l^(-1/4); here it is the paper's.
    """

    residual: Form = Post()
    share: float = 1.0

    def gain(self, role: str, geometry: Geometry) -> Gain:
        return self.share * layer_index(geometry)[:, 0] ** -0.5 if role in MATRICES else 1.0
