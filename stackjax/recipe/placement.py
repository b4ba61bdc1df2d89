"""Recipes that are nothing but a place for the norm."""

from dataclasses import dataclass

from stackjax.recipe.base import Recipe
from stackjax.recipe.residual import Form, NoResidual, Plain, Post, Pre, Sandwich


@dataclass(frozen=True, kw_only=True)
class PreNorm(Recipe):
    """x + f(norm(x)), a norm at the end. The default of today's models; trains at depth without warm-up.

    Source: Xiong et al. 2020, arXiv:2002.04745.
    """

    residual: Form = Pre()


@dataclass(frozen=True, kw_only=True)
class PostNorm(Recipe):
    """norm(x + f(x)), the original. Needs warm-up, and fails beyond a dozen layers.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    residual: Form = Post()


@dataclass(frozen=True, kw_only=True)
class SandwichNorm(Recipe):
    """x + norm(f(norm(x))).

    Source: Ding et al. 2021, arXiv:2105.13290.
    """

    residual: Form = Sandwich()


@dataclass(frozen=True, kw_only=True)
class PlainResidual(Recipe):
    """x + f(x), no norm: a control that grows by about sqrt(3) a layer."""

    residual: Form = Plain()


@dataclass(frozen=True, kw_only=True)
class WithoutResidual(Recipe):
    """f(x), no skip and no norm: a control in which signals and gradients are plain products over layers."""

    residual: Form = NoResidual()
