"""Sines and cosines of the index, at geometrically spaced frequencies, added to the stream."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from stackjax.check import positive
from stackjax.position.base import Position
from stackjax.sublayer import Params, Positions


def sinusoid(
    index: Real[Array, "*B T"], d: int, *, base: float = 10_000.0, interleaved: bool = True
) -> Float[Array, "*B T {d}"]:
    """p[t, 2k] = sin(t base^(-2k/d)), p[t, 2k+1] = cos(t base^(-2k/d)).

    Args:
        index: (..., T) integers or reals.
        d: even width.
        base: of the frequencies.
        interleaved: False puts all sines before all cosines, a fixed permutation of the features (as Marian does).

    Returns:
        (..., T, d), the widest float dtype in use.

    Source: Vaswani et al. 2017, section 3.5, arXiv:1706.03762.
    """
    if d % 2:
        raise ValueError(f"sinusoidal positions need an even width; got d={d}; try {d + 1}")
    frequency = base ** (-jnp.arange(0, d, 2, dtype=float) / d)
    angle = index[..., None] * frequency
    pair = (jnp.sin(angle), jnp.cos(angle))
    if not interleaved:
        return jnp.concatenate(pair, -1)
    return jnp.stack(pair, -1).reshape(*angle.shape[:-1], d)


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(Position):
    """x_t + p_t, p_t[2k] = sin(t base^(-2k/D)), p_t[2k+1] = cos(t base^(-2k/D)).

    Args:
        base: of the frequencies.
        interleaved: False puts all sines before all cosines.

    Source: Vaswani et al. 2017, section 3.5, arXiv:1706.03762.
    """

    base: float = 10_000.0
    interleaved: bool = True

    def __post_init__(self):
        positive(self, "base")

    def embed(self, params: Params, position: Positions, x: jax.Array) -> jax.Array:
        table = sinusoid(position["index"], x.shape[-1], base=self.base, interleaved=self.interleaved)
        chex.assert_axis_dimension(table, -2, x.shape[-2])
        return x + table.astype(x.dtype)
