"""T5, the original and version 1.1, mT5 and umT5: pre-norm with bucketed relative positions and no biases.

Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202; Xue et al. 2020, arXiv:2010.11934; Chung et al.
2023, arXiv:2304.09151.
"""

from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import ACTIVATIONS, Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor, within
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import RMSNorm
from stackjax.position import T5Bias
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre
from stackjax.seq2seq import EncoderDecoder
from stackjax.stack import Stack


def _attention(place: int, module: str, ours: str) -> Table:
    sides = {"q": "query", "k": "key", "v": "value", "o": "out"}
    table = {f"{module}.{theirs}": dense(f"{ours}/{side}") for theirs, side in sides.items()}
    return within(f"layer.{place}.", "", {**table, "layer_norm": norm(f"residual/{ours}/norm")})


def _forward(place: int, gated: bool) -> Table:
    inner: Table = {"wi_1" if gated else "wi": dense("feed_forward/up"), "wo": dense("feed_forward/down")}
    if gated:
        inner["wi_0"] = dense("feed_forward/gate")
    table = {**within("DenseReluDense.", "", inner), "layer_norm": norm("residual/feed_forward/norm")}
    return within(f"layer.{place}.", "", table)


def _stack(side: str, ours: str, layer: Table) -> Table:
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        **within(f"{side}.block.{{layer}}.", f"{ours}/{{layer}}/", layer),
        **within(f"{side}.block.{{layer}}.", f"{ours}/{{layer}}/", {bias: tensor("attention/position/table")}),
        f"{side}.block.0.{bias}": tensor(f"{ours}/shared/t5bias/table"),
        f"{side}.final_layer_norm": norm(f"{ours}/leave/inner/norm"),
    }


def tensors(gated: bool) -> Table:
    """The table of T5's tensors."""
    attention, across = _attention(0, "SelfAttention", "attention"), _attention(1, "EncDecAttention", "cross_attention")
    return {
        "shared.weight": tensor("decoder/embedding/token"),
        **_stack("encoder", "encoder", attention | _forward(1, gated)),
        **_stack("decoder", "decoder/stack", attention | across | _forward(2, gated)),
        "lm_head.weight": tensor("decoder/head/unembed", transposed=True),
    }


def _model(config: Config, *, tied: bool, scaled: bool, per_layer: bool = False) -> tuple[EncoderDecoder, Table]:
    """The encoder-decoder of a config.

    Args:
        config: read for the sizes.
        tied: whether the output is the embedding's matrix.
        scaled: whether logits are divided by sqrt(D).
        per_layer: whether each layer has a table of positions of its own.
    """
    config.only(is_decoder=False, is_encoder_decoder=True)
    d_model, vocab = config.take("d_model"), config.take("vocab_size")
    depth = config.take("num_layers")
    depths = depth, config.take("num_decoder_layers", None) or depth
    *gate, activation = config.take("feed_forward_proj", "relu").split("-")
    activation = "gelu_new" if gate and activation == "gelu" else activation
    config.only(dense_act_fn=activation, is_gated_act=bool(gate))
    if gate not in ([], ["gated"]) or activation not in ACTIVATIONS:
        raise ValueError(f"config.json has feed_forward_proj={config.read['feed_forward_proj']!r}, not supported")
    forward = FeedForward(d_hidden=config.take("d_ff"), activation=ACTIVATIONS[activation], gated=bool(gate))
    heads = {"n_heads": config.take("num_heads"), "d_head": config.take("d_kv"), "scale": 1.0}
    n_buckets = config.take("relative_attention_num_buckets", 32)
    reach = config.take("relative_attention_max_distance", 128)
    sizes = {
        "d_model": d_model,
        "recipe": PreNorm(residual=Pre(norm=RMSNorm(eps=config.take("layer_norm_epsilon", 1e-6)))),
    }

    def own(causal: bool) -> Attention:
        bias = T5Bias(n_buckets=n_buckets, max_distance=reach, bidirectional=not causal, per_layer=per_layer)
        return Attention(causal=causal, position=bias, **heads)

    across = Attention(name="cross_attention", cross=True, **heads)
    reader, writer = Layer(sublayers=(own(False), forward)), Layer(sublayers=(own(True), across, forward))
    decoder = Model(
        embedding=Embedding(vocab=vocab, scale=1.0),
        stack=Stack.of(writer, depth=depths[1], other_depth=depths[0], **sizes),
        head=Head(tied=tied, scale=d_model**-0.5 if scaled else 1.0),
    )
    encoder = Stack.of(reader, depth=depths[0], other_depth=depths[1], side="encoder", **sizes)
    return EncoderDecoder(encoder=encoder, decoder=decoder), tensors(bool(gate))


def t5(config: Config) -> tuple[EncoderDecoder, Table]:
    """T5 from its config. Where logits are scaled, as in the original, the output is tied; in version 1.1 neither."""
    scaled = config.take("scale_decoder_outputs", config.take("tie_word_embeddings", True))
    return _model(config, tied=scaled, scaled=scaled)


def mt5(config: Config) -> tuple[EncoderDecoder, Table]:
    """mT5 from its config: T5 1.1, whose logits are never scaled."""
    return _model(config, tied=config.take("tie_word_embeddings", True), scaled=False)


def umt5(config: Config) -> tuple[EncoderDecoder, Table]:
    """umT5 from its config: T5 with positions in each layer."""
    scaled = config.take("scale_decoder_outputs", config.take("tie_word_embeddings", True))
    return _model(config, tied=scaled, scaled=scaled, per_layer=True)


def _architecture(describe, name: str) -> Architecture:
    others = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    aliases = tuple((alias, "shared.weight") for alias in others)
    return Architecture(
        describe=describe, classes=(f"{name}ForConditionalGeneration",), aliases=aliases, inert=inert.T5
    )


T5 = _architecture(t5, "T5")
MT5 = _architecture(mt5, "MT5")
UMT5 = _architecture(umt5, "UMT5")
