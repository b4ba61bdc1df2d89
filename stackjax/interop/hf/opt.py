"""OPT: a decoder with learned positions, pre-norm in all sizes but one. Zhang et al. 2022, arXiv:2205.01068."""

from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.position import Learned
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

TENSORS: Table = causal.layers(
    {
        "self_attn.q_proj": dense("attention/query"),
        "self_attn.k_proj": dense("attention/key"),
        "self_attn.v_proj": dense("attention/value"),
        "self_attn.out_proj": dense("attention/out"),
        "self_attn_layer_norm": norm("residual/attention/norm"),
        "fc1": dense("feed_forward/up"),
        "fc2": dense("feed_forward/down"),
        "final_layer_norm": norm("residual/feed_forward/norm"),
    },
    ends={
        "model.decoder.embed_tokens.weight": tensor("embedding/token"),
        "model.decoder.embed_positions.weight": tensor("embedding/position/table"),
        "model.decoder.final_layer_norm": norm("stack/leave/inner/norm"),
        "lm_head.weight": tensor("head/unembed", transposed=True),
    },
    module="model.decoder.layers.{layer}.",
)


def describe(config: Config) -> tuple[Model, Table]:
    """OPT from its config. The 350M, with its norms behind and its narrow embedding, is not described."""
    config.only(do_layer_norm_before=True, _remove_final_layer_norm=False, enable_bias=True)
    config.only(layer_norm_elementwise_affine=True, word_embed_proj_dim=(config.take("hidden_size"), None))
    attention = Attention(n_heads=config.take("num_attention_heads"), bias=(*causal.QUERY_KEY_VALUE, "out"))
    activation = config.activation("activation_function", "relu")
    forward = FeedForward(d_hidden=config.take("ffn_dim"), activation=activation, bias=True)
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=1e-5)))
    position = Learned(n_positions=config.take("max_position_embeddings", 2048) + 2, first=2)
    layer = Layer(sublayers=(attention, forward))
    return causal.decoder(config, layer, recipe=recipe, tied=True, embedding={"position": position}), TENSORS


OPT = Architecture(
    describe=describe,
    classes=("OPTForCausalLM", "OPTModel"),
    renames=((r"^decoder\.", "model.decoder."),),
    aliases=(("lm_head.weight", "model.decoder.embed_tokens.weight"),),
)
