"""Encodings inside attention: caches, padding, packing and shifts change nothing that they should not."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.attention import Attention
from stackjax.parameter import declare, realise
from stackjax.position.base import Position
from stackjax.sublayer import Positions, SideInputs
from stackjax.testing.compare import perturbed, promise
from stackjax.testing.inputs import N_TOKENS, located, normal

D_MODEL = 16
_check_close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13)


def _setting(position: Position, **options: Any) -> tuple[Attention, Any]:
    """Attention with grouped keys, and its parameters: {own, shared}."""
    sublayer = Attention(n_heads=4, n_kv_heads=2, position=position, **options)
    declared = declare({"own": sublayer.spec(D_MODEL), "shared": sublayer.shared(D_MODEL)})
    return sublayer, perturbed(realise(jax.random.key(0), declared, dtype=float))


@partial(jax.jit, static_argnums=0)
def _attend(sublayer: Attention, params: Any, x: jax.Array, where: Positions, cached: Any = None, cache: Any = None):
    side_inputs = SideInputs(position=where, cache=cache)
    prepared = sublayer.prepare(params["shared"], side_inputs, x.shape[-2], D_MODEL, cached)
    return sublayer.apply(params["own"], x, replace(side_inputs, prepared=prepared))


def check_cached_attention(position: Position) -> None:
    """Attention a few tokens at a time, from a cache in any order, equals attention all at once; so does padding.

    Args:
        position: acts inside attention.

    Raises:
        AssertionError: outputs that differ.
    """
    with jax.enable_x64(True):
        sublayer, params = _setting(position)
        x = normal(2, N_TOKENS, D_MODEL, key=1)
        where = located([range(N_TOKENS), [-1, -1, 0, 1, 2]])
        full, _ = _attend(sublayer, params, x, where)
        with promise(repr(position), "padding changes nothing"):
            alone, _ = _attend(sublayer, params, x[1:, 2:], located([range(3)]))
            _check_close(full[1:, 2:], alone)

        capacity = N_TOKENS + 1  # token t goes to entry N_TOKENS - 1 - t: the order of the entries means nothing
        cache = sublayer.cache(2, capacity, D_MODEL, float)
        cached = {name: jnp.full((2, capacity, *v.shape[2:]), -1, v.dtype) for name, v in where.items()}
        steps = []
        with promise(repr(position), "attention from a cache equals attention all at once"):
            for first, last in ((0, 3), (3, 4), (4, 5)):
                now = {name: v[:, first:last] for name, v in where.items()}
                y, aux = _attend(sublayer, params, x[:, first:last], now, {capacity: cached}, cache)
                steps.append(y)
                at = (slice(None), slice(N_TOKENS - last, N_TOKENS - first))
                cache = {n: v.at[:, *at].set(aux.state["cache"][n][:, :, ::-1]) for n, v in cache.items()}
                cached = {n: v.at[at].set(now[n][:, ::-1]) for n, v in cached.items()}
            stepped = jnp.concatenate(steps, 1)
            for row, empty in ((0, 0), (1, 2)):
                _check_close(stepped[row, empty:], full[row, empty:])


def check_packing(position: Position) -> None:
    """Two documents in one row do not see each other.

    Args:
        position: acts inside attention.

    Raises:
        AssertionError: outputs that differ from those of each document by itself.
    """
    with jax.enable_x64(True), promise(repr(position), "packed documents do not see each other"):
        sublayer, params = _setting(position, causal=False)
        documents = normal(1, 3, D_MODEL, key=1), normal(1, 2, D_MODEL, key=2)
        apart = [_attend(sublayer, params, x, located([range(x.shape[1])]))[0] for x in documents]
        where = {**located([[0, 1, 2, 0, 1]]), "segment": jnp.array([[0, 0, 0, 1, 1]])}
        packed, _ = _attend(sublayer, params, jnp.concatenate(documents, 1), where)
        _check_close(packed, jnp.concatenate(apart, 1))


def check_shift(position: Position) -> None:
    """Only differences of index matter: a shift of all of them changes nothing, and twice the distance does.

    Args:
        position: acts inside attention, and is meant to be relative.

    Raises:
        AssertionError: outputs that change with the shift, or do not change with the distance.
    """
    with jax.enable_x64(True), promise(repr(position), "only differences of index matter"):
        sublayer, params = _setting(position)
        x, index = normal(1, N_TOKENS, D_MODEL, key=1), jnp.arange(N_TOKENS)[None]
        first, shifted, wider = (
            _attend(sublayer, params, x, {"index": i})[0] for i in (index, 1000 + index, 2 * index)
        )
        np.testing.assert_allclose(shifted, first, rtol=1e-9, atol=1e-11)
        if not np.abs(wider - first).max() > 1e-4:
            raise AssertionError("twice the distance between tokens changes nothing either")
