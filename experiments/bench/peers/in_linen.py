"""The model in Flax Linen, with `nn.scan` over the layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .base import EPS, POLICIES, STD, JaxPeer, Size, Weights, cross_entropy


class Block(nn.Module):
    """One layer; the scan wants (carry, None)."""

    size: Size

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array):
        size, dtype = self.size, self.size.dtype
        h = nn.LayerNorm(epsilon=EPS, dtype=dtype, name="attention_norm")(x)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=size.n_heads, use_bias=False, dtype=dtype, deterministic=True, name="attention"
        )
        x = x + attention(h, mask=mask)
        h = nn.LayerNorm(epsilon=EPS, dtype=dtype, name="feed_forward_norm")(x)
        h = nn.gelu(nn.Dense(size.d_hidden, use_bias=False, dtype=dtype, name="up")(h))
        return x + nn.Dense(size.d_model, use_bias=False, dtype=dtype, name="down")(h), None


class Decoder(nn.Module):
    """The model."""

    size: Size
    remat: str

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        size, normal = self.size, nn.initializers.normal(STD)
        x = nn.Embed(size.vocab, size.d_model, embedding_init=normal, dtype=size.dtype, name="token")(tokens)
        x = x + self.param("position", normal, (size.context, size.d_model)).astype(x.dtype)
        block: Any = Block
        if self.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=POLICIES.get(self.remat))
        scan: Any = nn.scan
        blocks = scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=size.depth,
        )
        x, _ = blocks(size, name="layers")(x, nn.make_causal_mask(tokens))
        x = nn.LayerNorm(epsilon=EPS, dtype=size.dtype, name="final_norm")(x)
        return nn.Dense(size.vocab, use_bias=False, dtype=size.dtype, name="unembed")(x)


class Linen(JaxPeer):
    """The peer in Flax Linen."""

    def __init__(self, size: Size, remat: str = "none"):
        super().__init__(size, remat)
        self.model = Decoder(size, remat)

    def init(self, key: jax.Array) -> Any:
        return self.model.init(key, jnp.zeros((1, self.size.context), jnp.int32))["params"]

    def load(self, weights: Weights) -> Any:
        size = self.size
        heads = (size.depth, size.d_model, size.n_heads, size.d_head)

        def norm(name: str) -> dict:
            return {kind: weights[f"{name}_norm_{kind}"] for kind in ("scale", "bias")}

        attention = {name: {"kernel": weights[name].reshape(heads)} for name in ("query", "key", "value")}
        attention["out"] = {"kernel": weights["out"].reshape(size.depth, size.n_heads, size.d_head, size.d_model)}
        return {
            "token": {"embedding": weights["token"]},
            "position": weights["position"],
            "layers": {
                "attention_norm": norm("attention"),
                "attention": attention,
                "feed_forward_norm": norm("feed_forward"),
                "up": {"kernel": weights["up"]},
                "down": {"kernel": weights["down"]},
            },
            "final_norm": norm("final"),
            "unembed": {"kernel": weights["unembed"]},
        }

    def loss(self, params: Any, tokens: jax.Array) -> jax.Array:
        logits: Any = self.model.apply({"params": params}, tokens)
        return cross_entropy(logits, tokens)
