"""Rotary positions: turn queries and keys by angles proportional to their index, so that scores see differences."""

from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stackjax.check import positive
from stackjax.position.base import Position
from stackjax.position.rotary_scaling import Scaling
from stackjax.sublayer import Params, Positions


def turn(
    x: Float[Array, "*B T H K"],
    cosine: Float[Array, "*#B T half"],
    sine: Float[Array, "*#B T half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "*B T H K"]:
    """Rotate pairs of features: (a, b) to (a cos - b sin, a sin + b cos).

    Args:
        x: (..., T, H, K)
        cosine: (..., T, R/2) for the first R <= K features; the rest pass through.
        sine: like cosine.
        interleaved: pairs are features (2k, 2k+1), as in RoFormer; otherwise (k, k + R/2), as in GPT-NeoX and LLaMA.

    Returns:
        (..., T, H, K), dtype of x.

    Source: Su et al. 2021, eq. (34), arXiv:2104.09864.
    """
    half = cosine.shape[-1]
    chex.assert_equal_shape((cosine, sine))
    head, rest = x[..., : 2 * half], x[..., 2 * half :]
    c, s = cosine[..., None, :], sine[..., None, :]
    if interleaved:
        a, b = head[..., 0::2], head[..., 1::2]
        turned = jnp.stack((a * c - b * s, a * s + b * c), -1).reshape(head.shape)
    else:
        a, b = head[..., :half], head[..., half:]
        turned = jnp.concatenate((a * c - b * s, a * s + b * c), -1)
    return jnp.concatenate((turned.astype(x.dtype), rest), -1) if rest.shape[-1] else turned.astype(x.dtype)


def to_halves(
    weight: Float[Array, "*lead HK"], *, d_head: int, d_rotary: int | None = None
) -> Float[Array, "*lead HK"]:
    """Reorder a query or key projection trained with interleaved pairs, for use with pairs (k, k + R/2).

    Rotating the reordered features in halves equals rotating the original ones interleaved and reordering then; scores
    do not change. Biases and norms over the head width are reordered by the same call.

    Args:
        weight: (..., H K), heads one after another on the last axis; (..., K) will do.
        d_head: K.
        d_rotary: R; None means K.

    Returns:
        Like `weight`.
    """
    width = d_head if d_rotary is None else d_rotary
    return _reorder(weight, d_head, [*range(0, width, 2), *range(1, width, 2), *range(width, d_head)])


def to_interleaved(
    weight: Float[Array, "*lead HK"], *, d_head: int, d_rotary: int | None = None
) -> Float[Array, "*lead HK"]:
    """The inverse of `to_halves`."""
    width = d_head if d_rotary is None else d_rotary
    pairs = [k + offset for k in range(width // 2) for offset in (0, width // 2)]
    return _reorder(weight, d_head, [*pairs, *range(width, d_head)])


def _reorder(weight: jax.Array, d_head: int, order: list[int]) -> jax.Array:
    chex.assert_is_divisible(weight.shape[-1], d_head)
    heads = weight.reshape(*weight.shape[:-1], -1, d_head)
    return heads[..., jnp.asarray(order)].reshape(weight.shape)


@dataclass(frozen=True, kw_only=True)
class Rotary(Position):
    """score(i, j) = (R_i q)·(R_j k), R_t turns feature pair k by t base^(-2k/R), so that only i - j counts (RoPE).

    Args:
        d_rotary: R, how many features of each head turn; None means all K.
        base: of the frequencies base^(-2k/R).
        interleaved: the pairing, see `turn`.
        scaling: of the frequencies, for contexts longer than those trained on.

    Source: Su et al. 2021, arXiv:2104.09864.
    """

    d_rotary: int | None = None
    base: float = 10_000.0
    interleaved: bool = False
    scaling: Scaling = Scaling()

    def __post_init__(self):
        positive(self, "base", "d_rotary")

    @property
    def numbers(self) -> tuple[str, ...]:
        """The base may differ by layer, unless the frequencies are scaled."""
        return ("base",) if type(self.scaling) is Scaling else ()

    def prepare(
        self,
        shared: Params,
        *,
        query: Positions,
        key: Positions,
        new_key: Positions,
        d_head: int,
        base: Any = None,
        **_: Any,
    ) -> Any:
        width = d_head if self.d_rotary is None else self.d_rotary
        if width % 2 or not 0 < width <= d_head:
            raise ValueError(f"rotary features must be even and at most the head width; got {width} of {d_head}")
        length = 1 + jnp.max(key["index"], -1, keepdims=True)
        frequency = self.scaling.frequencies(width, self.base if base is None else base, length)[..., None, :]

        def table(position: Positions) -> tuple[jax.Array, jax.Array]:
            angle = position["index"][..., None] * frequency
            return self.scaling.attention * jnp.cos(angle), self.scaling.attention * jnp.sin(angle)

        return {"query": table(query), "key": table(new_key)}

    def rotate(self, table: Any, side: str, x: jax.Array) -> jax.Array:
        cosine, sine = table[side]
        return turn(x, cosine, sine, interleaved=self.interleaved)
