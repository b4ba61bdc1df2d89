"""Shiv & Quirk's tree positions: the path as a stack of one-hot steps, added to the stream."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import positive
from stackjax.parameter import FanIn, Spec, zeros
from stackjax.position.base import Position
from stackjax.position.tree import depth_of, path_of
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True)
class UniformDecay:
    """w with tanh(w) uniform in [low, high]."""

    low: float
    high: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
        return jnp.arctanh(jax.random.uniform(key, shape, jnp.float32, self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class TreePath(Position):
    """x_t + PE(path of t); feature (q, c, m) is [the q-th last step goes to child c] p_m^q sqrt((1 - p_m²) D / 2).

    p_m = tanh(w_m) is learned. The latest step comes first: going down to a child pushes a one-hot step on the front,
    p^q makes the others fade, going up pops it; both are affine maps of the encoding, the same at every node. Steps
    beyond `arity` count as the last child. Only the `depth` latest steps are kept.

    Args:
        arity: n, children a node can have; 2 with `tree.left_child_right_sibling`, as in the paper.
        depth: k, steps that are kept.
        n_decays: M; None takes as many as fit in D.

    If n k M is not D, a learned matrix takes the features to D.

    Source: Shiv & Quirk 2019, section 3, "Novel positional encodings to enable tree-based transformers" (NeurIPS), and
    the released code, which draws w as Glorot does; here p begins uniform in [0.7, 0.999].
    """

    arity: int = 2
    depth: int = 32
    n_decays: int | None = None

    def __post_init__(self):
        positive(self, "arity", "depth", "n_decays")

    def _decays(self, d_model: int) -> int:
        return max(1, d_model // (self.arity * self.depth)) if self.n_decays is None else self.n_decays

    def stream_spec(self, d_model: int) -> dict[str, Any]:
        n_decays = self._decays(d_model)
        width = self.arity * self.depth * n_decays
        specs = {"decay": Spec(shape=(n_decays,), role="position", init=UniformDecay(0.7, 0.999))}
        if width != d_model:
            specs["projection"] = Spec(shape=(width, d_model), role="position", init=FanIn())
            specs["projection_bias"] = Spec(shape=(d_model,), role="bias", init=zeros)
        return specs

    def embed(self, params: Params, position: Positions, x: jax.Array) -> jax.Array:
        encoding = self.encode(params, path_of(position, "TreePath"), x.shape[-1])
        if "projection" in params:
            encoding = encoding @ params["projection"] + params["projection_bias"]
        return x + encoding.astype(x.dtype)

    def encode(self, params: Params, path: jax.Array, d_model: int) -> jax.Array:
        """(..., T, P) paths to (..., T, n k M) features, before the projection."""
        age = depth_of(path)[..., None] - 1 - jnp.arange(self.depth)
        latest = jnp.take_along_axis(path, jnp.clip(age, 0, path.shape[-1] - 1), -1)
        latest = jnp.where(age >= 0, jnp.minimum(latest, self.arity - 1), -1)
        decay = jnp.tanh(params["decay"])
        weight = decay ** jnp.arange(self.depth)[:, None] * jnp.sqrt((1 - decay**2) * d_model / 2)
        steps = jax.nn.one_hot(latest, self.arity, dtype=weight.dtype)
        features = steps[..., None] * weight[:, None, :]
        return features.reshape(*path.shape[:-1], -1)
