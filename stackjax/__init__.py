"""stackjax: deep Transformer stacks in JAX, and what makes depth work.

    layer  = residual(attention) then residual(feed_forward)
    stack  = lax.scan(layer)            one compile, whatever the depth
    model  = embed, stack, unembed

A hundred layers, looked into:

    import jax, stackjax as sj

    model = sj.decoder(d_model=64, depth=100, n_heads=4, recipe=sj.recipe.DeepNorm())
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 128), 0, 256)

    logits, _ = jax.jit(model.apply)(params, tokens)

    def loss(logits):
        return sj.loss.next_token(logits, tokens)

    layers = sj.probe.look(model, params, tokens, loss, jax.random.key(2))

`layers["stream_rms"]` is then an array over the 100 layers, and `layers["stream_gradient"]` is |dLoss/dx_l| for x_0,
the embedding, to x_100.

Letters, in shapes and equations:

    B  sequences in a batch              H  heads of queries
    T  tokens of a sequence              G  heads of keys and values
    S  keys, where they are not T        K  width of a head
    D  width of the stream               L  layers, and nothing else
    F  hidden width                      N  streams of a widened residual connection
    V  vocabulary                        P  longest path in a tree
    E  experts

Matrices are (in, out) and applied as `x @ w`. `alpha` multiplies the skip, `beta` the branch, `gamma` the branch's
input, `gain` the initialiser. `key` comes first, except where it is optional. Every function takes any leading axes.

Modules by floor; a module imports only from floors below, and from modules to its left:

    outside     testing  interop: linen, nnx, hf
    models      model  seq2seq  exits  recurrence  unrolled  prompt  decode  beam
    tools       cache  sample  probe  debug  skip  convert  optim  shard  pipeline  serialization  surgery  adapt
    depth       layer  scan  turn  pin  segment  boundary  option  stack
    recipe      recipe: one file for each treatment of depth, over recipe.base and recipe.form
    sublayers   attention  cross_layer  latent_attention  delta_rule  moe  parallel  embedding
    arithmetic  loss  dot_product  feed_forward  history  statistic  position  blockwise
    protocol    edit  norm  sublayer  wrapped  structure  abstract_model
    ground      check  backend  block  description  by_layer  parameter  product  display  tensor_file
    devices     memory  sequence  tensor_parallel

Read from the ground up. `recipe` and `position` begin with one table of all that they hold.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from stackjax import (
    abstract_model,
    attention,
    backend,
    block,
    blockwise,
    boundary,
    by_layer,
    cache,
    check,
    cross_layer,
    decode,
    delta_rule,
    description,
    display,
    dot_product,
    edit,
    embedding,
    feed_forward,
    history,
    latent_attention,
    layer,
    loss,
    memory,
    model,
    moe,
    norm,
    option,
    parallel,
    parameter,
    pin,
    position,
    probe,
    product,
    prompt,
    recipe,
    recurrence,
    sample,
    scan,
    segment,
    seq2seq,
    sequence,
    serialization,
    shard,
    skip,
    stack,
    statistic,
    structure,
    sublayer,
    tensor_file,
    tensor_parallel,
    turn,
    unrolled,
    wrapped,
)
from stackjax.attention import Attention
from stackjax.cross_layer import CrossLayerAttention
from stackjax.delta_rule import GatedDeltaNet
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.history import History
from stackjax.latent_attention import LatentAttention
from stackjax.layer import Layer, Trace
from stackjax.model import Model, decoder, encoder
from stackjax.moe import MixtureOfExperts
from stackjax.norm import BatchNorm, DynamicTanh, LayerNorm, LayerNorm1P, NoNorm, RMSNorm
from stackjax.parallel import Parallel
from stackjax.parameter import Spec
from stackjax.recipe import residual
from stackjax.segment import Segment
from stackjax.seq2seq import EncoderDecoder, encoder_decoder
from stackjax.serialization import load, save
from stackjax.stack import Stack
from stackjax.sublayer import Aux, Cache, Result, SideInputs, Sublayer

if TYPE_CHECKING:
    from stackjax import adapt, beam, convert, debug, exits, interop, optim, pipeline, surgery, testing

LATER = ("adapt", "beam", "convert", "debug", "exits", "interop", "optim", "pipeline", "surgery", "testing")
"""Modules that are imported where they are first named, for not every program needs them."""

__all__ = [
    "Attention",
    "Aux",
    "BatchNorm",
    "Cache",
    "CrossLayerAttention",
    "DynamicTanh",
    "Embedding",
    "EncoderDecoder",
    "FeedForward",
    "GatedDeltaNet",
    "Head",
    "History",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "LayerNorm1P",
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
    "abstract_model",
    "adapt",
    "attention",
    "backend",
    "beam",
    "block",
    "blockwise",
    "boundary",
    "by_layer",
    "cache",
    "check",
    "convert",
    "cross_layer",
    "debug",
    "decode",
    "decoder",
    "delta_rule",
    "description",
    "display",
    "dot_product",
    "edit",
    "embedding",
    "encoder",
    "encoder_decoder",
    "exits",
    "feed_forward",
    "history",
    "interop",
    "latent_attention",
    "layer",
    "load",
    "loss",
    "memory",
    "model",
    "moe",
    "norm",
    "optim",
    "option",
    "parallel",
    "parameter",
    "pin",
    "pipeline",
    "position",
    "probe",
    "product",
    "prompt",
    "recipe",
    "recurrence",
    "residual",
    "sample",
    "save",
    "scan",
    "segment",
    "seq2seq",
    "sequence",
    "serialization",
    "shard",
    "skip",
    "stack",
    "statistic",
    "structure",
    "sublayer",
    "surgery",
    "tensor_file",
    "tensor_parallel",
    "testing",
    "turn",
    "unrolled",
    "wrapped",
]

try:
    __version__ = importlib.metadata.version("stackjax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name in LATER:
        return importlib.import_module(f"stackjax.{name}")
    raise AttributeError(f"module 'stackjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
