"""Recipes that are nothing but a place for the norm."""

from dataclasses import dataclass
from math import floor

from stackjax.parameter import Init, Normal
from stackjax.recipe.base import Coefficients, Geometry, Recipe, with_coefficients
from stackjax.recipe.form import Form
from stackjax.recipe.residual import BranchNormed, NoResidual, Plain, Post, Pre, PrePost, Sandwich
from stackjax.sublayer import Sublayer


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
class PeriNorm(Recipe):
    """Peri-LN: x + norm(f(norm(x))), and a norm on the embedding as well as at the end.

    Source: Kim et al. 2025, section 3, arXiv:2502.02732.
    """

    residual: Form = Sandwich(embedding=True)


@dataclass(frozen=True, kw_only=True)
class ResPostNorm(Recipe):
    """x + norm(f(x)): only the branch's output is normalised, so that every branch adds the same amount.

    Source: OLMo 2 2024, eq. (1) and (2) and section 3.2 (every parameter from N(0, 0.02)), arXiv:2501.00656; first in
    Liu et al. 2021 (Swin V2), arXiv:2111.09883. OLMo 2's norm of queries and keys is the attention's own choice.
    """

    residual: Form = BranchNormed()
    default_init: Init = Normal(0.02)


@dataclass(frozen=True, kw_only=True)
class MixNorm(Recipe):
    """Mix-LN: post-norm in the first floor(share L) layers, pre-norm in the rest, and a norm at the end.

    Args:
        share: of the layers that are post-norm.
        first: form of these.

    Source: Li et al. 2024, arXiv:2412.13795 (share 1/4, LLaMA's std-0.02 init).
    """

    residual: Form = Pre()
    default_init: Init = Normal(0.02)
    share: float = 0.25
    first: Form = Post()

    def __post_init__(self):
        if not 0 <= self.share < 1:
            raise ValueError(f"share must be in [0, 1), since the last layers are pre-norm; got {self.share}")

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        return self.first if layer < floor(self.share * geometry.depth) else self.residual


@dataclass(frozen=True, kw_only=True)
class Keel(Recipe):
    """norm(alpha x + f(norm(x))) with alpha the number of sublayers in the stack, and no norm at the end.

    Source: Chen & Wei 2026, arXiv:2601.19895. The first sublayer is like the others; we could not confirm whether the
    authors treat it apart.
    """

    residual: Form = PrePost()

    def coefficients(self, geometry: Geometry) -> Coefficients:
        return with_coefficients(super().coefficients(geometry), alpha=geometry.depth * geometry.n_sublayers)


@dataclass(frozen=True, kw_only=True)
class PlainResidual(Recipe):
    """x + f(x), no norm: a control that grows by about sqrt(3) a layer."""

    residual: Form = Plain()


@dataclass(frozen=True, kw_only=True)
class WithoutResidual(Recipe):
    """f(x), no skip and no norm: a control in which signals and gradients are plain products over layers."""

    residual: Form = NoResidual()
