"""BLOOM: a pre-norm decoder with ALiBi and a norm behind the embedding. BigScience 2022, arXiv:2211.05100."""

from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward, gelu_tanh
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.position import ALiBi
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre


def tensors(heads: int) -> Table:
    """The table of BLOOM's tensors; query, key and value lie together for each head."""
    layer: Table = {
        "input_layernorm": norm("residual/attention/norm"),
        "self_attention.query_key_value": dense("attention/query", "attention/key", "attention/value", groups=heads),
        "self_attention.dense": dense("attention/out"),
        "post_attention_layernorm": norm("residual/feed_forward/norm"),
        "mlp.dense_h_to_4h": dense("feed_forward/up"),
        "mlp.dense_4h_to_h": dense("feed_forward/down"),
    }
    ends: Table = {
        "transformer.word_embeddings.weight": tensor("embedding/token"),
        "transformer.word_embeddings_layernorm": norm("embedding/norm"),
        "transformer.ln_f": norm("stack/leave/inner/norm"),
    }
    return causal.layers(layer, ends=ends, module="transformer.h.{layer}.")


def describe(config: Config) -> tuple[Model, Table]:
    """BLOOM from its config."""
    config.only(apply_residual_connection_post_layernorm=False, tie_word_embeddings=True, slow_but_exact=False)
    config.rename(hidden_size="n_embed", num_hidden_layers="n_layer", num_attention_heads="n_head")
    heads, norm = config.take("num_attention_heads"), LayerNorm(eps=config.take("layer_norm_epsilon", 1e-5))
    attention = Attention(n_heads=heads, bias=(*causal.QUERY_KEY_VALUE, "out"), position=ALiBi())
    forward = FeedForward(d_hidden=4 * config.take("hidden_size"), activation=gelu_tanh, bias=True)
    layer, recipe = Layer(sublayers=(attention, forward)), PreNorm(residual=Pre(norm=norm))
    return causal.decoder(config, layer, recipe=recipe, tied=True, embedding={"norm": norm}), tensors(heads)


BLOOM = Architecture(
    describe=describe,
    classes=("BloomForCausalLM", "BloomModel"),
    renames=((r"^(word_embeddings|word_embeddings_layernorm|h|ln_f)\.", r"transformer.\1."),),
    aliases=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    inert=inert.BLOOM,
)
