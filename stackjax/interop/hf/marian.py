"""Marian, Pegasus, BART and mBART: encoder-decoders that differ in where their norms stand and how positions are told.

Marian: Junczys-Dowmunt et al. 2018, arXiv:1804.00344; Vaswani et al. 2017, arXiv:1706.03762. Pegasus: Zhang et al.
2019, arXiv:1912.08777. BART: Lewis et al. 2019, arXiv:1910.13461. mBART: Liu et al. 2020, arXiv:2001.08210.
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
from stackjax.norm import LayerNorm, NoNorm
from stackjax.position import Learned, Position, Sinusoidal
from stackjax.recipe import PostNorm, PreNorm, Recipe
from stackjax.recipe.residual import Post, Pre
from stackjax.seq2seq import EncoderDecoder
from stackjax.stack import Stack

NORM = LayerNorm(eps=1e-5)
POST, PRE = PostNorm(residual=Post(norm=NORM)), PreNorm(residual=Pre(norm=NORM))


def _attention(module: str, ours: str) -> Table:
    sides = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    table = {f"{module}.{theirs}": dense(f"{ours}/{side}") for theirs, side in sides.items()}
    return {**table, f"{module}_layer_norm": norm(f"residual/{ours}/norm")}


LAYER: Table = {
    **_attention("self_attn", "attention"),
    **_attention("encoder_attn", "cross_attention"),
    "fc1": dense("feed_forward/up"),
    "fc2": dense("feed_forward/down"),
    "final_layer_norm": norm("residual/feed_forward/norm"),
}
TENSORS: Table = {
    "model.shared.weight": tensor("decoder/embedding/token"),
    "model.encoder.embed_positions.weight": tensor("source/position/table"),
    "model.decoder.embed_positions.weight": tensor("decoder/embedding/position/table"),
    "model.encoder.layernorm_embedding": norm("source/norm"),
    "model.decoder.layernorm_embedding": norm("decoder/embedding/norm"),
    **within("model.encoder.layers.{layer}.", "encoder/{layer}/", LAYER),
    **within("model.decoder.layers.{layer}.", "decoder/stack/{layer}/", LAYER),
    "model.encoder.layer_norm": norm("encoder/leave/inner/norm"),
    "model.decoder.layer_norm": norm("decoder/stack/leave/inner/norm"),
    "final_logits_bias": tensor("decoder/head/bias", shape=(1, -1)),
}


def _model(config: Config, recipe: Recipe, position: Position, norm: LayerNorm | NoNorm = NoNorm()) -> EncoderDecoder:
    """The encoder-decoder of a config.

    Args:
        config: read for the sizes.
        recipe: where the norms stand.
        position: of both sides; where it is learned, each side has its own.
        norm: behind the embedding.
    """
    depths = config.take("encoder_layers"), config.take("decoder_layers")
    config.only(tie_word_embeddings=True, num_hidden_layers=depths[0], is_decoder=False, add_cross_attention=False)
    config.only(add_bias_logits=False, extra_pos_embeddings=(2 if isinstance(position, Learned) else 0, None))
    activation = config.activation("activation_function", "gelu")
    sizes = {"d_model": config.take("d_model"), "recipe": recipe}

    def layer(side: str) -> Layer:
        heads = {"n_heads": config.take(f"{side}_attention_heads"), "bias": ("query", "key", "value", "out")}
        forward = FeedForward(d_hidden=config.take(f"{side}_ffn_dim"), activation=activation, bias=True)
        attention = Attention(causal=side == "decoder", **heads)
        across = Attention(name="cross_attention", cross=True, **heads)
        return Layer(sublayers=(attention, forward) if side == "encoder" else (attention, across, forward))

    scale = None if config.take("scale_embedding", False) else 1.0
    embedding = Embedding(vocab=config.take("vocab_size"), scale=scale, position=position, norm=norm)
    apart = isinstance(position, Learned)
    decoder = Stack.of(layer("decoder"), depth=depths[1], other_depth=depths[0], **sizes)
    return EncoderDecoder(
        encoder=Stack.of(layer("encoder"), depth=depths[0], other_depth=depths[1], side="encoder", **sizes),
        decoder=Model(embedding=embedding, stack=decoder, head=Head(tied=True, bias=True)),
        source=embedding if apart else None,
        shared_tokens=apart,
    )


def marian(config: Config) -> tuple[EncoderDecoder, Table]:
    """Marian from its config: post-norm, sinusoidal positions."""
    config.only(share_encoder_decoder_embeddings=True, static_position_embeddings=True, normalize_embedding=False)
    config.only(normalize_before=False, add_final_layer_norm=False)
    config.only(decoder_vocab_size=(config.take("vocab_size"), None))
    return _model(config, POST, Sinusoidal(interleaved=False)), TENSORS


def pegasus(config: Config) -> tuple[EncoderDecoder, Table]:
    """Pegasus from its config: pre-norm, sinusoidal positions."""
    config.only(normalize_before=True, add_final_layer_norm=True, static_position_embeddings=True)
    config.only(normalize_embedding=False)
    return _model(config, PRE, Sinusoidal(interleaved=False)), TENSORS


def _learned(config: Config) -> Learned:
    return Learned(n_positions=config.take("max_position_embeddings", 1024) + 2, first=2)


def bart(config: Config) -> tuple[EncoderDecoder, Table]:
    """BART from its config: post-norm, learned positions and a norm behind the embedding."""
    config.only(normalize_before=False, add_final_layer_norm=False, normalize_embedding=True)
    config.only(static_position_embeddings=False)
    return _model(config, POST, _learned(config), NORM), TENSORS


def mbart(config: Config) -> tuple[EncoderDecoder, Table]:
    """mBART from its config: BART with pre-norm."""
    config.only(normalize_before=True, add_final_layer_norm=True, normalize_embedding=True)
    config.only(static_position_embeddings=False)
    return _model(config, PRE, _learned(config), NORM), TENSORS


def _architecture(describe, *classes: str, inert: inert.Inert = inert.Inert()) -> Architecture:
    others = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    return Architecture(
        describe=describe,
        classes=classes,
        renames=((r"^(shared|encoder|decoder)\.", r"model.\1."),),
        aliases=tuple((alias, "model.shared.weight") for alias in others),
        zeros=("final_logits_bias",),
        inert=inert,
    )


MARIAN = _architecture(marian, "MarianMTModel", inert=inert.MARIAN)
PEGASUS = _architecture(pegasus, "PegasusForConditionalGeneration", inert=inert.PEGASUS)
BART = _architecture(bart, "BartForConditionalGeneration", "BartModel", inert=inert.BART)
MBART = _architecture(mbart, "MBartForConditionalGeneration", "MBartModel", inert=inert.BART)
