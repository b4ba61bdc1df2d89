"""Pre-norm for comparing positions: what makes learned tables of logits a fair match for the rest."""

from dataclasses import dataclass

from stackjax.recipe.base import Geometry, Multiplier
from stackjax.recipe.placement import PreNorm


@dataclass(frozen=True, kw_only=True)
class TableRecipe(PreNorm):
    """Pre-norm, with a learning rate of its own for tables of logits (T5's, the tree's) and no decay on them.

    A table's entry has to move by ones where a matrix's entry moves by hundredths, and Adam moves both alike; T5
    trains its table with Adafactor's relative steps for the same reason.

    Args:
        factor: on the learning rate of the tables.
    """

    factor: float = 10.0

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        if role == "relative_bias":
            return Multiplier(learning_rate=self.factor, weight_decay=0.0)
        return super().multiplier(role, geometry)
