"""The decoding cache: what each sublayer keeps of earlier tokens, born empty and written once a call.

The layers read the cache and return only their new entries, which are written here, behind the scan over the layers.
The token of index i lives in slot i mod (number of slots), so a sublayer that sees a window keeps a window. Masks come
from the positions of the slots alone; a padded token has index -1, is written nowhere and is seen by nobody.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attend import flat_positions
from stackjax.stack import Stack
from stackjax.sublayer import Cache, Params, Positions


def empty(
    stack: Stack,
    params: Params,
    position: Positions,
    slots: int,
    *,
    dtype: Any = jnp.float32,
    memory: jax.Array | None = None,
    memory_position: Positions | None = None,
) -> Cache:
    """A cache without tokens; of a memory it holds all that cross-attention needs, computed here once.

    Args:
        stack: the layers that will fill it.
        params: of the stack.
        position: of tokens to come, (B, T); read for B and for the kinds of position to keep.
        slots: tokens to be held by sublayers that see everything.
        dtype: of the entries, that of the stream.
        memory: (B, S, D), the encoder's output; None for a decoder alone.
        memory_position: of the memory's tokens; None means no padding.
    """
    batch = position["index"].shape[0]
    sizes: set[int] = set()
    segments: Params = {}
    for i, _, segment in stack.placed():
        segments[i] = {}
        for j, layer in enumerate(segment.layers):
            own: Params = {}
            for sub in layer.subs:
                cache = sub.cache(batch, slots, stack.d_model, dtype) or {}
                sizes |= {leaf.shape[-2] for leaf in jax.tree.leaves(cache)}
                by_layer = jax.tree.map(lambda x, n=segment.n: jnp.broadcast_to(x, (n, *x.shape)), cache)
                if memory is not None:
                    mine = params["segments"][i][str(j)][sub.name]
                    remember = jax.vmap(sub.remember, (None if segment.looped else 0, None), axis_size=segment.n)
                    by_layer = {**by_layer, **(remember(mine, memory) or {})}
                own[sub.name] = by_layer
            segments[i][str(j)] = {name: tree for name, tree in own.items() if tree}
    held = {n: {name: jnp.full((batch, n, *x.shape[2:]), -1, x.dtype) for name, x in position.items()} for n in sizes}
    known = None
    if memory is not None:
        n_keys = memory.shape[-2]
        known = {
            name: jnp.broadcast_to(x, (batch, n_keys, *x.shape[2:]))
            for name, x in flat_positions(memory_position, n_keys).items()
        }
    return Cache(position=held, segments=segments, memory_position=known)


def write(cache: Cache, state: Params, position: Positions) -> Cache:
    """The cache with new entries in it, each in slot index mod (number of slots), of which the newest win.

    Args:
        cache: before.
        state: of the stack's `Result`; its `cache` entries have leaves (n, B, ..., T, width).
        position: of the new tokens, (B, T).
    """
    index = position["index"]
    rows = jnp.arange(index.shape[0])[:, None]
    newest = jnp.max(index, -1, keepdims=True)

    def slot(slots: int) -> jax.Array:
        return jnp.where((index >= 0) & (index > newest - slots), index % slots, slots)

    def put(old: Any, new: Any) -> Any:
        if isinstance(new, dict):
            return {**old, **{name: put(old[name], entry) for name, entry in new.items()}}
        entries = jnp.moveaxis(new.astype(old.dtype), (1, -2), (0, 1))
        return old.at[:, rows, ..., slot(old.shape[-2]), :].set(entries, mode="drop")

    segments = {
        i: {
            j: put(subs, {name: out["cache"] for name, out in state[i][j].items() if "cache" in out})
            for j, subs in period.items()
        }
        for i, period in cache.segments.items()
    }
    held = {
        n: {
            name: old.at[rows, slot(n)].set(position[name].astype(old.dtype), mode="drop") for name, old in past.items()
        }
        for n, past in cache.position.items()
    }
    return replace(cache, position=held, segments=segments)
