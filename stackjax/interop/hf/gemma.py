"""Gemma: norms with scales stored around zero; since Gemma 2 as sandwiches, with local and global layers.

Gemma Team 2024, arXiv:2403.08295; Gemma Team 2024, arXiv:2408.00118; Gemma Team 2025, arXiv:2503.19786.
"""

from dataclasses import replace

from stackjax.feed_forward import gelu_tanh
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, norm
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import RMSNorm
from stackjax.recipe import PreNorm, SandwichNorm
from stackjax.recipe.residual import Pre, Sandwich

NORMS: Table = {
    "input_layernorm": norm("residual/attention/norm_in"),
    "post_attention_layernorm": norm("residual/attention/norm_out"),
    "pre_feedforward_layernorm": norm("residual/feed_forward/norm_in"),
    "post_feedforward_layernorm": norm("residual/feed_forward/norm_out"),
}
TENSORS: Table = causal.layers(NORMS, causal.ATTENTION, causal.FORWARD)


def gemma(config: Config) -> tuple[Model, Table]:
    """Gemma 1 from its config."""
    # Its first configurations say gelu and mean the approximation, as transformers reads them.
    config.only(use_bidirectional_attention=(None, False), hidden_activation=(None, "gelu_pytorch_tanh"))
    config.only(hidden_act=("gelu_pytorch_tanh", "gelu"))
    attention = causal.attention(config, bias=config.take("attention_bias", False), d_head=256, position=rotary(config))
    layer = Layer(sublayers=(attention, causal.feed_forward(config, gelu_tanh)))
    recipe = PreNorm(residual=Pre(norm=RMSNorm(eps=config.take("rms_norm_eps", 1e-6), unit_offset=True)))
    table = causal.layers(causal.PRE_NORM, causal.ATTENTION, causal.FORWARD)
    return causal.decoder(config, layer, recipe=recipe, tied=True, embedding={"scale": None}), table


def gemma2(config: Config) -> tuple[Model, Table]:
    """Gemma 2 from its config."""
    config.only(use_bidirectional_attention=(None, False), hidden_act=(None, config.take("hidden_activation", None)))
    scale = config.take("query_pre_attn_scalar", 256) ** -0.5
    cap = config.take("attn_logit_softcapping", 50.0)
    bias = config.take("attention_bias", False)
    attention = causal.attention(config, bias=bias, d_head=256, position=rotary(config), scale=scale, soft_cap=cap)
    local = replace(attention, window=config.take("sliding_window", 4096))
    sublayers = {"sliding_attention": local, "full_attention": attention}
    return _model(config, sublayers, pattern=2, soft_cap=config.take("final_logit_softcapping", 30.0))


def gemma3(config: Config) -> tuple[Model, Table]:
    """Gemma 3, the text model, from its config."""
    config.only(use_bidirectional_attention=(False, None), attn_logit_softcapping=None)
    positions = {
        "full_attention": rotary(config, kind="full_attention", base=1e6),
        "sliding_attention": rotary(
            config, kind="sliding_attention", older={"rope_theta": "rope_local_base_freq"}, scaling=None
        ),
    }
    scale = config.take("query_pre_attn_scalar", 256) ** -0.5
    qk_norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-6), unit_offset=True)
    bias = config.take("attention_bias", False)
    attention = causal.attention(config, bias=bias, d_head=256, scale=scale, qk_norm=qk_norm)
    sublayers = {kind: replace(attention, position=position) for kind, position in positions.items()}
    sublayers["sliding_attention"] = replace(sublayers["sliding_attention"], window=config.take("sliding_window", 4096))
    pattern, cap = config.take("sliding_window_pattern", 6), config.take("final_logit_softcapping", None)
    config.only(_sliding_window_pattern=pattern)
    return _model(config, sublayers, pattern=pattern, soft_cap=cap)


def _model(config: Config, attention: dict, *, pattern: int, soft_cap: float | None) -> tuple[Model, Table]:
    forward = causal.feed_forward(config, config.activation("hidden_activation", "gelu_pytorch_tanh"))
    kinds = causal.kinds(config, lambda i: "sliding_attention" if (i + 1) % pattern else "full_attention")
    layers = [Layer(sublayers=(attention[kind], forward)) for kind in kinds]
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-6), unit_offset=True)
    recipe = SandwichNorm(residual=Sandwich(norm=norm))
    return causal.decoder(
        config, *layers, recipe=recipe, tied=True, embedding={"scale": None}, head={"soft_cap": soft_cap}
    ), TENSORS


GEMMA = causal.architecture(gemma, "Gemma")
GEMMA2 = causal.architecture(gemma2, "Gemma2", inert=inert.GEMMA2)
GEMMA3 = causal.architecture(gemma3, "Gemma3")
