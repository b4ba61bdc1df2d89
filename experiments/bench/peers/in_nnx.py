"""The model in Flax NNX, with `nnx.scan` over a vmapped block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .base import EPS, POLICIES, STD, JaxPeer, Size, Weights, cross_entropy


class Block(nnx.Module):
    """One layer."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(size.dtype)
        self.attention_norm = nnx.LayerNorm(size.d_model, epsilon=EPS, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            size.n_heads, size.d_model, use_bias=False, dtype=dtype, decode=False, rngs=rngs, keep_rngs=False
        )
        self.feed_forward_norm = nnx.LayerNorm(size.d_model, epsilon=EPS, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(size.d_model, size.d_hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(size.d_hidden, size.d_model, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.feed_forward_norm(x))))


class Decoder(nnx.Module):
    """The model."""

    def __init__(self, size: Size, remat: str, *, rngs: nnx.Rngs):
        dtype, normal = jnp.dtype(size.dtype), nnx.initializers.normal(STD)

        @nnx.split_rngs(splits=size.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs: nnx.Rngs) -> Block:
            return Block(size, rngs=rngs)

        self.remat = remat
        self.token = nnx.Embed(size.vocab, size.d_model, embedding_init=normal, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(normal(rngs.params(), (size.context, size.d_model)))
        self.layers = create(rngs)
        self.final_norm = nnx.LayerNorm(size.d_model, epsilon=EPS, dtype=dtype, rngs=rngs)
        self.unembed = nnx.Linear(size.d_model, size.vocab, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.token(tokens)
        x = x + self.position[...].astype(x.dtype)
        mask = nnx.make_causal_mask(tokens)

        def layer(x: jax.Array, block: Block) -> jax.Array:
            return block(x, mask)

        if self.remat != "none":
            layer = nnx.remat(layer, prevent_cse=False, policy=POLICIES.get(self.remat))
        x = nnx.scan(layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
        return self.unembed(self.final_norm(x))


class NNX(JaxPeer):
    """Flax NNX, through `nnx.split` and `nnx.merge` inside `jax.jit`, the fast path of its performance guide."""

    def _model(self, key: jax.Array) -> Decoder:
        return Decoder(self.size, self.remat, rngs=nnx.Rngs(params=key))

    @property
    def _graph(self) -> Any:
        return nnx.graphdef(nnx.eval_shape(lambda: self._model(jax.random.key(0))))

    def init(self, key: jax.Array) -> Any:
        return nnx.state(self._model(key))

    def load(self, weights: Weights) -> Any:
        size = self.size
        state = nnx.state(nnx.eval_shape(lambda: self._model(jax.random.key(0))))
        heads = (size.depth, size.d_model, size.n_heads, size.d_head)
        flat = {
            ("token", "embedding"): weights["token"],
            ("position",): weights["position"],
            ("layers", "attention", "out", "kernel"): weights["out"].reshape(
                size.depth, size.n_heads, size.d_head, size.d_model
            ),
            ("layers", "up", "kernel"): weights["up"],
            ("layers", "down", "kernel"): weights["down"],
            ("unembed", "kernel"): weights["unembed"],
        }
        for name in ("query", "key", "value"):
            flat["layers", "attention", name, "kernel"] = weights[name].reshape(heads)
        for kind in ("scale", "bias"):
            flat["final_norm", kind] = weights[f"final_norm_{kind}"]
            for sublayer in ("attention", "feed_forward"):
                flat["layers", f"{sublayer}_norm", kind] = weights[f"{sublayer}_norm_{kind}"]
        for path, variable in nnx.to_flat_state(state):
            variable.set_value(flat[path])
        return state

    def loss(self, params: Any, tokens: jax.Array) -> jax.Array:
        return cross_entropy(nnx.merge(self._graph, params)(tokens), tokens)

    def start(self, params: Any) -> Any:
        model = nnx.merge(self._graph, params)
        return nnx.state((model, nnx.Optimizer(model, self.optimiser, wrt=nnx.Param)))

    def step(self, state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        blank = nnx.eval_shape(lambda: self._model(jax.random.key(0)))
        graph = nnx.graphdef((blank, nnx.eval_shape(lambda: nnx.Optimizer(blank, self.optimiser, wrt=nnx.Param))))
        model, optimiser = nnx.merge(graph, state)
        loss, gradients = nnx.value_and_grad(lambda model: cross_entropy(model(tokens), tokens))(model)
        optimiser.update(model, gradients)
        return nnx.state((model, optimiser)), loss
