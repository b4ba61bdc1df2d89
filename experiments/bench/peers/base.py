"""The protocol of a peer: one model, one optimiser, one training step.

The model: token embedding (V, D) + learned positions (T, D); L layers of x + attention(norm(x)), x + ffn(norm(x)) with
layer norm, causal multi-head attention, GELU (tanh) of width 4 D and no biases on the projections; a final layer norm;
logits by a matrix of their own. The optimiser: AdamW that decays all but norms and positions. The loss: mean
cross-entropy of each token given those before it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from ...lab.options import one_or_more

EPS = 1e-5
ADAM: dict[str, Any] = {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
STD = 0.02

POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
"""Rematerialisations beside none, layer and nested: jax checkpoint policies by name."""

Weights = dict[str, Any]
"""Weights under names that no library uses, matrices (in, out), those of the layers stacked on axis 0:
token (V, D), position (T, D), query, key, value, out (L, D, D), up (L, D, F), down (L, F, D), unembed (D, V), and
{attention, feed_forward, final}_norm_{scale, bias}."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers that all peers share.

    Args:
        vocab: V.
        d_model: D.
        n_heads: H.
        context: T.
        batch: B.
        depth: L.
        dtype: of the stream and the matrix products; parameters are float32.
    """

    vocab: int = 256
    d_model: int = 128
    n_heads: int = 4
    context: int = 128
    batch: int = 8
    depth: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        one_or_more(self, "vocab", "d_model", "n_heads", "context", "batch", "depth")
        if self.d_model % self.n_heads:
            raise ValueError(f"--n-heads must divide --d-model; got {self.n_heads} and {self.d_model}")

    @property
    def d_hidden(self) -> int:
        """F, the hidden width."""
        return 4 * self.d_model

    @property
    def d_head(self) -> int:
        """K, the width of a head."""
        return self.d_model // self.n_heads

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        layer = 4 * self.d_model**2 + 2 * self.d_model * self.d_hidden + 4 * self.d_model
        return self.depth * layer + (2 * self.vocab + self.context + 2) * self.d_model


class JaxPeer:
    """Base of the peers that run on JAX: pure functions of parameters, to be compiled by `jax.jit`.

    Args:
        size: of the model.
        remat: one of `remats`.
    """

    remats: ClassVar[tuple[str, ...]] = ("none", "layer", "dots")

    def __init__(self, size: Size, remat: str = "none"):
        if remat not in self.remats:
            raise ValueError(f"{type(self).__name__} has {', '.join(self.remats)}; got remat={remat!r}")
        self.size, self.remat = size, remat

    def init(self, key: jax.Array) -> Any:
        """Parameters, in the library's own structure and from its own initialisers."""
        raise NotImplementedError

    def load(self, weights: Weights) -> Any:
        """Parameters with the given weights."""
        raise NotImplementedError

    def loss(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Mean cross-entropy of tokens (B, T)."""
        raise NotImplementedError

    def decayed(self, params: Any) -> Any:
        """Tree of bool like the parameters: which ones weight decay acts on."""

        def decays(path: tuple, _: Any) -> bool:
            name = jax.tree_util.keystr(path)
            return "norm" not in name and "position" not in name

        return jax.tree_util.tree_map_with_path(decays, params)

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """AdamW, which decays all but norms and positions."""
        return optax.adamw(**ADAM, mask=self.decayed)

    def start(self, params: Any) -> Any:
        """The training state."""
        return params, self.optimiser.init(params)

    def step(self, state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        """One training step: the new state and the loss before it."""
        params, moments = state
        loss, gradients = jax.value_and_grad(self.loss)(params, tokens)
        updates, moments = self.optimiser.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss


def cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy of each token given those before it, as the peers' examples write it."""
    logits = logits[:, :-1].astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
