"""CompleteP: hyper-parameters found on a small model hold for a wide and deep one."""

from dataclasses import dataclass
from typing import Any

from stackjax.check import positive
from stackjax.parameter import MATRICES, Normal
from stackjax.recipe.base import Coefficients, Geometry, Multiplier, Recipe, with_coefficients
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Pre

ENDS = frozenset({"embed", "unembed", "position", "final_norm", "head_bias", "embed_scale"})


@dataclass(frozen=True, kw_only=True)
class CompleteP(Recipe):
    """x + m_L^(-alpha) f(norm(x)), with init, learning rates, weight decay and epsilon that follow depth and width.

    With m_L = L / base_depth and m_D = D / base_width:

        role                init variance   learning rate          weight decay   epsilon
        hidden matrices     / m_D           m_D^-1 m_L^(alpha-1)   m_D            m_D^-1 m_L^-alpha
        hidden bias, norm   .               m_L^(alpha-1)          .              m_D^-1 m_L^-alpha
        the two ends        .               .                      .              m_D^-1

    and logits are divided by m_D. At L = base_depth and D = base_width it is pre-norm to the bit.

    The width rule of the init is already in initialisers that divide by a fan; a `Normal` one is divided here, and
    those of embedding and head, which divide by sqrt(D), are multiplied: leave their `std` alone. Embeddings keep their
    step size against a stream of unit RMS although `Embedding` multiplies them by sqrt(D). Keep the head width fixed as
    D grows, as the paper does: then its 1/K attention scale is a constant. Parameters of positions inside attention
    count as vectors, Transformer-XL's matrix too. The table is AdamW's; under Muon the factors are the same.

    Args:
        alpha: 1 is CompleteP; 1/2 is depth-muP; 0 leaves depth alone.
        base_depth: depth at which hyper-parameters were found.
        base_width: width at which they were found; None leaves the width alone.

    Raises:
        ValueError: with a base_width, an output with a std of its own or a dense layer in front.

    Source: Dey et al. 2025, table 1, arXiv:2505.01618.
    """

    residual: Form = Pre()
    alpha: float = 1.0
    base_depth: int = 2
    base_width: int | None = None

    def __post_init__(self):
        positive(self, "base_depth", "base_width")

    def _ratios(self, geometry: Geometry) -> tuple[float, float]:
        return max(geometry.depth, 1) / self.base_depth, geometry.d_model / (self.base_width or geometry.d_model)

    def adapt_head(self, head: Any, geometry: Geometry) -> Any:
        if self.base_width is not None and (head.std is not None or head.transform is not None):
            raise ValueError(
                "CompleteP's width rules are for an output matrix born with std 1/sqrt(D) and nothing in front of it; "
                f"got std={head.std}, transform={head.transform}; leave them out, or base_width"
            )
        return head

    def coefficients(self, geometry: Geometry) -> Coefficients:
        m_depth, m_width = self._ratios(geometry)
        coefficients = with_coefficients(super().coefficients(geometry), beta=m_depth**-self.alpha)
        return {
            **coefficients,
            "embed": coefficients["embed"] * m_width**-0.5,
            "unembed": coefficients["unembed"] / m_width,
        }

    def gain(self, role: str, geometry: Geometry) -> float:
        m_width = self._ratios(geometry)[1]
        if role in ("embed", "unembed"):
            return m_width**0.5
        return m_width**-0.5 if role in MATRICES and isinstance(self.default_init, Normal) else 1.0

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        m_depth, m_width = self._ratios(geometry)
        if role in ENDS:
            return Multiplier(eps=1 / m_width)
        by_depth, eps = m_depth ** (self.alpha - 1), m_depth**-self.alpha / m_width
        if role in MATRICES or role == "router":
            return Multiplier(learning_rate=by_depth / m_width, weight_decay=m_width, eps=eps)
        return Multiplier(learning_rate=by_depth, eps=eps)


@dataclass(frozen=True, kw_only=True)
class DepthMuP(CompleteP):
    """x + m_L^(-1/2) f(norm(x)): `CompleteP` with alpha = 1/2.

    Source: Bordelon et al. 2023, arXiv:2309.16620; Yang et al. 2023, arXiv:2310.02244; as the alpha = 1/2 column of
    Dey et al. 2025, table 1, arXiv:2505.01618.
    """

    alpha: float = 0.5
