"""BERT with its masked-token head: a post-norm encoder. Devlin et al. 2018, arXiv:1810.04805."""

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
from stackjax.position import Learned
from stackjax.recipe import PostNorm
from stackjax.recipe.residual import Post
from stackjax.stack import Stack

TENSORS: Table = {
    "bert.embeddings.word_embeddings.weight": tensor("embedding/token"),
    "bert.embeddings.position_embeddings.weight": tensor("embedding/position/table"),
    "bert.embeddings.token_type_embeddings.weight": tensor("embedding/type"),
    "bert.embeddings.LayerNorm": norm("embedding/norm"),
    **within(
        "bert.encoder.layer.{layer}.",
        "stack/{layer}/",
        {
            "attention.self.query": dense("attention/query"),
            "attention.self.key": dense("attention/key"),
            "attention.self.value": dense("attention/value"),
            "attention.output.dense": dense("attention/out"),
            "attention.output.LayerNorm": norm("residual/attention/norm"),
            "intermediate.dense": dense("feed_forward/up"),
            "output.dense": dense("feed_forward/down"),
            "output.LayerNorm": norm("residual/feed_forward/norm"),
        },
    ),
    "cls.predictions.transform.dense": dense("head/transform"),
    "cls.predictions.transform.LayerNorm": norm("head/norm"),
    "cls.predictions.bias": tensor("head/bias"),
}


def describe(config: Config) -> tuple[Model, Table]:
    """BERT from its config."""
    config.only(is_decoder=False, add_cross_attention=False, tie_word_embeddings=True)
    config.only(position_embedding_type="absolute")
    norm, activation = LayerNorm(eps=config.take("layer_norm_eps", 1e-12)), config.activation("hidden_act", "gelu")
    attention = Attention(
        n_heads=config.take("num_attention_heads"), causal=False, bias=("query", "key", "value", "out")
    )
    forward = FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, bias=True)
    model = Model(
        embedding=Embedding(
            vocab=config.take("vocab_size"),
            scale=1.0,
            position=Learned(n_positions=config.take("max_position_embeddings", 512)),
            n_types=config.take("type_vocab_size", 2),
            norm=norm,
        ),
        stack=Stack.of(
            Layer(sublayers=(attention, forward)),
            depth=config.take("num_hidden_layers"),
            d_model=config.take("hidden_size"),
            recipe=PostNorm(residual=Post(norm=norm)),
            side="encoder",
        ),
        head=Head(tied=True, bias=True, transform=activation, norm=norm),
    )
    return model, TENSORS


BERT = Architecture(
    describe=describe,
    classes=("BertForMaskedLM", "BertForPreTraining"),
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    aliases=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    inert=inert.BERT,
)
