"""Attention residuals: attention over depth in place of the sum."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.history import History
from stackjax.norm import Norm, RMSNorm, upcast
from stackjax.parameter import Spec, zeros
from stackjax.recipe.base import Coefficients, Geometry, Recipe, sublayer_index, with_coefficients
from stackjax.recipe.form import Form, FormCoefficients, Function, add
from stackjax.sublayer import Sublayer


@dataclass(frozen=True, kw_only=True)
class AttentionResidual(Form):
    """f(norm(h)), h = sum_i a_i v_i, a = softmax_i(w · key_norm(v_i)), with a learned w (D,) for each sublayer.

    The v_i are the embedding, the finished blocks (sums of the outputs of consecutive sublayers) and the block that is
    being summed. w starts at zero: h is their mean. At the end of the stack there is one more such h, and a norm.

    The coefficients say with `block` which block a sublayer belongs to, from 1, and with `opens` and `closes` whether
    it is the first or the last there. An observer's x_l is the running sum of the block.

    Args:
        blocks: how many there are.
        norm: of the branch's input, and at the end.
        key_norm: of the v_i, in the weights.
    """

    blocks: int
    norm: Norm = RMSNorm()
    key_norm: RMSNorm = RMSNorm()
    norms = ("norm", "key_norm")

    @property
    def kind(self) -> Hashable:
        return f"{self.blocks} attended blocks"

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        sizes = sorted({len(layer.sublayers) for layer in layers})
        if len(sizes) > 1:
            raise ValueError(f"attention residuals need the same number of sublayers in every layer; got {sizes}")

    @property
    def leave_norms(self) -> tuple[str, ...]:
        return self.norms

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {**super().spec(d_model, depth), "query": Spec(shape=(d_model,), role="residual", init=zeros)}

    def leave_spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return self.spec(d_model, depth)

    def enter(self, x: jax.Array) -> Any:
        return {"x": x, "blocks": History.start(x, self.blocks + 1)}

    def update(
        self, x: Any, f: Function, c: FormCoefficients, norm: Function, key_norm: Function, query: jax.Array
    ) -> Any:
        y = f(c.gamma * norm(attend_depth(x, c.block, c.opens == 0, key_norm, query)))
        running = add(c.alpha, jnp.where(c.opens > 0, 0, x["x"]), c.beta, y)
        blocks: History = x["blocks"]
        return {"x": running, "blocks": blocks.write(c.block, running, when=c.closes > 0)}

    def leave(self, stream: Any, norm: Function, key_norm: Function, query: jax.Array) -> jax.Array:
        return norm(attend_depth(stream, self.blocks + 1, False, key_norm, query))

    def view(self, stream: Any) -> jax.Array:
        return stream["x"]


def attend_depth(stream: Any, n: Any, running: Any, key_norm: Function, query: jax.Array) -> jax.Array:
    """Attention over depth: softmax_i(query · key_norm(v_i)) v_i over blocks v_i.

    Args:
        stream: as `AttentionResidual` carries it.
        n: how many blocks are finished.
        running: whether the block that is being summed is looked at too.
        key_norm: of the v_i in the weights.
        query: (D,)
    """

    def logit(v: jax.Array) -> jax.Array:
        return jnp.sum(upcast(key_norm(v)) * query, -1)

    blocks, x = stream["blocks"], stream["x"]
    written = blocks.written(n).reshape(-1, *(1,) * (x.ndim - 1))
    logits = (jnp.where(written, logit(blocks.slots), -jnp.inf), jnp.where(running, logit(x), -jnp.inf)[None])
    weights = jax.nn.softmax(jnp.concatenate(logits), 0)
    return (blocks.sum(weights[:-1]) + weights[-1][..., None] * upcast(x)).astype(x.dtype)


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

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        total, size = self._size(geometry)
        return replace(self.residual, blocks=-(-total // size))

    def coefficients(self, geometry: Geometry) -> Coefficients:
        total, size = self._size(geometry)
        s = sublayer_index(geometry) - 1
        closes = (s % size == size - 1) | (s == total - 1)
        block = (s // size + 1).astype(jnp.int32)
        coefficients = with_coefficients(super().coefficients(geometry), opens=s % size == 0, closes=closes)
        return {**coefficients, "sublayer": {**coefficients["sublayer"], "block": block}}
