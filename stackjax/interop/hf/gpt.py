"""GPT-Neo, StarCoder and MPT: pre-norm decoders in the manner of GPT-2.

GPT-Neo: Black et al. 2021. StarCoder: Li et al. 2023, arXiv:2305.06161. MPT: MosaicML 2023.
"""

from dataclasses import replace

from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward, gelu
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.heads import clipped
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.position import ALiBi, Learned
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

ENDS: Table = {
    "transformer.wte.weight": tensor("embedding/token"),
    "transformer.wpe.weight": tensor("embedding/position/table"),
    "transformer.ln_f": norm("stack/leave/inner/norm"),
    "lm_head.weight": tensor("head/unembed", transposed=True),
}
NORMS: Table = {"ln_1": norm("residual/attention/norm"), "ln_2": norm("residual/feed_forward/norm")}
GPT_NEO_TENSORS: Table = causal.layers(
    NORMS,
    {
        "attn.attention.q_proj": dense("attention/query"),
        "attn.attention.k_proj": dense("attention/key"),
        "attn.attention.v_proj": dense("attention/value"),
        "attn.attention.out_proj": dense("attention/out"),
    },
    causal.UP_AND_DOWN,
    ends=ENDS,
    module="transformer.h.{layer}.",
)


def _model(config: Config, *attention: Attention) -> Model:
    """Attention, one or one for each layer, and a feed-forward with biases, over learned positions."""
    activation = config.activation("activation_function", "gelu_new")
    forward = FeedForward(d_hidden=config.take("intermediate_size", None), activation=activation, bias=True)
    layers = [Layer(sublayers=(each, forward)) for each in attention]
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=config.take("layer_norm_epsilon", 1e-5))))
    position = Learned(n_positions=config.take("max_position_embeddings"))
    return causal.decoder(config, *layers, recipe=recipe, tied=True, embedding={"position": position})


def gpt_neo(config: Config) -> tuple[Model, Table]:
    """GPT-Neo from its config: dot products are not scaled, and every second layer is local."""
    config.rename(num_hidden_layers="num_layers", num_attention_heads="num_heads")
    groups = config.take("attention_types", [[["global", "local"], 12]])
    kinds = [kind for names, times in groups for _ in range(times) for kind in names]
    if len(kinds) != config.take("num_hidden_layers"):
        raise ValueError(f"config.json needs as many attention_types as layers; got {groups}")
    config.only(attention_layers=kinds)
    attention = causal.attention(config, bias=("out",), scale=1.0)
    windows = {"global": None, "local": config.take("window_size", 256)}
    return _model(config, *(replace(attention, window=windows[kind]) for kind in kinds)), GPT_NEO_TENSORS


def gpt_bigcode(config: Config) -> tuple[Model, Table]:
    """StarCoder 1 and SantaCoder from their config: GPT-2 with one head of keys and values."""
    config.rename(hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head")
    config.rename(max_position_embeddings="n_positions", intermediate_size="n_inner")
    config.only(add_cross_attention=False, scale_attn_weights=True)
    heads = config.take("num_attention_heads")
    groups = 1 if config.take("multi_query", True) else heads
    config.only(num_key_value_heads=groups)
    attention = Attention(n_heads=heads, n_kv_heads=groups, bias=(*causal.QUERY_KEY_VALUE, "out"))
    fused = dense("attention/query", "attention/key", "attention/value", groups=groups)
    projections: Table = {"attn.c_attn": fused, "attn.c_proj": dense("attention/out")}
    module = "transformer.h.{layer}."
    return _model(config, attention), causal.layers(NORMS, projections, causal.UP_AND_DOWN, ends=ENDS, module=module)


MPT_TENSORS: Table = causal.layers(
    {
        "norm_1": norm("residual/attention/norm"),
        "attn.Wqkv": dense("attention/query", "attention/key", "attention/value"),
        "attn.out_proj": dense("attention/out"),
        "norm_2": norm("residual/feed_forward/norm"),
        "ffn.up_proj": dense("feed_forward/up"),
        "ffn.down_proj": dense("feed_forward/down"),
    },
    ends={
        "transformer.wte.weight": tensor("embedding/token"),
        "transformer.norm_f": norm("stack/leave/inner/norm"),
    },
    module="transformer.blocks.{layer}.",
)


def mpt(config: Config) -> tuple[Model, Table]:
    """MPT from its config: ALiBi, no biases, and queries, keys and values that may be clipped."""
    config.rename(hidden_size="d_model", num_hidden_layers="n_layers", num_attention_heads="n_heads")
    config.only(no_bias=True, expansion_ratio=4, logit_scale=None, embedding_fraction=1.0, tie_word_embeddings=True)
    nested = config.nested("attn_config")
    nested.only(attn_type="multihead_attention", alibi=True, alibi_bias_max=8, qk_ln=False, prefix_lm=False)
    clip = clipped(nested.take("clip_qkv", None))
    attention = Attention(
        n_heads=config.take("num_attention_heads"),
        position=ALiBi(),
        scale=nested.take("softmax_scale", None),
        qk_norm=clip,
        value_norm=clip,
    )
    layer = Layer(sublayers=(attention, FeedForward(activation=gelu)))
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=config.take("layer_norm_epsilon", 1e-5), bias=False)))
    return causal.decoder(config, layer, recipe=recipe, tied=True), MPT_TENSORS


OLDER = ((r"^(wte|wpe|h|ln_f|blocks|norm_f)\.", r"transformer.\1."),)
TIED = (("lm_head.weight", "transformer.wte.weight"),)
GPT_NEO = Architecture(
    describe=gpt_neo, classes=("GPTNeoForCausalLM",), renames=OLDER, aliases=TIED, inert=inert.GPT_NEO
)
GPT_BIGCODE = Architecture(
    describe=gpt_bigcode, classes=("GPTBigCodeForCausalLM",), renames=OLDER, aliases=TIED, inert=inert.GPT_BIGCODE
)
MPT = Architecture(
    describe=mpt, classes=("MptForCausalLM", "MPTForCausalLM"), renames=OLDER, aliases=TIED, inert=inert.MPT
)
