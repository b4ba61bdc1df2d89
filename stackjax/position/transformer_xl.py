"""Transformer-XL's relative positions: what a query looks for, at a distance given by a sinusoid."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import positive
from stackjax.parameter import Normal, Spec
from stackjax.position.base import Position
from stackjax.position.sinusoidal import sinusoid
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True, kw_only=True)
class TransformerXL(Position):
    """score = q_i·k_j + (q_i + v)·W R(i - j) + u·k_j, with R the sinusoid of the distance.

    With a = W^T (q_i + v), a sine and a cosine coefficient for each frequency, the addition theorem takes R apart:

        a·R(i - j) = (a turned by the angles of i) · R'(j)

    so there is no relative shift and no table of distances: any positions will do, packed, padded or cached. Costs
    T S D_R products a head instead of T S K.

    Args:
        d_relative: D_R, width of the sinusoid; None means H K.
        base: of its frequencies.

    Source: Dai et al. 2019, section 3.3, arXiv:1901.02860, without the recurrence over segments.
    """

    d_relative: int | None = None
    base: float = 10_000.0

    def __post_init__(self):
        positive(self, "d_relative", "base")

    def _width(self, n_heads: int, d_head: int) -> int:
        return n_heads * d_head if self.d_relative is None else self.d_relative

    def spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        bias = Spec(shape=(n_heads, d_head), role="relative", init=Normal(0.02))
        relative = Spec(shape=(self._width(n_heads, d_head), n_heads * d_head), role="relative")
        return {"relative": relative, "content_bias": bias, "position_bias": bias}

    def prepare(
        self, shared: Params, *, query: Positions, key: Positions, n_heads: int, d_head: int, **_: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Sines then cosines of the queries' and the keys' angles.

        Args:
            shared: the stack's shared parameters; none here.
            query: positions of the queries.
            key: positions of the keys.
            n_heads: H.
            d_head: K.

        Returns:
            (B or 1, T, D_R) and (B or 1, S, D_R).
        """
        width = self._width(n_heads, d_head)
        return (
            sinusoid(query["index"], width, base=self.base, interleaved=False),
            sinusoid(key["index"], width, base=self.base, interleaved=False),
        )

    def score(self, params: Params, table: Any, query: jax.Array, key: jax.Array) -> jax.Array:
        batch, _, n_heads, d_head = query.shape
        groups = key.shape[-2]
        content, position, relative = (
            params[name].astype(query.dtype) for name in ("content_bias", "position_bias", "relative")
        )
        grouped = content.reshape(groups, n_heads // groups, d_head)
        by_key = jnp.einsum("gmk,bsgk->bgms", grouped, key).reshape(batch, n_heads, 1, -1)

        relative = relative.reshape(-1, n_heads, d_head)
        on_sine, on_cosine = jnp.split(jnp.einsum("bthk,rhk->bthr", query + position, relative), 2, -1)
        sine, cosine = jnp.split(table[0][..., None, :], 2, -1)
        turned = (on_cosine * sine - on_sine * cosine, on_sine * sine + on_cosine * cosine)
        by_distance = jnp.einsum("bthr,bsr->bhts", jnp.concatenate(turned, -1), table[1].astype(turned[0].dtype))
        return by_key + by_distance
