"""StableLM, StarCoder 2 and Nemotron: decoders like Llama's, with layer norms.

StableLM 2: Bellagamba et al. 2024, arXiv:2402.17834. StarCoder 2: Lozhkov et al. 2024, arXiv:2402.19173.
Nemotron-4: Parmar et al. 2024, arXiv:2402.16819.
"""

from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.heads import NormedByHead
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm, LayerNorm1P, NoNorm
from stackjax.parallel import Parallel
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

STABLELM_TENSORS: Table = causal.layers(
    causal.side_by_side(
        causal.PROJECTIONS
        | causal.FORWARD
        | {
            "self_attn.q_layernorm.norms.{expert}.weight": tensor("attention/query_norm/scale"),
            "self_attn.k_layernorm.norms.{expert}.weight": tensor("attention/key_norm/scale"),
        }
    ),
    {
        "input_layernorm": (norm("residual/attention/norm"), norm("residual/parallel/norm")),
        "post_attention_layernorm": norm("residual/feed_forward/norm"),
    },
)
STARCODER2_TENSORS: Table = causal.layers(
    causal.PRE_NORM,
    causal.ATTENTION,
    causal.UP_AND_DOWN,
)
NEMOTRON_TENSORS: Table = causal.layers(
    causal.PRE_NORM,
    causal.PROJECTIONS,
    {"mlp.up_proj": dense("feed_forward/up"), "mlp.down_proj": dense("feed_forward/down")},
)


def stablelm(config: Config) -> tuple[Model, Table]:
    """StableLM from its config: sublayers one after another, or in the largest side by side with normed heads."""
    eps, by_head = config.take("layer_norm_eps", 1e-5), config.take("qk_layernorm", False)
    attention = causal.attention(
        config,
        kind=NormedByHead if by_head else Attention,
        bias=causal.QUERY_KEY_VALUE if config.take("use_qkv_bias", False) else (),
        position=rotary(config, d_head=causal.head_width(config), share=0.25),
        qk_norm=LayerNorm(eps=eps, bias=False) if by_head else NoNorm(),
    )
    sublayers = (attention, causal.feed_forward(config, config.activation("hidden_act", "silu")))
    if config.take("use_parallel_residual", False):
        sublayers = (Parallel(sublayers=sublayers),)
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=eps)))
    return causal.decoder(config, Layer(sublayers=sublayers), recipe=recipe), STABLELM_TENSORS


def starcoder2(config: Config) -> tuple[Model, Table]:
    """StarCoder 2 from its config."""
    bias, window = config.take("use_bias", True), config.take("sliding_window", None)
    attention = causal.attention(config, bias=bias, position=rotary(config), window=window)
    activation = config.activation("hidden_act", "gelu_pytorch_tanh")
    forward = FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, bias=bias)
    layer = Layer(sublayers=(attention, forward))
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=config.take("norm_epsilon", 1e-5))))
    return causal.decoder(config, layer, recipe=recipe, tied=True), STARCODER2_TENSORS


def nemotron(config: Config) -> tuple[Model, Table]:
    """Nemotron from its config: squared ReLU, and norms whose scales are differences from 1."""
    position = rotary(config, d_head=causal.head_width(config), share=0.5)
    attention = causal.attention(config, bias=config.take("attention_bias", False), position=position)
    activation = config.activation("hidden_act", "relu2")
    bias, width = config.take("mlp_bias", False), config.take("intermediate_size")
    layer = Layer(sublayers=(attention, FeedForward(d_hidden=width, activation=activation, bias=bias)))
    recipe = PreNorm(residual=Pre(norm=LayerNorm1P(eps=config.take("norm_eps", 1e-5))))
    return causal.decoder(config, layer, recipe=recipe), NEMOTRON_TENSORS


STABLELM = causal.architecture(stablelm, "StableLm")
STARCODER2 = causal.architecture(starcoder2, "Starcoder2", inert=inert.STARCODER2)
NEMOTRON = causal.architecture(nemotron, "Nemotron")
