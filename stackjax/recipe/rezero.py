"""ReZero: every layer starts as the identity."""

from dataclasses import dataclass

from stackjax.recipe.base import Recipe
from stackjax.recipe.residual import Form, Gated


@dataclass(frozen=True, kw_only=True)
class ReZero(Recipe):
    """x + g f(x), g = 0 at first, no norm.

    Source: Bachlechner et al. 2020, eq. (1), arXiv:2003.04887. The paper shares one g between the two sublayers of a
    layer; here each has its own.
    """

    residual: Form = Gated()
