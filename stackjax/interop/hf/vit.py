"""ViT: an encoder of an image's patches, which stand in place of tokens behind one learned vector.

Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.parameter import linear, matrix
from stackjax.position import Learned
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre
from stackjax.stack import Stack
from stackjax.sublayer import Params, Positions


def patches(images: jax.Array, size: int) -> jax.Array:
    """Images as lists of patches, with room in front for the vector that stands for the whole.

    Args:
        images: (..., C, height, width), both multiples of the size.
        size: of a patch.

    Returns:
        (..., 1 + N, C size size): a row of zeros, and the patches line by line.
    """
    *lead, channels, height, width = images.shape
    grid = images.reshape(*lead, channels, height // size, size, width // size, size)
    rows = jnp.moveaxis(grid, (-5, -4, -3, -2, -1), (-3, -5, -2, -4, -1)).reshape(*lead, -1, channels * size * size)
    return jnp.concatenate((jnp.zeros_like(rows[..., :1, :]), rows), -2)


@dataclass(frozen=True, kw_only=True)
class Patches(Embedding):
    """Patches to vectors: patch W + b + position; at index 0 stands the only token of the vocabulary, the image's.

    Args:
        d_patch: numbers of a patch.
    """

    vocab: int = 1
    d_patch: int

    def spec(self, d_model: int) -> dict[str, Any]:
        return super().spec(d_model) | matrix(self.d_patch, d_model, "embed", name="patch", bias=True)

    def width(self, d_model: int) -> int:
        return self.d_patch

    def vectors(self, params: Params, tokens: jax.Array, position: Positions, *, multiplier: Any = 1.0) -> jax.Array:
        first = (position["index"] == 0)[..., None]
        return multiplier * jnp.where(first, params["token"][0], linear(params, "patch", tokens))


def tensors(size: int, width: int) -> Table:
    """The table of ViT's tensors; patches of that size are projected by a convolution to that width."""
    layer: Table = {
        "layernorm_before": norm("residual/attention/norm"),
        "attention.attention.query": dense("attention/query"),
        "attention.attention.key": dense("attention/key"),
        "attention.attention.value": dense("attention/value"),
        "attention.output.dense": dense("attention/out"),
        "layernorm_after": norm("residual/feed_forward/norm"),
        "intermediate.dense": dense("feed_forward/up"),
        "output.dense": dense("feed_forward/down"),
    }
    projection = "vit.embeddings.patch_embeddings.projection"
    ends: Table = {
        "vit.embeddings.cls_token": tensor("embedding/token", shape=(1, 1, width)),
        "vit.embeddings.position_embeddings": tensor("embedding/position/table", shape=(1, -1, width)),
        f"{projection}.weight": tensor("embedding/patch", transposed=True, shape=(width, -1, size, size)),
        f"{projection}.bias": tensor("embedding/patch_bias"),
        "vit.layernorm": norm("stack/leave/inner/norm"),
        "classifier.weight": tensor("head/unembed", transposed=True),
        "classifier.bias": tensor("head/bias"),
    }
    return causal.layers(layer, ends=ends, module="vit.encoder.layer.{layer}.")


def describe(config: Config) -> tuple[Model, Table]:
    """ViT with its classifier from its config. Every token has logits; the classifier reads those of the first."""
    size, width = config.take("patch_size", 16), config.take("hidden_size")
    bias = ("query", "key", "value", "out") if config.take("qkv_bias", True) else ("out",)
    attention = Attention(n_heads=config.take("num_attention_heads"), causal=False, bias=bias)
    forward = FeedForward(
        d_hidden=config.take("intermediate_size"), activation=config.activation("hidden_act", "gelu"), bias=True
    )
    n_positions = (config.take("image_size", 224) // size) ** 2 + 1
    embedding = Patches(
        d_patch=config.take("num_channels", 3) * size**2, scale=1.0, position=Learned(n_positions=n_positions)
    )
    stack = Stack.of(
        Layer(sublayers=(attention, forward)),
        depth=config.take("num_hidden_layers"),
        d_model=width,
        recipe=PreNorm(residual=Pre(norm=LayerNorm(eps=config.take("layer_norm_eps", 1e-12)))),
        side="encoder",
    )
    labels = config.take("num_labels", None) or len(config.take("id2label", None) or ("no", "yes"))
    return Model(embedding=embedding, stack=stack, head=Head(n_outputs=labels, bias=True)), tensors(size, width)


VIT = Architecture(
    describe=describe,
    classes=("ViTForImageClassification",),
    renames=(
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
    inert=inert.VIT,
)
