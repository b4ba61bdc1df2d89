"""BERT, RoBERTa, XLM-R, DistilBERT and ELECTRA with their masked-token heads: post-norm encoders.

Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692; Conneau et al. 2019, arXiv:1911.02116; Sanh et
al. 2019, arXiv:1910.01108; Clark et al. 2020, arXiv:2003.10555.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax

from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head, final_norm
from stackjax.feed_forward import Activation, FeedForward, gelu
from stackjax.interop.hf import inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor, within
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.parameter import linear, matrix
from stackjax.position import Learned
from stackjax.recipe import PostNorm
from stackjax.recipe.residual import Post
from stackjax.stack import Stack
from stackjax.sublayer import Params


def _body(module: str) -> Table:
    """Embedding and layers, which BERT and RoBERTa name alike."""
    return {
        f"{module}.embeddings.word_embeddings.weight": tensor("embedding/token"),
        f"{module}.embeddings.position_embeddings.weight": tensor("embedding/position/table"),
        f"{module}.embeddings.token_type_embeddings.weight": tensor("embedding/type"),
        f"{module}.embeddings.LayerNorm": norm("embedding/norm"),
        **within(
            f"{module}.encoder.layer.{{layer}}.",
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
    }


BERT_TENSORS: Table = _body("bert") | {
    "cls.predictions.transform.dense": dense("head/transform"),
    "cls.predictions.transform.LayerNorm": norm("head/norm"),
    "cls.predictions.bias": tensor("head/bias"),
}
ROBERTA_TENSORS: Table = _body("roberta") | {
    "lm_head.dense": dense("head/transform"),
    "lm_head.layer_norm": norm("head/norm"),
    "lm_head.bias": tensor("head/bias"),
}
DISTILBERT_TENSORS: Table = {
    "distilbert.embeddings.word_embeddings.weight": tensor("embedding/token"),
    "distilbert.embeddings.position_embeddings.weight": tensor("embedding/position/table"),
    "distilbert.embeddings.LayerNorm": norm("embedding/norm"),
    **within(
        "distilbert.transformer.layer.{layer}.",
        "stack/{layer}/",
        {
            "attention.q_lin": dense("attention/query"),
            "attention.k_lin": dense("attention/key"),
            "attention.v_lin": dense("attention/value"),
            "attention.out_lin": dense("attention/out"),
            "sa_layer_norm": norm("residual/attention/norm"),
            "ffn.lin1": dense("feed_forward/up"),
            "ffn.lin2": dense("feed_forward/down"),
            "output_layer_norm": norm("residual/feed_forward/norm"),
        },
    ),
    "vocab_transform": dense("head/transform"),
    "vocab_layer_norm": norm("head/norm"),
    "vocab_projector.bias": tensor("head/bias"),
}


ELECTRA_TENSORS: Table = _body("electra") | {
    "electra.embeddings_project": dense("embedding/project"),
    "generator_predictions.dense": dense("head/transform"),
    "generator_predictions.LayerNorm": norm("head/norm"),
    "generator_lm_head.bias": tensor("head/bias"),
}


@dataclass(frozen=True, kw_only=True)
class NarrowEmbedding(Embedding):
    """An embedding of few features, mapped to the stream's by one matrix; it has no vectors in place of tokens.

    Args:
        d_token: number of features.

    Source: Lan et al. 2019, section 3.1, arXiv:1909.11942.
    """

    d_token: int

    def spec(self, d_model: int) -> dict[str, Any]:
        return super().spec(self.d_token) | matrix(self.d_token, d_model, "embed", name="project", bias=True)

    def width(self, d_model: int) -> int:
        return self.d_token

    def apply(self, params: Params, *arguments: Any, **options: Any) -> jax.Array:
        return linear(params, "project", super().apply(params, *arguments, **options))


@dataclass(frozen=True, kw_only=True)
class NarrowHead(Head):
    """A head whose dense layer leads to the features of a `NarrowEmbedding`.

    Args:
        d_token: number of features.
    """

    d_token: int

    def spec(self, d_model: int, vocab: int) -> dict[str, Any]:
        specs = super().spec(d_model, vocab)
        transform = replace(specs["transform"], shape=(d_model, self.d_token))
        bias = replace(specs["transform_bias"], shape=(self.d_token,))
        return {**specs, "transform": transform, "transform_bias": bias, "norm": final_norm(self.norm, self.d_token)}


def _model(
    config: Config, activation: Activation, transform: Activation, norm: LayerNorm, *, first: int = 0, types: int = 0
) -> Model:
    """A post-norm encoder with a dense layer and a norm before its output.

    Args:
        config: read for the sizes.
        activation: of the feed-forward.
        transform: activation of the dense layer before the output.
        norm: everywhere.
        first: row of the table of positions at which index 0 stands.
        types: of tokens.
    """
    config.only(tie_word_embeddings=True)
    heads = config.take("num_attention_heads")
    attention = Attention(n_heads=heads, causal=False, bias=("query", "key", "value", "out"))
    forward = FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, bias=True)
    position = Learned(n_positions=config.take("max_position_embeddings", 512), first=first)
    vocab = config.take("vocab_size")
    return Model(
        embedding=Embedding(vocab=vocab, scale=1.0, position=position, n_types=types, norm=norm),
        stack=Stack.of(
            Layer(sublayers=(attention, forward)),
            depth=config.take("num_hidden_layers"),
            d_model=config.take("hidden_size"),
            recipe=PostNorm(residual=Post(norm=norm)),
            side="encoder",
        ),
        head=Head(tied=True, bias=True, transform=transform, norm=norm),
    )


def bert(config: Config) -> tuple[Model, Table]:
    """BERT from its config."""
    config.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    norm, activation = LayerNorm(eps=config.take("layer_norm_eps", 1e-12)), config.activation("hidden_act", "gelu")
    return _model(config, activation, activation, norm, types=config.take("type_vocab_size", 2)), BERT_TENSORS


def roberta(config: Config) -> tuple[Model, Table]:
    """RoBERTa and XLM-R from their config: positions are counted from behind the padding token's id."""
    config.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    norm, activation = LayerNorm(eps=config.take("layer_norm_eps", 1e-12)), config.activation("hidden_act", "gelu")
    first, types = config.take("pad_token_id", 1) + 1, config.take("type_vocab_size", 2)
    return _model(config, activation, gelu, norm, first=first, types=types), ROBERTA_TENSORS


def distilbert(config: Config) -> tuple[Model, Table]:
    """DistilBERT from its config: no types of tokens."""
    config.rename(hidden_size="dim", num_hidden_layers="n_layers", num_attention_heads="n_heads")
    config.rename(intermediate_size="hidden_dim")
    activation = config.activation("activation", "gelu")
    return _model(config, activation, activation, LayerNorm(eps=1e-12)), DISTILBERT_TENSORS


def electra(config: Config) -> tuple[Model, Table]:
    """ELECTRA's generator from its config: BERT with a narrow embedding."""
    config.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    norm, activation = LayerNorm(eps=config.take("layer_norm_eps", 1e-12)), config.activation("hidden_act", "gelu")
    model = _model(config, activation, gelu, norm, types=config.take("type_vocab_size", 2))
    width = config.take("embedding_size", 128)
    if width == model.stack.d_model:
        return model, ELECTRA_TENSORS
    ends = {
        name: kind(**{each.name: getattr(end, each.name) for each in fields(end)}, d_token=width)
        for name, end, kind in (("embedding", model.embedding, NarrowEmbedding), ("head", model.head, NarrowHead))
    }
    return replace(model, **ends), ELECTRA_TENSORS


BERT = Architecture(
    describe=bert,
    classes=("BertForMaskedLM", "BertForPreTraining"),
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    aliases=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    inert=inert.BERT,
)


def _roberta(name: str) -> Architecture:
    return Architecture(
        describe=roberta,
        classes=(f"{name}ForMaskedLM",),
        aliases=(
            ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
            ("lm_head.decoder.bias", "lm_head.bias"),
        ),
        inert=inert.ROBERTA,
    )


ROBERTA = _roberta("Roberta")
XLM_ROBERTA = _roberta("XLMRoberta")
DISTILBERT = Architecture(
    describe=distilbert,
    classes=("DistilBertForMaskedLM",),
    aliases=(("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),),
    inert=inert.DISTILBERT,
)
ELECTRA = Architecture(
    describe=electra,
    classes=("ElectraForMaskedLM",),
    aliases=(("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),),
    inert=inert.ELECTRA,
)
