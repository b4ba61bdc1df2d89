"""A learned vector for each index, added to the stream."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import positive, rows
from stackjax.parameter import Normal, Spec
from stackjax.position.base import Position
from stackjax.sublayer import Params, Positions


@dataclass(frozen=True, kw_only=True)
class Learned(Position):
    """x_t + P[first + t], with a learned table P (n_positions, D).

    Undefined from `n_positions - first` on: the model refuses a longer sequence and an index beyond; where the index is
    traced such rows are NaN. Padded tokens (index -1) get zeros.

    Args:
        n_positions: rows of the table.
        first: row of index 0 (RoBERTa and OPT leave two rows before it unused).
        std: of its initial entries.

    Source: Gehring et al. 2017, section 3.1, arXiv:1705.03122.
    """

    n_positions: int = 1024
    first: int = 0
    std: float = 0.02

    def __post_init__(self):
        positive(self, "n_positions")
        if not 0 <= self.first < self.n_positions:
            raise ValueError(f"first must be a row of the table, 0 .. {self.n_positions - 1}; got {self.first}")

    @property
    def limit(self) -> int | None:
        return self.n_positions - self.first

    def stream_spec(self, d_model: int) -> dict[str, Any]:
        return {"table": Spec(shape=(self.n_positions, d_model), role="position", init=Normal(self.std))}

    def embed(self, params: Params, position: Positions, x: jax.Array) -> jax.Array:
        index = position["index"]
        row = jnp.where(index[..., None] < 0, 0, rows(params["table"], self.first + index))
        return x + row.astype(x.dtype)
