"""Recipes: every published treatment of depth, each one small file around the same seams."""

from stackjax.recipe.around import Around
from stackjax.recipe.attention_residuals import AttentionResiduals
from stackjax.recipe.base import Geometry, Multiplier, Recipe
from stackjax.recipe.complete_p import CompleteP
from stackjax.recipe.deepnorm import DeepNorm
from stackjax.recipe.dense_former import DLCL, DenseFormer
from stackjax.recipe.hyper_connections import HyperConnections
from stackjax.recipe.manifold_hyper_connections import ManifoldHyperConnections
from stackjax.recipe.ngpt import NGPT
from stackjax.recipe.placement import PlainResidual, PostNorm, PreNorm, SandwichNorm, WithoutResidual
from stackjax.recipe.rezero import ReZero
from stackjax.recipe.stochastic_depth import StochasticDepth
from stackjax.recipe.value_residual import ValueResidual

__all__ = [
    "DLCL",
    "NGPT",
    "Around",
    "AttentionResiduals",
    "CompleteP",
    "DeepNorm",
    "DenseFormer",
    "Geometry",
    "HyperConnections",
    "ManifoldHyperConnections",
    "Multiplier",
    "PlainResidual",
    "PostNorm",
    "PreNorm",
    "ReZero",
    "Recipe",
    "SandwichNorm",
    "StochasticDepth",
    "ValueResidual",
    "WithoutResidual",
]
