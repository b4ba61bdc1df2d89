"""Tree relative bias: one learned number for each way from a node over the lowest common ancestor to another."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.parameter import Spec, zeros
from stackjax.position.relation import LearnedBias, look_up
from stackjax.position.tree import path_of, relate
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True, kw_only=True)
class TreeBias(LearnedBias):
    """b_h[up, down, apart] added to the logits.

    Up are the steps to the lowest common ancestor, down those from there to the key, apart how many siblings to the
    right the two ways lie at the ancestor (0 if one node is the other's ancestor).

    Self is (0, 0, 0), the parent (1, 0, 0), a child (0, 1, 0), the next sibling (1, 1, 1), the grandparent (2, 0,
    0). Moving a whole subtree anywhere leaves the logits inside it unchanged; with max_apart=0 so does any
    permutation of siblings. On a chain this is a learned bias for each clipped distance; among the children of one
    node it is one for each clipped sibling distance.

    Args:
        max_steps: at which steps up and steps down are clipped.
        max_apart: at which sibling distances are clipped, in both directions; 1 keeps only the order.

    Source: this library's own; kindred to HIBRIDS (Cao & Wang 2022, arXiv:2203.10741), with the two ways from the
    common ancestor in place of path length and level difference.
    """

    max_steps: int = 4
    max_apart: int = 1

    def bias_spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        shape = (self.max_steps + 1, self.max_steps + 1, 2 * self.max_apart + 1, n_heads)
        return {"table": Spec(shape=shape, role="relative_bias", init=zeros)}

    def relate(self, query: Positions, key: Positions) -> jax.Array:
        """(B or 1, T, S) rows of the table, its three axes taken as one."""
        up, down, apart = relate(path_of(query, "TreeBias"), path_of(key, "TreeBias"))
        up, down = jnp.minimum(up, self.max_steps), jnp.minimum(down, self.max_steps)
        apart = jnp.clip(apart, -self.max_apart, self.max_apart) + self.max_apart
        return ((self.max_steps + 1) * up + down) * (2 * self.max_apart + 1) + apart

    def logits(self, params: Params, relation: jax.Array) -> jax.Array:
        table = params["table"]
        return look_up(table.reshape(-1, table.shape[-1]), relation)
