"""The model in Equinox, with `jax.lax.scan` over a vmapped block."""

from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

from .base import EPS, POLICIES, STD, JaxPeer, Size, Weights, cross_entropy


class Block(eqx.Module):
    """One layer, of one sequence."""

    attention_norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    feed_forward_norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, size: Size, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.attention_norm = eqx.nn.LayerNorm(size.d_model, eps=EPS)
        self.attention = eqx.nn.MultiheadAttention(size.n_heads, size.d_model, key=keys[0])
        self.feed_forward_norm = eqx.nn.LayerNorm(size.d_model, eps=EPS)
        self.up = eqx.nn.Linear(size.d_model, size.d_hidden, use_bias=False, key=keys[1])
        self.down = eqx.nn.Linear(size.d_hidden, size.d_model, use_bias=False, key=keys[2])

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        h = jax.vmap(self.attention_norm)(x)
        x = x + self.attention(h, h, h, mask)
        h = jax.vmap(self.feed_forward_norm)(x)
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(h)))


class Decoder(eqx.Module):
    """The model, of one sequence."""

    token: eqx.nn.Embedding
    position: jax.Array
    layers: Block
    final_norm: eqx.nn.LayerNorm
    unembed: eqx.nn.Linear
    remat: str = eqx.field(static=True)

    def __init__(self, size: Size, remat: str, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.token = eqx.nn.Embedding(weight=STD * jax.random.normal(keys[0], (size.vocab, size.d_model)))
        self.position = STD * jax.random.normal(keys[1], (size.context, size.d_model))
        self.layers = eqx.filter_vmap(lambda key: Block(size, key))(jax.random.split(keys[2], size.depth))
        self.final_norm = eqx.nn.LayerNorm(size.d_model, eps=EPS)
        self.unembed = eqx.nn.Linear(size.d_model, size.vocab, use_bias=False, key=keys[3])
        self.remat = remat

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = jax.vmap(self.token)(tokens) + self.position
        mask = jnp.tril(jnp.ones((tokens.shape[0], tokens.shape[0]), bool))
        arrays, rest = eqx.partition(self.layers, eqx.is_array)

        def layer(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
            return eqx.combine(block, rest)(x, mask), None

        if self.remat != "none":
            layer = jax.checkpoint(layer, prevent_cse=False, policy=POLICIES.get(self.remat))
        x, _ = jax.lax.scan(layer, x, arrays)
        return jax.vmap(self.unembed)(jax.vmap(self.final_norm)(x))


class Equinox(JaxPeer):
    """Equinox, its arrays partitioned from the rest so that they go through `jax.jit`."""

    def init(self, key: jax.Array) -> Any:
        return eqx.filter(Decoder(self.size, self.remat, key), eqx.is_array)

    def load(self, weights: Weights) -> Any:
        def where(model: Decoder) -> tuple:
            layers, attention = model.layers, model.layers.attention
            projections = [getattr(attention, f"{name}_proj").weight for name in ("query", "key", "value", "output")]
            norms = [layers.attention_norm, layers.feed_forward_norm, model.final_norm]
            return (
                *projections,
                layers.up.weight,
                layers.down.weight,
                model.token.weight,
                model.position,
                model.unembed.weight,
                *(norm.weight for norm in norms),
                *(norm.bias for norm in norms),
            )

        turned = [weights[name].swapaxes(-1, -2) for name in ("query", "key", "value", "out", "up", "down")]
        turned += [weights["token"], weights["position"], weights["unembed"].T]
        norms = [
            weights[f"{name}_norm_{kind}"]
            for kind in ("scale", "bias")
            for name in ("attention", "feed_forward", "final")
        ]
        return eqx.tree_at(where, jax.eval_shape(self.init, jax.random.key(0)), (*turned, *norms))

    def loss(self, params: Any, tokens: jax.Array) -> jax.Array:
        static = eqx.filter_eval_shape(Decoder, self.size, self.remat, jax.random.key(0))
        _, static = eqx.partition(static, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        model = eqx.combine(jax.tree.map(lambda w: w.astype(self.size.dtype), params), static)
        return cross_entropy(jax.vmap(model)(tokens), tokens)
