"""Checkpoints of public models in Hugging Face's folders: config.json and safetensors, in and out.

    from stackjax.interop import hf

    model, params, config = hf.load("path/to/gpt2")
    logits, _ = jax.jit(model.apply)(params, tokens)
    hf.save("path/to/another", params, config)

An architecture is a short description in stackjax's own terms: a function from config.json to a model, and a table of
where each tensor goes. An option or a tensor that a description does not know is refused, never left out, unless it is
among those that are known to change nothing (`inert`) or that the caller names (`ignore=`). What a config says of
training (dropout, the init's spread) is not read: set it on the model.

An architecture of your own is one file outside the library; `experiments/own_architecture.py` is one, whole:

    def describe(config: hf.Config):
        model = hf.causal.decoder(config, ...)
        return model, {"model.layers.{layer}.mlp.up_proj": hf.dense("stack/{layer}/feed_forward/up"), ...}

    mine = hf.Architecture(describe=describe, classes=("MineForCausalLM",))
    hf.load(folder, architectures={**hf.ARCHITECTURES, "mine": mine})

`hf.addresses(model)` lists what the table must name; its rows are made of `dense`, `stored`, `norm` and `tensor`, and
`within` puts a prefix before many. `hf.rotary` reads rotary positions, and `hf.causal` holds what decoders since Llama
have in common. ViT reads `hf.patches` of images in place of tokens.

Reading order: `gpt2`, `mapping`, `config`, `inert`, `checkpoint`, `folder`; then the other architectures.
"""

from stackjax.interop.hf import causal
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.architectures import ARCHITECTURES
from stackjax.interop.hf.checkpoint import Checkpoint, describe, load, save, to_tensors
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.inert import Inert
from stackjax.interop.hf.mapping import Rule, Table, addresses, dense, norm, stored, tensor, within
from stackjax.interop.hf.rope import rotary
from stackjax.interop.hf.vit import patches

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Checkpoint",
    "Config",
    "Inert",
    "Rule",
    "Table",
    "addresses",
    "causal",
    "dense",
    "describe",
    "load",
    "norm",
    "patches",
    "rotary",
    "save",
    "stored",
    "tensor",
    "to_tensors",
    "within",
]
