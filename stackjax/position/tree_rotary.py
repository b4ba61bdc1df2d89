"""Tree rotary: turn queries and keys by where their nodes stand in the tree."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import positive
from stackjax.position.base import Position
from stackjax.position.rotary import turn
from stackjax.position.tree import depth_of, path_of
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True, kw_only=True)
class TreeRotary(Position):
    """Turns the last features of each head, `n_depth` pairs by depth and `n_levels` pairs by the steps of the path.

    Depth pair k turns by depth base^(-k/n_depth), level pair q by 2 pi b_q / arity, where b_q is the path's q-th step
    from the root (0 if it has none). Scores see differences: of depth, and for each level whether and how far the
    two paths step apart, so that the pairs of all levels above the lowest common ancestor agree exactly.

    Moving a subtree under another parent of equal depth leaves the scores inside it unchanged; with n_levels=0, under
    any parent. On a chain this is `Rotary` over 2 n_depth features. A linear rotary goes beside it on the first
    features: Both(first=Rotary(d_rotary=K - 2 (n_depth + n_levels)), second=TreeRotary(...)).

    Args:
        n_depth: pairs that turn by depth.
        n_levels: pairs that turn by steps, one for each level from the root; deeper levels are not seen.
        arity: child index at which a level's pair has come full circle.
        base: of the depth frequencies.

    Source: this library's own; rotations as in Su et al. 2021, arXiv:2104.09864, split over axes as HiRoPE does
    (Zhang et al. 2024, arXiv:2403.19115).
    """

    n_depth: int = 4
    n_levels: int = 4
    arity: int = 16
    base: float = 100.0

    def __post_init__(self):
        positive(self, "arity", "base")

    def prepare(self, shared: Params, *, query: Positions, new_key: Positions, d_head: int, **_: Any) -> Any:
        width = 2 * (self.n_depth + self.n_levels)
        if not 0 < width <= d_head:
            raise ValueError(
                f"TreeRotary turns 2 (n_depth + n_levels) features; got n_depth={self.n_depth}, "
                f"n_levels={self.n_levels} in heads of width {d_head}"
            )
        frequency = self.base ** (-jnp.arange(self.n_depth, dtype=float) / max(self.n_depth, 1))

        def table(position: Positions) -> tuple[jax.Array, jax.Array]:
            path = path_of(position, "TreeRotary")
            missing = max(0, self.n_levels - path.shape[-1])
            steps = jnp.pad(path[..., : self.n_levels], [(0, 0)] * (path.ndim - 1) + [(0, missing)])
            by_depth = depth_of(path)[..., None] * frequency
            by_level = (2 * math.pi / self.arity) * jnp.maximum(steps, 0)
            angle = jnp.concatenate((by_depth, by_level.astype(by_depth.dtype)), -1)
            return jnp.cos(angle), jnp.sin(angle)

        return {"query": table(query), "key": table(new_key)}

    def rotate(self, table: Any, side: str, x: jax.Array) -> jax.Array:
        cosine, sine = table[side]
        still = x.shape[-1] - 2 * cosine.shape[-1]
        return jnp.concatenate((x[..., :still], turn(x[..., still:], cosine, sine)), -1)
