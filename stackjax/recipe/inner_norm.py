"""Recipes with norms inside the branches: sub-LN, NormFormer, HybridNorm."""

import math
from dataclasses import dataclass

import jax

from stackjax.attention import Attention
from stackjax.latent_attention import LatentAttention
from stackjax.norm import LayerNorm, Norm, upcast
from stackjax.parameter import Init, Normal, Spec, ones
from stackjax.recipe.base import BRANCH, Geometry, Recipe, inside, is_attention
from stackjax.recipe.depth_init import by_sublayers
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Plain, Pre, Sandwich, SkipNormed
from stackjax.sublayer import Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class SubNorm(Recipe):
    """Sub-LN: x + W_out norm(f_inner(norm(x))), a second norm before each branch's last matrix.

    The matrices that a branch is proportional to are born larger in deeper stacks, the opposite of DeepNorm. With N
    encoder and M decoder layers the gain is sqrt(ln 2L) alone, sqrt(ln(3M) ln(2N) / 3) in an encoder with a decoder,
    sqrt(ln 3M) in a decoder with an encoder.

    Args:
        norm: inside the branch.

    Source: Wang et al. 2022 (Magneto), figure 2 and section 3, arXiv:2210.06423. As in the authors' code,
    cross-attention has no inner norm and a gain of 1.
    """

    residual: Form = Pre()
    norm: Norm = LayerNorm()

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        return sublayer if sublayer.reads_memory else inside(sublayer, inner_norm=self.norm)

    def gain(self, role: str, geometry: Geometry) -> float:
        n, m = geometry.encoder_depth, geometry.decoder_depth
        if role not in BRANCH or geometry.depth == 0:
            return 1.0
        if not n or not m:
            return math.sqrt(math.log(2 * geometry.depth))
        if geometry.side == "encoder":
            return math.sqrt(math.log(3 * m) * math.log(2 * n) / 3)
        return math.sqrt(math.log(3 * m))


@dataclass(frozen=True, kw_only=True)
class HeadGain(Norm):
    """A learned factor for each head, 1 at first, where attention may have a norm before its output projection.

    Args:
        n_heads: H.

    Source: Shleifer et al. 2021, section 2, arXiv:2110.09456.
    """

    n_heads: int

    def spec(self, d: int) -> dict[str, Spec]:
        return {"scale": Spec(shape=(self.n_heads,), role="norm", init=ones)}

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        heads = upcast(x).reshape(*x.shape[:-1], self.n_heads, -1) * params["scale"][:, None]
        return heads.reshape(x.shape).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class NormFormer(Recipe):
    """x + norm(W_out (g_h head_h)_h) and x + W_down norm(act(W_up norm(x))), both reading norm(x).

    Pre-norm with three additions: a gain for each head, a norm on the attention's output, one on the hidden layer.

    Args:
        attention: form around attention.
        norm: on the hidden layer.

    Source: Shleifer et al. 2021, section 2, arXiv:2110.09456. Head gains come before the output projection, as in
    the paper; the authors' code applies them after it. The optional scale on the feed-forward's skip is left out.
    """

    residual: Form = Pre()
    attention: Form = Sandwich()
    norm: Norm = LayerNorm()

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        attention = isinstance(sublayer, (Attention, LatentAttention))
        return inside(sublayer, inner_norm=HeadGain(n_heads=sublayer.n_heads) if attention else self.norm)

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        return self.attention if is_attention(sublayer) else self.residual


@dataclass(frozen=True, kw_only=True)
class HybridNorm(Recipe):
    """x + attention(norm(q), norm(k), norm(v)), then h + f(h) with h = norm(x); a norm at the end.

    The attention's input is not normalised, its queries, keys and values are, each head by itself. The feed-forward
    network's norm acts on its skip too, which makes it the post-norm of the attention before it.

    Args:
        attention: form around attention.
        norm: of queries, keys and values.
        first: form of both sublayers of the first layer; None (the default) treats it like the others, `Pre()` is the
            paper's HybridNorm*.

    Source: Zhuo et al. 2025, section 3, arXiv:2503.04598; Megatron's init (std 0.02, output matrices divided by
    sqrt(2L); the authors' 1.2B run took 1/sqrt(2.5 D) for 0.02).
    """

    residual: Form = SkipNormed()
    default_init: Init = Normal(0.02)
    attention: Form = Plain()
    norm: Norm = LayerNorm()
    first: Form | None = None

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        return inside(sublayer, qk_norm=self.norm, value_norm=self.norm) if is_attention(sublayer) else sublayer

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        if layer == 0 and self.first is not None:
            return self.first
        return self.attention if is_attention(sublayer) else self.residual

    def gain(self, role: str, geometry: Geometry) -> float:
        return by_sublayers(role, geometry)
