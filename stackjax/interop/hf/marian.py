"""Marian: the encoder-decoder of Attention Is All You Need, post-norm with sinusoidal positions.

Junczys-Dowmunt et al. 2018, arXiv:1804.00344; Vaswani et al. 2017, arXiv:1706.03762.
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
from stackjax.position import Sinusoidal
from stackjax.recipe import PostNorm
from stackjax.recipe.residual import Post
from stackjax.seq2seq import EncoderDecoder
from stackjax.stack import Stack


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
    **within("model.encoder.layers.{layer}.", "encoder/{layer}/", LAYER),
    **within("model.decoder.layers.{layer}.", "decoder/stack/{layer}/", LAYER),
    "final_logits_bias": tensor("decoder/head/bias", heads=1),
}


def describe(config: Config) -> tuple[EncoderDecoder, Table]:
    """Marian from its config."""
    config.only(tie_word_embeddings=True, share_encoder_decoder_embeddings=True, static_position_embeddings=True)
    config.only(normalize_before=False, normalize_embedding=False, add_final_layer_norm=False, add_bias_logits=False)
    config.only(extra_pos_embeddings=(0, None), decoder_vocab_size=(config.take("vocab_size"), None))
    depths = config.take("encoder_layers"), config.take("decoder_layers")
    config.only(num_hidden_layers=depths[0], is_decoder=False, add_cross_attention=False)
    activation = config.activation("activation_function", "gelu")
    sizes = {"d_model": config.take("d_model"), "recipe": PostNorm(residual=Post(norm=LayerNorm(eps=1e-5)))}

    def layer(side: str) -> Layer:
        heads = {"n_heads": config.take(f"{side}_attention_heads"), "bias": ("query", "key", "value", "out")}
        forward = FeedForward(d_hidden=config.take(f"{side}_ffn_dim"), activation=activation, bias=True)
        own = Attention(causal=side == "decoder", **heads)
        across = Attention(name="cross_attention", cross=True, **heads)
        return Layer(sublayers=(own, forward) if side == "encoder" else (own, across, forward))

    embedding = Embedding(
        vocab=config.take("vocab_size"),
        scale=None if config.take("scale_embedding", False) else 1.0,
        position=Sinusoidal(interleaved=False),
    )
    decoder = Stack.of(layer("decoder"), depth=depths[1], other_depth=depths[0], **sizes)
    model = EncoderDecoder(
        encoder=Stack.of(layer("encoder"), depth=depths[0], other_depth=depths[1], side="encoder", **sizes),
        decoder=Model(embedding=embedding, stack=decoder, head=Head(tied=True, bias=True)),
    )
    return model, TENSORS


MARIAN = Architecture(
    describe=describe,
    classes=("MarianMTModel",),
    aliases=tuple(
        (alias, "model.shared.weight")
        for alias in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    ),
    inert=inert.MARIAN,
)
