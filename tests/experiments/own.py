"""Recipes of one's own, named by dotted path in the tests."""

from dataclasses import dataclass

from stackjax import recipe


@dataclass(frozen=True, kw_only=True)
class Broken(recipe.PreNorm):
    """Raises when a model without layers is described."""

    def gain(self, role, geometry):
        if geometry.depth == 0:
            raise RuntimeError("no init for you\nsecond line")
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Hungry(recipe.PreNorm):
    """Runs out of memory when a model without layers is drawn."""

    def gain(self, role, geometry):
        if geometry.depth == 0 and role == "final_norm":
            raise MemoryError("RESOURCE_EXHAUSTED: 3 GiB")
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Endless(recipe.PreNorm):
    """Begins with logits that are no numbers."""

    def gain(self, role, geometry):
        return float("inf") if role == "unembed" else 1.0


instance = recipe.PreNorm()
not_a_recipe = 3
