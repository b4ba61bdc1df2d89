"""ALiBi: a fixed penalty that grows with distance, at a slope for each head."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.position.base import Position
from stackjax.position.relation import distance
from stackjax.sublayer import Params, Positions


def slopes(n_heads: int) -> tuple[float, ...]:
    """m_h = 2^(-8h/H), h = 1 .. H, for H a power of two.

    Other H take the slopes of the power of two below, then every second one of the power above.

    Source: Press et al. 2022, section 3, arXiv:2108.12409; other H: the released code.
    """
    below = 2 ** int(math.log2(n_heads))
    first = [2.0 ** (-8 * h / below) for h in range(1, below + 1)]
    between = [2.0 ** (-4 * h / below) for h in range(1, 2 * below, 2)]
    return tuple(first + between[: n_heads - below])


@dataclass(frozen=True, kw_only=True)
class ALiBi(Position):
    """-m_h |i - j| added to the logits, with the slopes of `slopes`.

    In causal attention this is the paper's m_h (j - i); in an encoder it is the symmetric variant.

    Source: Press et al. 2022, section 3, arXiv:2108.12409.
    """

    def prepare(self, shared: Params, *, query: Positions, key: Positions, n_heads: int, **_: Any) -> jax.Array:
        slope = jnp.asarray(slopes(n_heads), float)
        return -slope[:, None, None] * jnp.abs(distance(query, key))[..., None, :, :]

    def bias(self, params: Params, table: jax.Array) -> jax.Array:
        return table
