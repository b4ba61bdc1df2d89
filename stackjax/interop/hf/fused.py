"""Phi-3, GLM and GLM-4: decoders that store projections side by side in one matrix.

Phi-3: Abdin et al. 2024, arXiv:2404.14219. GLM-4: GLM Team 2024, arXiv:2406.12793.
"""

from stackjax.attention import Attention
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm
from stackjax.interop.hf.rope import ORIGINAL, rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import RMSNorm
from stackjax.position.rotary_scaling import Scaling
from stackjax.recipe import PreNorm, SandwichNorm
from stackjax.recipe.residual import Pre, Sandwich

PHI3_TENSORS: Table = causal.layers(
    causal.PRE_NORM,
    {"self_attn.qkv_proj": dense("attention/query", "attention/key", "attention/value")},
    {"self_attn.o_proj": dense("attention/out")},
    causal.GATE_AND_UP,
)
SANDWICH: Table = {
    "input_layernorm": norm("residual/attention/norm_in"),
    "post_self_attn_layernorm": norm("residual/attention/norm_out"),
    "post_attention_layernorm": norm("residual/feed_forward/norm_in"),
    "post_mlp_layernorm": norm("residual/feed_forward/norm_out"),
}


def phi3(config: Config) -> tuple[Model, Table]:
    """Phi-3, 3.5 and 4 from their config.

    Raises:
        ValueError: stretched positions without the original length, for which `transformers` takes 4096.
    """
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-5))
    position = rotary(config, d_head=causal.head_width(config))
    if position.scaling != Scaling() and config.take(ORIGINAL, None) is None:
        raise ValueError(f"config.json lacks {ORIGINAL}, which Phi-3 has beside its rope_parameters")
    attention = causal.attention(config, position=position, window=config.take("sliding_window", None))
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    layer = Layer(sublayers=(attention, forward))
    return causal.decoder(config, layer, recipe=PreNorm(residual=Pre(norm=norm))), PHI3_TENSORS


def _attention(config: Config) -> Attention:
    position = rotary(config, d_head=causal.head_width(config, 128), share=0.5, interleaved=True)
    bias = causal.QUERY_KEY_VALUE if config.take("attention_bias", True) else ()
    return causal.attention(config, bias=bias, d_head=128, position=position)


def glm(config: Config) -> tuple[Model, Table]:
    """GLM from its config: pre-norm."""
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    recipe = PreNorm(residual=Pre(norm=RMSNorm(eps=config.take("rms_norm_eps", 1.5625e-7))))
    table = causal.layers(causal.PRE_NORM, causal.ATTENTION, causal.GATE_AND_UP)
    return causal.decoder(config, Layer(sublayers=(_attention(config), forward)), recipe=recipe), table


def glm4(config: Config) -> tuple[Model, Table]:
    """GLM-4-0414 from its config: GLM with sandwich norms."""
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    recipe = SandwichNorm(residual=Sandwich(norm=RMSNorm(eps=config.take("rms_norm_eps", 1.5625e-7))))
    table = causal.layers(SANDWICH, causal.ATTENTION, causal.GATE_AND_UP)
    return causal.decoder(config, Layer(sublayers=(_attention(config), forward)), recipe=recipe), table


PHI3 = causal.architecture(phi3, "Phi3", inert=inert.PHI3)
GLM = causal.architecture(glm, "Glm")
GLM4 = causal.architecture(glm4, "Glm4")
