"""Llama and Qwen 3: pre-norm decoders; Qwen 3 normalises queries and keys.

Grattafiori et al. 2024, arXiv:2407.21783; Yang et al. 2025, arXiv:2505.09388.
"""

from dataclasses import replace

from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import RMSNorm
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

TENSORS: Table = causal.layers(causal.PRE_NORM, causal.ATTENTION, causal.FORWARD)


def llama(config: Config) -> tuple[Model, Table]:
    """Llama from its config."""
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-6))
    attention = causal.attention(config, bias=config.take("attention_bias", False), position=rotary(config))
    activation = config.activation("hidden_act", "silu")
    forward = causal.feed_forward(config, activation, bias=config.take("mlp_bias", False))
    layer = Layer(sublayers=(attention, forward))
    return causal.decoder(config, layer, recipe=PreNorm(residual=Pre(norm=norm))), TENSORS


def qwen3(config: Config) -> tuple[Model, Table]:
    """Qwen 3 from its config."""
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-6))
    bias = config.take("attention_bias", False)
    attention = causal.attention(config, bias=bias, d_head=128, position=rotary(config), qk_norm=norm)
    first, window = config.take("max_window_layers", 28), config.take("sliding_window", 4096)
    sliding = config.take("use_sliding_window", False)
    kinds = causal.kinds(config, lambda i: "sliding_attention" if sliding and i >= first else "full_attention")
    windows = {"full_attention": None, "sliding_attention": window if sliding else None}
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    layers = [Layer(sublayers=(replace(attention, window=windows[kind]), forward)) for kind in kinds]
    return causal.decoder(config, *layers, recipe=PreNorm(residual=Pre(norm=norm))), TENSORS


LLAMA = causal.architecture(llama, "Llama", inert=inert.LLAMA)
QWEN3 = causal.architecture(qwen3, "Qwen3")
