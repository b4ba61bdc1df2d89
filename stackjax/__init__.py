"""stackjax: deep Transformer stacks in JAX, and what makes depth work.

    layer  = residual(attention) then residual(feed_forward)
    stack  = lax.scan(layer)            one compile, whatever the depth
    model  = embed, stack, unembed

A hundred layers, looked into:

    import jax, stackjax as sj

    model = sj.decoder(d_model=64, depth=100, n_heads=4, recipe=sj.recipe.DeepNorm())
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 128), 0, 256)

    @jax.jit
    def look(params, taps):
        logits, result = model.apply(params, tokens, measure=sj.probe.standard, taps=taps)
        return sj.loss.next_token(logits, tokens), result.measure

    taps = jax.numpy.zeros(model.stack.depth + 1)
    squares, layers = jax.grad(look, argnums=1, has_aux=True)(params, taps)

`layers["stream_rms"]` is then an array over the 100 layers, and `squares` is |dLoss/dx_l|² for all of them.

Reading order: `parameter` (declared once), `norm`, `feed_forward`, `position`, `dot_product` (the pure functions),
`sublayer` (what travels beside x), `attention`, `recipe.residual` and `recipe.base` (the depth treatment), `layer`,
`segment`, `history`, `scan`, `statistic`, `stack`, `embedding`, `model`; then `latent_attention`, `moe`,
`parallel`, `seq2seq`; then `cache`, `sample`, `decode`, `beam`; then `probe`, `skip`, `optim`, `shard`; and
`interop.hf` for checkpoints.
"""

from stackjax import (
    beam,
    cache,
    convert,
    decode,
    display,
    dot_product,
    feed_forward,
    history,
    loss,
    moe,
    norm,
    optim,
    parameter,
    position,
    probe,
    recipe,
    sample,
    scan,
    shard,
    skip,
    statistic,
)
from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.history import History
from stackjax.latent_attention import LatentAttention
from stackjax.layer import Layer, Trace
from stackjax.model import Model, decoder, encoder
from stackjax.moe import MixtureOfExperts
from stackjax.norm import BatchNorm, DynamicTanh, LayerNorm, NoNorm, RMSNorm
from stackjax.parallel import Parallel
from stackjax.parameter import Spec
from stackjax.recipe import residual
from stackjax.segment import Segment
from stackjax.seq2seq import EncoderDecoder, encoder_decoder
from stackjax.stack import Result, Stack
from stackjax.sublayer import Aux, Cache, SideInputs, Sublayer

__all__ = [
    "Attention",
    "Aux",
    "BatchNorm",
    "Cache",
    "DynamicTanh",
    "Embedding",
    "EncoderDecoder",
    "FeedForward",
    "Head",
    "History",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "MixtureOfExperts",
    "Model",
    "NoNorm",
    "Parallel",
    "RMSNorm",
    "Result",
    "Segment",
    "SideInputs",
    "Spec",
    "Stack",
    "Sublayer",
    "Trace",
    "beam",
    "cache",
    "convert",
    "decode",
    "decoder",
    "display",
    "dot_product",
    "encoder",
    "encoder_decoder",
    "feed_forward",
    "history",
    "loss",
    "moe",
    "norm",
    "optim",
    "parameter",
    "position",
    "probe",
    "recipe",
    "residual",
    "sample",
    "scan",
    "shard",
    "skip",
    "statistic",
]
