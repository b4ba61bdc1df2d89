"""What the tests of positions share."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.position import Position


def index(*values: int) -> dict[str, jax.Array]:
    """Positions of one row from its indices."""
    return {"index": jnp.asarray([values], jnp.int32)}


def paths(*rows: tuple[int, ...], width: int | None = None) -> dict[str, jax.Array]:
    """Positions of one row from its paths."""
    width = max(map(len, rows)) if width is None else width
    path = np.array([row + (-1,) * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)
    return {"index": jnp.arange(len(rows), dtype=jnp.int32)[None], "path": jnp.asarray(path)[None]}


def prepared(encoding: Position, where: dict, *, shared: Any = None, n_heads: int = 2, d_head: int = 8) -> Any:
    """The table for tokens that attend to each other."""
    return encoding.prepare(shared or {}, query=where, key=where, new_key=where, n_heads=n_heads, d_head=d_head)


def logits(encoding: Position, where: dict, query: jax.Array, key: jax.Array, params: Any = None, shared: Any = None):
    """q·k with all that an encoding does to it, no scale: (B, H, T, S)."""
    return np.asarray(_logits(encoding, where, query, key, params, shared))


@partial(jax.jit, static_argnums=0)
def _logits(encoding: Position, where: dict, query: jax.Array, key: jax.Array, params: Any, shared: Any) -> jax.Array:
    n_heads, d_head = query.shape[-2:]
    table = prepared(encoding, where, shared=shared, n_heads=n_heads, d_head=d_head)
    query, key = encoding.rotate(table, "query", query), encoding.rotate(table, "key", key)
    total = jnp.einsum("bthk,bshk->bhts", query, key)
    for term in (encoding.score(params, table, query, key), encoding.bias(params, table)):
        total = total if term is None else total + term
    return total
