"""T5's relative bias: one learned number for each head and bucket of distances."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from stackjax.parameter import Normal, Spec
from stackjax.position.relation import LearnedBias, distance, look_up
from stackjax.sublayer import Params, Positions


def thresholds(n_buckets: int, max_distance: int) -> tuple[int, ...]:
    """The smallest distance of each bucket but the first, (n_buckets - 1,), increasing.

    The first half of the buckets, m = n_buckets // 2, holds one distance each; bucket m + k begins where
    m + floor(log(n / m) / log(max_distance / m) (n_buckets - m)) reaches it. Taken in integers, so that no rounding of
    a logarithm moves a boundary.
    """
    exact = n_buckets // 2
    rest = n_buckets - exact

    def reached(n: int, k: int) -> bool:
        return n**rest * exact**k >= max_distance**k * exact**rest

    far = [bisect_left(range(max_distance + 1), True, key=lambda n, k=k: reached(n, k)) for k in range(1, rest)]
    return tuple(range(1, exact + 1)) + tuple(far)


def bucket(
    relative: Int[Array, "*shape"], *, n_buckets: int = 32, max_distance: int = 128, bidirectional: bool
) -> Int[Array, "*shape"]:
    """The bucket of each distance: exact when near, logarithmic when far, one for all from `max_distance` on.

    Args:
        relative: j - i, integers.
        n_buckets: in all.
        max_distance: from which all distances share a bucket.
        bidirectional: the upper half of the buckets is for keys after the query; otherwise those are taken as
            distance 0 (they are masked).

    Returns:
        Integers 0 .. n_buckets - 1.

    Source: Raffel et al. 2020, section 2.1, arXiv:1910.10683, and the released code.
    """
    offset = jnp.zeros_like(relative)
    if bidirectional:
        n_buckets //= 2
        offset = jnp.where(relative > 0, n_buckets, 0)
        n = jnp.abs(relative)
    else:
        n = jnp.maximum(-relative, 0)
    starts = jnp.asarray(thresholds(n_buckets, max_distance))
    return offset + jnp.searchsorted(starts, n, side="right").astype(relative.dtype)


@dataclass(frozen=True, kw_only=True)
class T5Bias(LearnedBias):
    """b_h[bucket(j - i)] added to the logits.

    T5 itself has no 1/sqrt(K) scale: give `Attention(scale=1.0)` to match it.

    Args:
        n_buckets: of distances.
        max_distance: from which all distances share a bucket.
        bidirectional: whether keys behind the query have buckets of their own, as in T5's encoder; otherwise all of
            them are at distance 0. None: if attention is not causal.

    Raises:
        ValueError: too few buckets for their range.

    Source: Raffel et al. 2020, section 2.1, arXiv:1910.10683. There one table serves all layers.
    """

    n_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool | None = None

    def __post_init__(self):
        n_directions = 2 if self.bidirectional else 1
        each = self.n_buckets // n_directions
        if each < 2 or self.n_buckets % n_directions or self.max_distance <= each // 2:
            raise ValueError(
                "T5 needs at least 2 buckets a direction (an even number when bidirectional) and max_distance above "
                f"half of them; got n_buckets={self.n_buckets}, max_distance={self.max_distance}, "
                f"bidirectional={self.bidirectional}"
            )

    def for_attention(self, *, causal: bool) -> "T5Bias":
        return self if self.bidirectional is not None else replace(self, bidirectional=not causal)

    def bias_spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        init = Normal((n_heads * d_head) ** -0.5)
        return {"table": Spec(shape=(self.n_buckets, n_heads), role="relative_bias", init=init)}

    def relate(self, query: Positions, key: Positions) -> jax.Array:
        return bucket(
            distance(query, key),
            n_buckets=self.n_buckets,
            max_distance=self.max_distance,
            bidirectional=bool(self.bidirectional),
        )

    def logits(self, params: Params, relation: jax.Array) -> jax.Array:
        return look_up(params["table"], relation)
