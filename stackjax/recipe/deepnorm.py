"""DeepNorm: a heavier skip and lighter branches, so that an update moves the model by a bounded amount at any depth."""

from dataclasses import dataclass

from stackjax.recipe.base import BRANCH, CROSS_BRANCH, Coefficients, Geometry, Recipe, with_coefficients
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Post


def constants(geometry: Geometry) -> tuple[float, float]:
    """alpha and beta of this stack.

    Source: Wang et al. 2022, figure 2 and table 2, arXiv:2203.00555. With an encoder and a decoder, the encoder's beta
    is 0.87 (N⁴M)^(-1/16); the 1.15 (...) of a widely used implementation is its inverse by mistake, and only 0.87
    satisfies the paper's own 2 alpha² beta² = 1.
    """
    n, m = geometry.encoder_depth, geometry.decoder_depth
    if geometry.depth == 0:
        return 1.0, 1.0
    if not n or not m:
        return (2 * geometry.depth) ** 0.25, (8 * geometry.depth) ** -0.25
    if geometry.side == "encoder":
        return 0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)
    return (3 * m) ** 0.25, (12 * m) ** -0.25


@dataclass(frozen=True, kw_only=True)
class DeepNorm(Recipe):
    """norm(alpha x + f(x)), with the init of the branch's matrices scaled by beta.

    Source: Wang et al. 2022, arXiv:2203.00555. The gate of a gated feed-forward, which the paper does not have, is
    scaled like the other feed-forward matrices.
    """

    residual: Form = Post()

    def coefficients(self, geometry: Geometry) -> Coefficients:
        return with_coefficients(super().coefficients(geometry), alpha=constants(geometry)[0])

    def gain(self, role: str, geometry: Geometry) -> float:
        return constants(geometry)[1] if role in BRANCH | CROSS_BRANCH else 1.0
