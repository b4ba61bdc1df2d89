"""The model in Haiku, with `hk.experimental.layer_stack`."""

from typing import Any

import haiku as hk  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

from .base import EPS, STD, JaxPeer, Size, Weights, cross_entropy


def norm(x: jax.Array, name: str) -> jax.Array:
    """Layer norm."""
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, eps=EPS, name=name)(x)


def block(x: jax.Array, size: Size) -> jax.Array:
    """One layer."""
    mask = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool))
    init = hk.initializers.VarianceScaling(1.0)
    attention = hk.MultiHeadAttention(size.n_heads, size.d_head, w_init=init, with_bias=False, name="attention")
    h = norm(x, "attention_norm")
    x = x + attention(h, h, h, mask)
    h = hk.Linear(size.d_hidden, with_bias=False, name="up")(norm(x, "feed_forward_norm"))
    return x + hk.Linear(size.d_model, with_bias=False, name="down")(jax.nn.gelu(h))


def decode(tokens: jax.Array, size: Size, remat: str) -> jax.Array:
    """The model's logits for tokens."""
    init = hk.initializers.RandomNormal(STD)
    x = hk.Embed(size.vocab, size.d_model, w_init=init, name="token")(tokens)
    x = x + hk.get_parameter("position", (size.context, size.d_model), init=init).astype(x.dtype)

    def layer(x: jax.Array) -> jax.Array:
        return block(x, size)

    stack: Any = hk.experimental.layer_stack(size.depth, name="layers")  # pyright: ignore[reportPrivateImportUsage]
    x = stack(layer if remat == "none" else hk.remat(layer))(x)
    return hk.Linear(size.vocab, with_bias=False, name="unembed")(norm(x, "final_norm"))


class Haiku(JaxPeer):
    """The peer in Haiku."""

    remats = ("none", "layer")

    def __init__(self, size: Size, remat: str = "none"):
        super().__init__(size, remat)
        self.model = hk.without_apply_rng(hk.transform(lambda tokens: decode(tokens, size, remat)))

    def init(self, key: jax.Array) -> Any:
        return self.model.init(key, jnp.zeros((1, self.size.context), jnp.int32))

    def load(self, weights: Weights) -> Any:
        names = {"final_norm": "final_norm", **{f"layers/{n}_norm": f"{n}_norm" for n in ("attention", "feed_forward")}}
        params = {
            to: {"scale": weights[f"{name}_scale"], "offset": weights[f"{name}_bias"]} for to, name in names.items()
        }
        matrices = {f"attention/{name}": name for name in ("query", "key", "value")}
        matrices |= {"attention/linear": "out", "up": "up", "down": "down"}
        params |= {f"layers/{to}": {"w": weights[name]} for to, name in matrices.items()}
        params["token"] = {"embeddings": weights["token"]}
        params["unembed"] = {"w": weights["unembed"]}
        params["~"] = {"position": weights["position"]}
        return params

    def loss(self, params: Any, tokens: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda w: w.astype(self.size.dtype), params)
        return cross_entropy(self.model.apply(params, tokens), tokens)
