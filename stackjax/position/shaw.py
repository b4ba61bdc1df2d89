"""Shaw's relative positions: a learned vector for each clipped distance, added to keys and to values."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.parameter import Spec, xavier
from stackjax.position.base import Position
from stackjax.position.relation import distance
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True, kw_only=True)
class Shaw(Position):
    """score += q_i · a^K[c], value_i += sum_j w_ij a^V[c], c = clip(j - i, -max_distance, max_distance).

    Each layer has tables of its own (2 max_distance + 1, K), shared by its heads. Memory is T S (2 max_distance + 1)
    numbers once for the stack.

    Args:
        max_distance: at which distances are clipped.
        on_values: whether the second term is there.

    Source: Shaw et al. 2018, eq. (3) and (4), section 3.2, arXiv:1803.02155.
    """

    max_distance: int = 16
    on_values: bool = True

    def spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        table = Spec(shape=(2 * self.max_distance + 1, d_head), role="relative", init=xavier)
        return {"key": table, "value": table} if self.on_values else {"key": table}

    def prepare(self, shared: Params, *, query: Positions, key: Positions, **_: Any) -> jax.Array:
        """(B or 1, T, S, 2 max_distance + 1), one-hot: products with it are matrix products in both directions."""
        clipped = jnp.clip(distance(query, key), -self.max_distance, self.max_distance)
        return jax.nn.one_hot(clipped + self.max_distance, 2 * self.max_distance + 1, dtype=float)

    def score(self, params: Params, table: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
        by_distance = jnp.einsum("bthk,rk->bthr", query, params["key"].astype(query.dtype))
        return jnp.einsum("bthr,btsr->bhts", by_distance, table.astype(query.dtype))

    def value(self, params: Params, table: jax.Array, weights: jax.Array) -> jax.Array | None:
        if not self.on_values:
            return None
        by_distance = jnp.einsum("bhts,btsr->bthr", weights, table.astype(weights.dtype))
        return jnp.einsum("bthr,rk->bthk", by_distance, params["value"].astype(weights.dtype))
