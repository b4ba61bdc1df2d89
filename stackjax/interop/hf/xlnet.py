"""XLNet: Transformer-XL's relative positions in a post-norm stack, without memory, segments and the second stream.

Yang et al. 2019, arXiv:1906.08237; Dai et al. 2019, arXiv:1901.02860.
"""

from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor, within
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.position import TransformerXL
from stackjax.recipe import PostNorm
from stackjax.recipe.residual import Post
from stackjax.stack import Stack


def tensors(d_model: int, heads: int) -> Table:
    """The table of XLNet's tensors; its projections keep the heads on an axis of their own."""
    shape = (d_model, heads, -1)
    layer: Table = {
        "rel_attn.q": tensor("attention/query", shape=shape),
        "rel_attn.k": tensor("attention/key", shape=shape),
        "rel_attn.v": tensor("attention/value", shape=shape),
        "rel_attn.o": tensor("attention/out", transposed=True, shape=shape),
        "rel_attn.r": tensor("attention/position/relative", shape=shape),
        "rel_attn.r_w_bias": tensor("attention/position/content_bias"),
        "rel_attn.r_r_bias": tensor("attention/position/position_bias"),
        "rel_attn.layer_norm": norm("residual/attention/norm"),
        "ff.layer_1": dense("feed_forward/up"),
        "ff.layer_2": dense("feed_forward/down"),
        "ff.layer_norm": norm("residual/feed_forward/norm"),
    }
    return {
        "transformer.word_embedding.weight": tensor("embedding/token"),
        **within("transformer.layer.{layer}.", "stack/{layer}/", layer),
        "lm_loss.bias": tensor("head/bias"),
    }


def describe(config: Config) -> tuple[Model, Table]:
    """XLNet from its config.

    Raises:
        ValueError: `same_length` in one direction, which masks more than the future.
    """
    config.only(tie_word_embeddings=True, untie_r=True, bi_data=False, clamp_len=-1, attn_type=("bi", "uni"))
    causal = config.take("attn_type", "bi") == "uni"
    if config.take("same_length", False) and causal:
        raise ValueError("config.json has same_length=True and attn_type='uni', which together are not supported")
    heads, d_model = config.take("n_head"), config.take("d_model")
    norm = LayerNorm(eps=config.take("layer_norm_eps", 1e-12))
    attention = Attention(
        n_heads=heads,
        d_head=config.take("d_head", None),
        causal=causal,
        position=TransformerXL(d_relative=d_model),
    )
    activation = config.activation("ff_activation", "gelu")
    forward = FeedForward(d_hidden=config.take("d_inner"), activation=activation, bias=True)
    layer, recipe = Layer(sublayers=(attention, forward)), PostNorm(residual=Post(norm=norm))
    model = Model(
        embedding=Embedding(vocab=config.take("vocab_size"), scale=1.0),
        stack=Stack.of(layer, depth=config.take("n_layer"), d_model=d_model, recipe=recipe, side="encoder"),
        head=Head(tied=True, bias=True),
    )
    return model, tensors(d_model, heads)


XLNET = Architecture(
    describe=describe,
    classes=("XLNetLMHeadModel",),
    aliases=(("lm_loss.weight", "transformer.word_embedding.weight"),),
    inert=inert.XLNET,
)
