"""OLMo 1 to 3 and EXAONE 4: since OLMo 2 with norms behind the branches, and queries and keys normalised.

OLMo: Groeneveld et al. 2024, arXiv:2402.00838. OLMo 2: 2024, arXiv:2501.00656. OLMo 3: 2025, arXiv:2512.13961. EXAONE
4: LG AI Research 2025, arXiv:2507.11407.
"""

from dataclasses import replace
from typing import Any

from stackjax.attention import Attention
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.heads import NormedOverHeads, OverHeads, clipped
from stackjax.interop.hf.mapping import Table, norm
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm, RMSNorm
from stackjax.position import NoPosition
from stackjax.recipe import PreNorm, ResPostNorm
from stackjax.recipe.residual import BranchNormed, Pre

NORMS: Table = {
    "post_attention_layernorm": norm("residual/attention/norm"),
    "post_feedforward_layernorm": norm("residual/feed_forward/norm"),
}
TENSORS: Table = causal.layers(NORMS, causal.ATTENTION, causal.FORWARD)


def olmo(config: Config) -> tuple[Model, Table]:
    """OLMo 1 from its config: norms without parameters, and queries, keys and values clipped."""
    bias, clip = config.take("attention_bias", False), clipped(config.take("clip_qkv", None))
    attention = causal.attention(config, bias=bias, position=rotary(config), qk_norm=clip, value_norm=clip)
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=1e-5, scale=False, bias=False)))
    table = causal.layers(causal.PROJECTIONS, causal.FORWARD)
    return causal.decoder(config, Layer(sublayers=(attention, forward)), recipe=recipe), table


def attention(config: Config, norm: RMSNorm, **more: Any) -> Attention:
    """The attention of OLMoE, OLMo 2 and 3."""
    bias, qk_norm = config.take("attention_bias", False), OverHeads(norm=norm)
    return causal.attention(config, kind=NormedOverHeads, bias=bias, qk_norm=qk_norm, **more)


def _model(config: Config, norm: RMSNorm, *attention: Attention) -> tuple[Model, Table]:
    """Attention, one or one for each layer, and the gated feed-forward, with a norm behind each."""
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    layers = [Layer(sublayers=(each, forward)) for each in attention]
    return causal.decoder(config, *layers, recipe=ResPostNorm(residual=BranchNormed(norm=norm))), TENSORS


def olmo2(config: Config) -> tuple[Model, Table]:
    """OLMo 2 from its config."""
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-5))
    return _model(config, norm, attention(config, norm, position=rotary(config)))


def olmo3(config: Config) -> tuple[Model, Table]:
    """OLMo 3 from its config: OLMo 2 with local layers, whose rotation is never stretched."""
    norm, window = RMSNorm(eps=config.take("rms_norm_eps", 1e-5)), config.take("sliding_window", 4096)
    far = attention(config, norm, position=rotary(config, kind="full_attention", base=5e5))
    near = rotary(config, kind="sliding_attention", base=5e5, scaling=None)
    by_kind = {"full_attention": far, "sliding_attention": replace(far, position=near, window=window)}
    kinds = causal.kinds(config, lambda i: "sliding_attention" if (i + 1) % 4 else "full_attention")
    return _model(config, norm, *(by_kind[kind] for kind in kinds))


def exaone4(config: Config) -> tuple[Model, Table]:
    """EXAONE 4 from its config: where some layers are local, the others know no positions."""
    norm, window = RMSNorm(eps=config.take("rms_norm_eps", 1e-5)), config.take("sliding_window", 4096)
    attention = causal.attention(config, position=rotary(config), qk_norm=norm)
    every = config.take("sliding_window_pattern", 4)
    if isinstance(every, str):
        every = len(config.take("layer_types"))
    kinds = causal.kinds(config, lambda i: "sliding_attention" if window and (i + 1) % every else "full_attention")
    far = attention if window is None else replace(attention, position=NoPosition())
    by_kind = {"full_attention": far, "sliding_attention": replace(attention, window=window)}
    return _model(config, norm, *(by_kind[kind] for kind in kinds))


OLMO = causal.architecture(olmo, "Olmo")
OLMO2 = causal.architecture(olmo2, "Olmo2")
OLMO3 = causal.architecture(olmo3, "Olmo3")
EXAONE4 = causal.architecture(exaone4, "Exaone4", inert=inert.EXAONE4)
