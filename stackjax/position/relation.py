"""Encodings of how two tokens stand to each other: distances, and biases that are learned for each relation."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stackjax.position.base import Position
from stackjax.sublayer import Params, Positions


def distance(query: Positions, key: Positions) -> Int[Array, "... T S"]:
    """j - i, negative for keys before the query.

    Args:
        query: index (..., T)
        key: index (..., S)

    Returns:
        (..., T, S) integers.
    """
    return key["index"][..., None, :] - query["index"][..., :, None]


@dataclass(frozen=True, kw_only=True)
class LearnedBias(Position):
    """Base of encodings that add b(relation of i and j), learned and blind to content, to the logits.

    The bias is computed once for the whole stack, outside the scan, from one set of parameters; or in every layer from
    its own. A subclass says what the relation is (`relate`, integers or reals from positions alone), what is learned
    (`bias_spec`) and what logits follow (`logits`).

    Args:
        per_layer: whether each layer has parameters of its own.
    """

    per_layer: bool = False

    @property
    def name(self) -> str:
        """The name of the parameters among those that the stack shares."""
        return type(self).__name__.lower()

    def bias_spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        """Parameters of the bias."""
        raise NotImplementedError(f"{type(self).__name__} must override bias_spec")

    def relate(self, query: Positions, key: Positions) -> Any:
        """The relation of each key (S) to each query (T)."""
        raise NotImplementedError(f"{type(self).__name__} must override relate")

    def logits(self, params: Params, relation: Any) -> jax.Array:
        """The bias on the logits, (B or 1, H, T, S)."""
        raise NotImplementedError(f"{type(self).__name__} must override logits")

    def shared(self, n_heads: int, d_head: int) -> dict[str, Any]:
        return {} if self.per_layer else {self.name: self.bias_spec(n_heads, d_head)}

    def spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        return self.bias_spec(n_heads, d_head) if self.per_layer else {}

    def prepare(self, shared: Params, *, query: Positions, key: Positions, **_: Any) -> Any:
        relation = self.relate(query, key)
        return relation if self.per_layer else self.logits(shared[self.name], relation)

    def bias(self, params: Params, table: Any) -> jax.Array | None:
        return self.logits(params, table) if self.per_layer else table


def look_up(table: Float[Array, "R H"], row: Int[Array, "*B T S"]) -> Float[Array, "*B H T S"]:
    """Rows of a table (R, H) by relation (..., T, S), as logits (..., H, T, S)."""
    return jnp.moveaxis(table[row], -1, -3)
