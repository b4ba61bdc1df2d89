"""Llama and its nearest kin: pre-norm decoders with rotary positions and a gated feed-forward.

Llama: Grattafiori et al. 2024, arXiv:2407.21783. Mistral: Jiang et al. 2023, arXiv:2310.06825. Qwen 2 and 3: Yang et
al. 2024, arXiv:2407.10671, and 2025, arXiv:2505.09388. SmolLM 3: Bakouch et al. 2025. Granite 3: IBM 2024.
"""

from dataclasses import replace

from stackjax.attention import Attention
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import RMSNorm
from stackjax.position import NoPosition
from stackjax.recipe import PreNorm, Weighted
from stackjax.recipe.residual import Pre

TENSORS: Table = causal.layers(causal.PRE_NORM, causal.ATTENTION, causal.FORWARD)


def _model(config: Config, *attention: Attention, mlp_bias: bool = False, tied: bool = False) -> tuple[Model, Table]:
    """Pre-norm around attention, one or one for each layer, and the gated feed-forward."""
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"), bias=mlp_bias)
    layers = [Layer(sublayers=(sublayer, forward)) for sublayer in attention]
    recipe = PreNorm(residual=Pre(norm=RMSNorm(eps=config.take("rms_norm_eps", 1e-6))))
    return causal.decoder(config, *layers, recipe=recipe, tied=tied), TENSORS


def llama(config: Config) -> tuple[Model, Table]:
    """Llama from its config."""
    attention = causal.attention(config, bias=config.take("attention_bias", False), position=rotary(config))
    return _model(config, attention, mlp_bias=config.take("mlp_bias", False))


def mistral(config: Config) -> tuple[Model, Table]:
    """Mistral from its config."""
    window = config.take("sliding_window", 4096)
    return _model(config, causal.attention(config, position=rotary(config), window=window))


def windows(config: Config) -> list[int | None]:
    """Each layer's window in Qwen 2 and 3: from max_window_layers on, if they are asked for at all."""
    first, window = config.take("max_window_layers", 28), config.take("sliding_window", 4096)
    window = window if config.take("use_sliding_window", False) else None
    kinds = causal.kinds(config, lambda i: "sliding_attention" if window and i >= first else "full_attention")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def qwen2(config: Config) -> tuple[Model, Table]:
    """Qwen 2 and 2.5 from their config."""
    attention = causal.attention(config, bias=causal.QUERY_KEY_VALUE, position=rotary(config))
    return _model(config, *(replace(attention, window=window) for window in windows(config)))


def qwen3(config: Config) -> tuple[Model, Table]:
    """Qwen 3 from its config."""
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-6))
    bias = config.take("attention_bias", False)
    attention = causal.attention(config, bias=bias, d_head=128, position=rotary(config), qk_norm=norm)
    return _model(config, *(replace(attention, window=window) for window in windows(config)))


def smollm3(config: Config) -> tuple[Model, Table]:
    """SmolLM 3 from its config: every fourth layer knows no positions."""
    bias, depth = config.take("attention_bias", False), config.take("num_hidden_layers")
    attention = causal.attention(config, bias=bias, position=rotary(config, base=2e6))
    every = config.take("no_rope_layer_interval", 4)
    turned = config.take("no_rope_layers", None) or [int((i + 1) % every != 0) for i in range(depth)]
    window = config.take("sliding_window", None)
    window = window if config.take("use_sliding_window", False) else None
    kinds = causal.kinds(config, lambda i: "sliding_attention" if window and not turned[i] else "full_attention")
    attentions = [
        replace(
            attention,
            position=attention.position if turned[i] else NoPosition(),
            window=window if kinds[i] == "sliding_attention" else None,
        )
        for i in range(depth)
    ]
    return _model(config, *attentions, mlp_bias=config.take("mlp_bias", False), tied=True)


def granite(config: Config) -> tuple[Model, Table]:
    """Granite 3 from its config: Llama with a multiplier at each of its places."""
    bias, scale = config.take("attention_bias", False), config.take("attention_multiplier", 1.0)
    attention = causal.attention(config, bias=bias, position=rotary(config), scale=float(scale))
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"), bias=config.take("mlp_bias", False))
    form = Pre(norm=RMSNorm(eps=config.take("rms_norm_eps", 1e-6)))
    recipe = Weighted(residual=form, beta=config.take("residual_multiplier", 1.0))
    embedding = {"scale": float(config.take("embedding_multiplier", 1.0))}
    head = {"scale": 1 / config.take("logits_scaling", 1.0)}
    layer = Layer(sublayers=(attention, forward))
    return causal.decoder(config, layer, recipe=recipe, embedding=embedding, head=head), TENSORS


LLAMA = causal.architecture(llama, "Llama", inert=inert.LLAMA)
MISTRAL = causal.architecture(mistral, "Mistral")
QWEN2 = causal.architecture(qwen2, "Qwen2", inert=inert.QWEN2)
QWEN3 = causal.architecture(qwen3, "Qwen3")
SMOLLM3 = causal.architecture(smollm3, "SmolLM3", inert=inert.SMOLLM3)
GRANITE = causal.architecture(granite, "Granite")
