"""Norms of queries, keys and values that only some checkpoints have: clipped, over all heads, with scales by head."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.norm import NoNorm, Norm
from stackjax.parameter import is_spec
from stackjax.sublayer import Params


@dataclass(frozen=True, kw_only=True)
class Clipped(Norm):
    """x clipped to [-limit, limit]; it stands where a norm of queries, keys or values would.

    Args:
        limit: of the absolute value.

    Source: MosaicML 2023 (MPT-7B), and its released code.
    """

    limit: float

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        return jnp.clip(x, -self.limit, self.limit)


def clipped(limit: float | None) -> Norm:
    """The clipping at a limit that a config gives; None for none."""
    return NoNorm() if limit is None else Clipped(limit=limit)


@dataclass(frozen=True, kw_only=True)
class OverHeads(Norm):
    """A norm over the features of all heads at once: (..., H, K) as (..., H K).

    Args:
        norm: of the features side by side.
    """

    norm: Norm

    def spec(self, d: int) -> dict[str, Any]:
        return self.norm.spec(d)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        return self.norm.apply(params, x.reshape(*x.shape[:-2], -1)).reshape(x.shape)


@dataclass(frozen=True, kw_only=True)
class NormedOverHeads(Attention):
    """Attention whose queries and keys are each normalised over all heads; give it `qk_norm=OverHeads(...)`.

    Source: OLMo 2 2024, section 3.2, arXiv:2501.00656, and its released code.
    """

    numbers = Attention.numbers

    def spec(self, d_model: int) -> dict[str, Any]:
        width = self.head_width(d_model)
        widths = {"query_norm": self.n_heads * width, "key_norm": self.groups * width}
        return {**super().spec(d_model), **{name: self.qk_norm.spec(wide) for name, wide in widths.items()}}


@dataclass(frozen=True, kw_only=True)
class NormedByHead(Attention):
    """Attention in which each head has norms of queries and keys with parameters of its own."""

    numbers = Attention.numbers

    def spec(self, d_model: int) -> dict[str, Any]:
        one = self.qk_norm.spec(self.head_width(d_model))
        heads = {"query_norm": self.n_heads, "key_norm": self.groups}
        norms = {
            name: jax.tree.map(lambda spec, n=n: replace(spec, shape=(n, *spec.shape)), one, is_leaf=is_spec)
            for name, n in heads.items()
        }
        return {**super().spec(d_model), **norms}
