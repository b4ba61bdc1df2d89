"""Recipes: over thirty published treatments of depth, each one small file around the same seams.

N is a norm, f a branch, L the depth, S = 2L the sublayers of a stack, l = 1 .. L a layer, s = 1 .. S a sublayer. The
init is Xavier's unless said; `N(0.02)` is Gaussian of that standard deviation, `branch` are the matrices value,
out, up, gate and down, `last` are out and down. Final: whether a norm ends the stack.

    recipe            update                          final   init                           depends on depth
    -- where the norm stands --
    PreNorm           x + f(N(x))                     yes                                    -
    PostNorm          N(x + f(x))                     no                                     -
    SandwichNorm      x + N(f(N(x)))                  yes                                    -
    PeriNorm          x + N(f(N(x))), N(embedding)    yes                                    -
    ResPostNorm       x + N(f(x))                     yes     N(0.02)                        -
    SubNorm           x + W N(inner(N(x)))            yes     branch sqrt(ln 2L)             init
    NormFormer        x + N(attn(N(x))), head         yes                                    -
                      gains; x + W N(hidden(N(x)))
    MixNorm           N(x + f(x)), then x + f(N(x))   yes     N(0.02)                        post-norm to layer L/4
    ResiDual          a = N(a + f(a)), b = b + f(a)   a+N(b)                                 -
    HybridNorm        x + attn(N(q), N(k), N(v));     yes     N(0.02), last / sqrt(2L)       init
                      h + f(h), h = N(x)
    Keel              N(a x + f(N(x)))                no                                     a = S
    -- numbers and gates on skip and branch --
    DeepNorm          N(a x + f(x))                   no      branch (8L)^-1/4               a = (2L)^1/4, init
    Admin             N(w_s * x + f(x)), w learned    no                                     w_s² = Var x_0 + sum Var f
    LayerNormScaling  x + f(N(x) / sqrt(l))           yes     N(0.02)                        1 / sqrt(l)
    ReZero            x + g_l f(x)                    no      g = 0                          -
    SkipInit          x + g_s f(x)                    no      g = 0                          -
    LayerScale        x + g_s * f(N(x)), g a vector   yes     N(0.02), g = 0.1, 1e-5, 1e-6   g at L to 18, 24, more
    Highway           (1 - t) x + t f(x), t learned   no      b = -log(2L)                   init
    ScaledInit        x + f(N(x))                     yes     N(0.02), last / sqrt(2L)       init
    DSInit            N(x + f(x))                     no      all / sqrt(l)                  init
    DepthMuP          x + m^-1/2 f(N(x)), m = L/L_0   yes     muP                            branch, learning rate, eps
    CompleteP         x + m^-1 f(N(x))                yes     muP                            branch, eps
    Weighted          any form, numbers given         -                                      as given
    -- no norm --
    TFixup            x + f(x)                        no      branch .67 L^-1/4, embedding   init
                                                              (9L)^-1/4
    DyT               x + f(g tanh(a x) + b)          tanh    a by width                     -
    PlainScaledInit   x + f(x)                        no      last / sqrt(2L)                init
    Shaped            .7 x + .7 f(x), attention       no      1/fan-in                       - (width only)
                      1 + softmax - uniform
    SigmaReparam      x + f(x), W -> g W / sigma(W)   no      N(0.02), g = 1                 -
    PlainResidual     x + f(x)                        no                                     - (a control)
    WithoutResidual   f(x)                            no                                     - (a control)
    -- wider streams --
    HyperConnections  H = A H + b f(N(c H))           yes     A = 1, b = 1, c = e_(s mod N)  init
    Manifold...       the same, A doubly stochastic   yes     A = 1, c = 1 / N, b = 1        -
    -- longer memory --
    ValueResidual     (value + 1st layer's value) / 2 base    base                           base
    DenseFormer       sum_k w_lk x_k after layer l    base    w_ll = 1                       w has L² / 2 numbers
    DLCL              layer l reads sum_k w_lk N(x_k) base    w_lk = 1 / l                   init
    AttentionRes...   sublayer s reads softmax_k      yes     q = 0                          -
                      (q_s N(y_k)) y_k
    -- on the sphere --
    NGPT              U(h + a * (U(f(h)) - h)),       no      all rows of unit norm,         -
                      U(x) = x / |x|                          a = 0.05
    -- in training --
    StochasticDepth   base, f left out with p_s       base    base                           p_s = s / S p_S
    -- in a loop (`stackjax.recurrence`) --
    InputInjection    each turn reads s + e, or       base    base                           -
                      [s; e] A; e entered the loop

DeepNorm, SubNorm and TFixup know other constants for an encoder with a decoder. Sources stand with each class.
"""

import functools
from collections.abc import Callable, Mapping

from stackjax.recipe import (
    admin,
    around,
    attention_residuals,
    base,
    complete_p,
    deepnorm,
    dense_former,
    depth_init,
    dynamic_tanh,
    form,
    gate,
    hyper_connections,
    inner_norm,
    input_injection,
    manifold_hyper_connections,
    ngpt,
    placement,
    residual,
    scaled,
    shaped,
    sigma_reparam,
    stochastic_depth,
    t_fixup,
    two_streams,
    value_residual,
)
from stackjax.recipe.admin import Admin
from stackjax.recipe.around import Around
from stackjax.recipe.attention_residuals import AttentionResiduals
from stackjax.recipe.base import (
    Coefficients,
    Geometry,
    Loop,
    Multiplier,
    Recipe,
    layer_index,
    sublayer_index,
    with_coefficients,
)
from stackjax.recipe.complete_p import CompleteP, DepthMuP
from stackjax.recipe.deepnorm import DeepNorm
from stackjax.recipe.dense_former import DLCL, DenseFormer
from stackjax.recipe.depth_init import DSInit, PlainScaledInit, ScaledInit
from stackjax.recipe.dynamic_tanh import DyT
from stackjax.recipe.gate import Highway, LayerScale, ReZero, SkipInit
from stackjax.recipe.hyper_connections import HyperConnections
from stackjax.recipe.inner_norm import HybridNorm, NormFormer, SubNorm
from stackjax.recipe.input_injection import InputInjection
from stackjax.recipe.manifold_hyper_connections import ManifoldHyperConnections
from stackjax.recipe.ngpt import NGPT
from stackjax.recipe.placement import (
    Keel,
    MixNorm,
    PeriNorm,
    PlainResidual,
    PostNorm,
    PreNorm,
    ResPostNorm,
    SandwichNorm,
    WithoutResidual,
)
from stackjax.recipe.scaled import LayerNormScaling, Weighted
from stackjax.recipe.shaped import Shaped
from stackjax.recipe.sigma_reparam import SigmaReparam
from stackjax.recipe.stochastic_depth import StochasticDepth
from stackjax.recipe.t_fixup import TFixup
from stackjax.recipe.two_streams import ResiDual
from stackjax.recipe.value_residual import ValueResidual

NAMES: Mapping[str, Callable[[], Recipe]] = {
    "pre_norm": PreNorm,
    "post_norm": PostNorm,
    "sandwich": SandwichNorm,
    "peri_norm": PeriNorm,
    "res_post_norm": ResPostNorm,
    "sub_norm": SubNorm,
    "norm_former": NormFormer,
    "mix_norm": MixNorm,
    "resi_dual": ResiDual,
    "hybrid_norm": HybridNorm,
    "keel": Keel,
    "deepnorm": DeepNorm,
    "admin": Admin,
    "layer_norm_scaling": LayerNormScaling,
    "rezero": ReZero,
    "skip_init": SkipInit,
    "layer_scale": LayerScale,
    "highway": Highway,
    "scaled_init": ScaledInit,
    "ds_init": DSInit,
    "depth_mup": DepthMuP,
    "complete_p": CompleteP,
    "t_fixup": TFixup,
    "dyt": DyT,
    "plain_scaled_init": PlainScaledInit,
    "shaped": Shaped,
    "sigma_reparam": SigmaReparam,
    "plain": PlainResidual,
    "no_residual": WithoutResidual,
    "hyper_connections": HyperConnections,
    "manifold_hyper_connections": ManifoldHyperConnections,
    "value_residual": ValueResidual,
    "dense_former": DenseFormer,
    "dlcl": DLCL,
    "attention_residuals": AttentionResiduals,
    "block_attention_residuals": functools.partial(AttentionResiduals, blocks=8),
    "ngpt": NGPT,
    "stochastic_depth": StochasticDepth,
}
"""The recipes by the names that command lines and results use, each called without arguments."""

__all__ = [
    "DLCL",
    "NAMES",
    "NGPT",
    "Admin",
    "Around",
    "AttentionResiduals",
    "Coefficients",
    "CompleteP",
    "DSInit",
    "DeepNorm",
    "DenseFormer",
    "DepthMuP",
    "DyT",
    "Geometry",
    "Highway",
    "HybridNorm",
    "HyperConnections",
    "InputInjection",
    "Keel",
    "LayerNormScaling",
    "LayerScale",
    "Loop",
    "ManifoldHyperConnections",
    "MixNorm",
    "Multiplier",
    "NormFormer",
    "PeriNorm",
    "PlainResidual",
    "PlainScaledInit",
    "PostNorm",
    "PreNorm",
    "ReZero",
    "Recipe",
    "ResPostNorm",
    "ResiDual",
    "SandwichNorm",
    "ScaledInit",
    "Shaped",
    "SigmaReparam",
    "SkipInit",
    "StochasticDepth",
    "SubNorm",
    "TFixup",
    "ValueResidual",
    "Weighted",
    "WithoutResidual",
    "admin",
    "around",
    "attention_residuals",
    "base",
    "complete_p",
    "deepnorm",
    "dense_former",
    "depth_init",
    "dynamic_tanh",
    "form",
    "gate",
    "hyper_connections",
    "inner_norm",
    "input_injection",
    "layer_index",
    "manifold_hyper_connections",
    "ngpt",
    "placement",
    "residual",
    "scaled",
    "shaped",
    "sigma_reparam",
    "stochastic_depth",
    "sublayer_index",
    "t_fixup",
    "two_streams",
    "value_residual",
    "with_coefficients",
]
