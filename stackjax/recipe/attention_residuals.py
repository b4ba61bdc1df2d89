"""Attention residuals: attention over depth in place of the sum."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.history import History
from stackjax.norm import Norm, RMSNorm, wide
from stackjax.parameter import Spec, zeros
from stackjax.recipe.base import Geometry, Recipe, Schedule
from stackjax.recipe.residual import Form, add, times, with_state
from stackjax.sublayer import Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class AttentionResidual(Form):
    """f(norm(h)), h = sum_i a_i v_i, a = softmax_i(w · key_norm(v_i)), with a learned w (D,) for each sublayer.

    The v_i are the embedding, the finished blocks (sums of the outputs of consecutive sublayers) and the block that is
    being summed. w starts at zero: h is their mean. At the end of the stack there is one more such h, and a norm.

    The schedule says with `block` which block a sublayer belongs to, from 1, and with `opens` and `closes` whether it
    is the first or the last there. An observer's x_l is the running sum of the block.

    Args:
        blocks: how many there are.
        norm: of the branch's input, and at the end.
        key_norm: of the v_i, in the weights.
    """

    blocks: int
    norm: Norm = RMSNorm()
    key_norm: RMSNorm = RMSNorm()

    @property
    def kind(self) -> Hashable:
        return f"{self.blocks} attended blocks"

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        sizes = sorted({len(layer.subs) for layer in layers})
        if len(sizes) > 1:
            raise ValueError(f"attention residuals need the same number of sublayers in every layer; got {sizes}")

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {
            "norm": self.norm.spec(d_model),
            "key_norm": self.key_norm.spec(d_model),
            "query": Spec(shape=(d_model,), role="residual", init=zeros),
        }

    def ends(self, d_model: int, depth: int) -> dict[str, Any]:
        return {"enter": {}, "leave": self.spec(d_model, depth)}

    def enter(self, params: Params, x: jax.Array) -> Any:
        return {"x": x, "blocks": History.start(x, self.blocks + 1)}

    def view(self, stream: Any) -> jax.Array:
        return stream["x"]

    def leave(self, params: Params, stream: Any) -> jax.Array:
        return self.norm.apply(params["norm"], self._attend(params, stream, self.blocks + 1, False))

    def apply(self, params, scale, stream, branch, key=None):
        h = self._attend(params, stream, scale["block"], scale["opens"] == 0)
        y, out = branch(times(scale["gamma"], self.norm.apply(params["norm"], h)))
        out = with_state(out, "norm", self.norm.state(params["norm"], h))
        running = jnp.where(scale["opens"] > 0, 0, stream["x"])
        x = add(scale["alpha"], running, scale["beta"], y)
        blocks: History = stream["blocks"]
        return {"x": x, "blocks": blocks.write(scale["block"], x, when=scale["closes"] > 0)}, out

    def _attend(self, params: Params, stream: Any, n: Any, running: Any) -> jax.Array:
        """Over the first n slots, and over the running sum if `running`."""

        def logit(v: jax.Array) -> jax.Array:
            return jnp.sum(wide(self.key_norm.apply(params["key_norm"], v)) * params["query"], -1)

        blocks, x = stream["blocks"], stream["x"]
        seen = blocks.written(n).reshape(-1, *(1,) * (x.ndim - 1))
        logits = (jnp.where(seen, logit(blocks.slots), -jnp.inf), jnp.where(running, logit(x), -jnp.inf)[None])
        weights = jax.nn.softmax(jnp.concatenate(logits), 0)
        return (blocks.sum(weights[:-1]) + weights[-1][..., None] * wide(x)).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class AttentionResiduals(Recipe):
    """Each sublayer attends over the outputs of all earlier sublayers, or over sums of blocks of them.

    Args:
        residual: the form; its number of blocks is set here.
        blocks: N, how many blocks the sublayers are divided into; None for each a block of its own (full attention
            residuals). 8 has most of the effect.

    Raises:
        ValueError: less than one block.

    Source: Kimi Team 2026, eq. (1) to (6), arXiv:2603.15031. If N does not divide the sublayers, blocks have
    ceil(S / N) of them and the last has the rest.
    """

    residual: AttentionResidual = AttentionResidual(blocks=1)
    blocks: int | None = None

    def __post_init__(self):
        if self.blocks is not None and self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, or None for full attention residuals; got {self.blocks}")

    def _size(self, geometry: Geometry) -> tuple[int, int]:
        """Sublayers in all, and in a block."""
        total = geometry.depth * geometry.n_sublayers
        return total, max(1, -(-total // (self.blocks or max(total, 1))))

    def form(self, sub: Sublayer, slot: int, layer: int, geometry: Geometry) -> Form:
        total, size = self._size(geometry)
        return replace(self.residual, blocks=-(-total // size))

    def schedule(self, geometry: Geometry) -> Schedule:
        schedule = super().schedule(geometry)
        total, size = self._size(geometry)
        s = jnp.arange(total).reshape(geometry.depth, geometry.n_sublayers)
        closes = (s % size == size - 1) | (s == total - 1)
        numbers = {"block": s // size + 1, "opens": (s % size == 0).astype(jnp.float32)}
        return {**schedule, "sub": {**schedule["sub"], **numbers, "closes": closes.astype(jnp.float32)}}
