"""Command-R, R+, R7B and A: attention and a gated feed-forward side by side, layer norms without a bias.

Cohere 2024; Cohere 2025 (Command A), arXiv:2504.00698.
"""

from dataclasses import replace

from stackjax.attention import Attention
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.heads import NormedByHead
from stackjax.interop.hf.mapping import Table, norm, within
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm, NoNorm
from stackjax.parallel import Parallel
from stackjax.position import NoPosition
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

TENSORS: Table = causal.layers(
    {"input_layernorm": norm("residual/parallel/norm")},
    within("", "parallel/", causal.ATTENTION | causal.FORWARD),
)


def _model(config: Config, norm: LayerNorm, *attention: Attention) -> tuple[Model, Table]:
    """Attention, one or one for each layer, beside the feed-forward."""
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    layers = [Layer(sublayers=(Parallel(sublayers=(each, forward)),)) for each in attention]
    head = {"scale": config.take("logit_scale", 0.0625)}
    recipe = PreNorm(residual=Pre(norm=norm))
    return causal.decoder(config, *layers, recipe=recipe, tied=True, head=head), TENSORS


def cohere(config: Config) -> tuple[Model, Table]:
    """Command-R and R+ from their config; the larger has normed heads."""
    norm, normed = LayerNorm(eps=config.take("layer_norm_eps", 1e-5), bias=False), config.take("use_qk_norm", False)
    attention = causal.attention(
        config,
        kind=NormedByHead if normed else Attention,
        bias=config.take("attention_bias", False),
        position=rotary(config, base=5e5, interleaved=True),
        qk_norm=norm if normed else NoNorm(),
    )
    return _model(config, norm, attention)


def cohere2(config: Config) -> tuple[Model, Table]:
    """Command-R7B and A from their config: global layers know no positions."""
    norm = LayerNorm(eps=config.take("layer_norm_eps", 1e-5), bias=False)
    every = config.take("sliding_window_pattern", 4)
    config.only(use_qk_norm=False, rotary_pct=1.0, layer_switch=every, order_of_interleaved_layers="local_attn_first")
    bias, position = config.take("attention_bias", False), rotary(config, interleaved=True)
    near = causal.attention(config, bias=bias, position=position, window=config.take("sliding_window", 4096))
    by_kind = {"sliding_attention": near, "full_attention": replace(near, position=NoPosition(), window=None)}
    kinds = causal.kinds(config, lambda i: "sliding_attention" if (i + 1) % every else "full_attention")
    return _model(config, norm, *(by_kind[kind] for kind in kinds))


COHERE = causal.architecture(cohere, "Cohere", inert=inert.COHERE)
COHERE2 = causal.architecture(cohere2, "Cohere2", inert=inert.COHERE2)
