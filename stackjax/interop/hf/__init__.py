"""Checkpoints of public models in Hugging Face's folders: config.json and safetensors, in and out.

    from stackjax.interop import hf

    model, params, config = hf.load("path/to/gpt2")
    logits, _ = jax.jit(model.apply)(params, tokens)
    hf.save("path/to/another", params, config)

An architecture is a short description in stackjax's own terms: a function from config.json to a model, and a table of
where each tensor goes. An option that a description does not know is refused, never left out. What a config says of
training (dropout, the init's spread) is not read: set it on the model.

One of your own: `hf.load(folder, {**hf.ARCHITECTURES, "mine": hf.Architecture(describe=..., classes=("Mine",))})`.

Reading order: `gpt2`, `mapping`, `config`, `checkpoint`, `folder`, `tensor_file`; then the other architectures.
"""

from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.architectures import ARCHITECTURES
from stackjax.interop.hf.checkpoint import Checkpoint, describe, load, save, to_tensors
from stackjax.interop.hf.config import Config

__all__ = ["ARCHITECTURES", "Architecture", "Checkpoint", "Config", "describe", "load", "save", "to_tensors"]
