"""Recipes: every published treatment of depth, each one small file around the same seams."""

from stackjax.recipe.base import Geometry, Multiplier, Recipe
from stackjax.recipe.complete_p import CompleteP
from stackjax.recipe.deepnorm import DeepNorm
from stackjax.recipe.hyper_connections import HyperConnections
from stackjax.recipe.placement import PlainResidual, PostNorm, PreNorm, SandwichNorm, WithoutResidual
from stackjax.recipe.rezero import ReZero

__all__ = [
    "CompleteP",
    "DeepNorm",
    "Geometry",
    "HyperConnections",
    "Multiplier",
    "PlainResidual",
    "PostNorm",
    "PreNorm",
    "ReZero",
    "Recipe",
    "SandwichNorm",
    "WithoutResidual",
]
