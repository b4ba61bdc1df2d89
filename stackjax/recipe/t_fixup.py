"""T-Fixup: no norm and no warm-up, by init alone."""

from dataclasses import dataclass

from stackjax.recipe.base import BRANCH, CROSS_BRANCH, Geometry, Recipe
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Plain


@dataclass(frozen=True, kw_only=True)
class TFixup(Recipe):
    """x + f(x), no norm, embeddings and the matrices of each branch scaled down by L^(-1/4).

    Gain of the branch's matrices (queries and keys keep 1): 0.67 N^(-1/4) in an encoder of N layers, (9M)^(-1/4) in
    a decoder of M layers with cross-attention. Embeddings, from N(0, 1/D): (9N)^(-1/4) and (9M)^(-1/4).

    Source: Huang et al. 2020, section 3.2, Proceedings of Machine Learning Research 119. The paper has no decoder-only
    model; a decoder without an encoder has the sublayers of an encoder layer, so it takes the encoder's constants. The
    gate of a gated feed-forward, which the paper does not have, is scaled like the other matrices. An embedding that
    both sides share is the encoder's, as in the authors' code. It is trained without warm-up.
    """

    residual: Form = Plain()

    def gain(self, role: str, geometry: Geometry) -> float:
        depth = max(geometry.depth, 1)
        crossed = geometry.side == "decoder" and geometry.encoder_depth > 0
        if role == "embed":
            return (9 * depth) ** -0.25
        if role in BRANCH | CROSS_BRANCH:
            return (9 * depth) ** -0.25 if crossed else 0.67 * depth**-0.25
        return 1.0
