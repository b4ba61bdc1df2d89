"""The decoding cache: what each sublayer keeps of earlier tokens, born empty and written once a call.

The layers read the cache and return only their new entries, which are written here, behind the scan over the layers.
The token of index i is entry i modulo the capacity, so a sublayer that sees a window keeps a window; one that sees all
may not overrun its capacity (`bounded`). Masks come from the positions of the entries alone; a padded token has index
-1, is written nowhere and is seen by nobody.

A sublayer of one's own that mixes tokens says what it keeps of them. Here each token reads the mean of all that came
before it, itself included; it keeps them, and masks come from the positions that the cache holds:

    >>> from dataclasses import dataclass
    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Mean(sj.Sublayer):
    ...     name: str = "mean"
    ...
    ...     def spec(self, d_model):
    ...         return {"out": sj.Spec(shape=(d_model, d_model), role="out")}
    ...
    ...     def cache(self, batch, capacity, d_model, dtype):
    ...         return {"x": jnp.zeros((batch, capacity, d_model), dtype)}
    ...
    ...     def prepare(self, shared, side_inputs, n_tokens, d_model, cached=None):
    ...         new = sj.dot_product.flat_positions(side_inputs.position, n_tokens)
    ...         keys = sj.dot_product.with_cached(cached[max(cached)], new) if cached else new
    ...         seen = sj.dot_product.visible(new, keys, causal=True)[..., 0, :, :]
    ...         return seen / jnp.maximum(seen.sum(-1, keepdims=True), 1)
    ...
    ...     def apply(self, params, x, side_inputs):
    ...         old = side_inputs.cache
    ...         tokens = x if old is None else jnp.concatenate((old["x"], x), -2)
    ...         mean = side_inputs.prepared.astype(x.dtype) @ tokens
    ...         return mean @ params["out"], sj.Aux(state={"cache": {"x": x}})
    >>> layer = sj.Layer(sublayers=(Mean(), sj.FeedForward()))
    >>> stack = sj.Stack.of(layer, depth=2, d_model=16, recipe=sj.recipe.PreNorm())
    >>> model = sj.Model(embedding=sj.Embedding(vocab=16), stack=stack)
    >>> params, prompt = jax.jit(model.init)(jax.random.key(0)), jnp.array([[3, 1, 4]])
    >>> new = sj.decode.generate(model, params, prompt, n_tokens=4).tokens
    >>> logits, _ = jax.jit(model.apply)(params, jnp.concatenate((prompt, new), 1))
    >>> bool((logits[:, 2:-1].argmax(-1) == new).all())
    True
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.check import instance, known
from stackjax.dot_product import flat_positions
from stackjax.pin import pin_batch
from stackjax.recipe.form import Form
from stackjax.stack import Stack
from stackjax.sublayer import Cache, Params, Positions, SideInputs, refuse_unread


def empty(stack: Stack, params: Params, side_inputs: SideInputs, capacity: int, *, dtype: Any = jnp.float32) -> Cache:
    """A cache without tokens; of a memory it holds all that cross-attention needs, computed here once.

    Args:
        stack: the layers that will fill it.
        params: of the stack.
        side_inputs: `position` of tokens to come, (B, T), read for B and for the kinds of position to keep; for a
            decoder with cross-attention `memory` (B, S, D) and `memory_position`.
        capacity: tokens to be held by sublayers that see everything.
        dtype: of the entries, that of the stream.

    Raises:
        ValueError: no position; layers that cannot be decoded with; a memory that none of them reads.
    """
    instance("side_inputs", side_inputs, SideInputs)
    params = stack.checked(params)
    position, memory = side_inputs.position, side_inputs.memory
    layers = (layer for segment in stack.segments for layer in segment.layers)
    refuse_unread(memory, (sublayer for layer in layers for sublayer in layer.sublayers))
    if position is None:
        raise ValueError("an empty cache is made for positions (B, T): give side_inputs.position")
    batch = position["index"].shape[0]
    sizes: set[int] = set()
    growing: set[int] = set()
    segments: Params = {}
    for i, _, segment in stack.placed():
        segments[i] = {}
        for j, layer in enumerate(segment.layers):
            for form in (*layer.forms, layer.outer):
                _refuse_mixing(form)
            entries: Params = {}
            for sublayer in layer.sublayers:
                cache = sublayer.cache(batch, capacity, stack.d_model, dtype) or {}
                larger = jax.eval_shape(partial(sublayer.cache, batch, capacity + 1, stack.d_model, dtype)) or {}
                pairs = zip(jax.tree.leaves(cache), jax.tree.leaves(larger), strict=True)
                growing |= {leaf.shape[-2] for leaf, more in pairs if leaf.shape != more.shape}
                sizes |= {leaf.shape[-2] for leaf in jax.tree.leaves(cache)}
                by_layer = jax.tree.map(lambda x, n=segment.n: jnp.broadcast_to(x, (n, *x.shape)), cache)
                if memory is not None:
                    stored = params["segments"][i][str(j)][sublayer.name]
                    remember = jax.vmap(sublayer.remember, (None if segment.looped else 0, None), axis_size=segment.n)
                    by_layer = {**by_layer, **(remember(stored, memory) or {})}
                entries[sublayer.name] = by_layer
            segments[i][str(j)] = {name: tree for name, tree in entries.items() if tree}
    held = {n: {name: jnp.full((batch, n, *x.shape[2:]), -1, x.dtype) for name, x in position.items()} for n in sizes}
    memory_position = None
    if memory is not None:
        n_keys = memory.shape[-2]
        memory_position = {
            name: jnp.broadcast_to(x, (batch, n_keys, *x.shape[2:]))
            for name, x in flat_positions(side_inputs.memory_position, n_keys).items()
        }
    return Cache(position=held, segments=segments, memory_position=memory_position, limit=min(growing, default=None))


def _refuse_mixing(form: Form | None) -> None:
    if form is None:
        return
    for name in (*form.norms, *form.enter_norms, *form.leave_norms):
        norm = form.norm_called(name)
        if norm.mixes_tokens:
            raise ValueError(
                f"decoding goes token by token, and {norm!r} normalises over the tokens of a batch; take its running "
                "statistics (training=False) or another norm"
            )


def bounded(x: jax.Array, cache: Cache, position: Positions) -> jax.Array:
    """x, NaN in the rows of the batch whose new tokens do not fit into the cache.

    A sublayer that sees everything keeps as many tokens as the cache has room for, one for each index; one that is
    there already would be seen beside the new one.

    Args:
        x: (B, ...), what the new tokens become.
        cache: before they are written.
        position: of the new tokens, (B, T).

    Raises:
        ValueError: tokens that are known not to fit.
    """
    new = jnp.sort(position["index"], -1)
    fits = ~jnp.any((new[:, 1:] == new[:, :-1]) & (new[:, 1:] >= 0), -1)
    for n, held in cache.position.items():
        fits &= ~jnp.any((jnp.take_along_axis(held["index"], new % n, -1) == new) & (new >= 0), -1)
    if cache.limit is not None:
        index = jnp.concatenate((cache.position[cache.limit]["index"], new), -1)
        newest = jnp.max(index, -1)
        oldest = jnp.min(jnp.where(index < 0, newest[:, None], index), -1)
        fits &= newest - oldest < cache.limit
    if (rows := known(fits)) is None:
        return jnp.where(fits.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan)
    if not rows.all():
        row = int(np.argmin(rows))
        raise ValueError(
            f"the cache has room for {cache.limit} tokens, one for each index from the oldest on; row {row} would have "
            f"the indices {new[row].tolist()} beside those that it holds. Make the cache with more capacity, and "
            "decode packed documents one by one"
        )
    return x


def after(x: jax.Array, position: Positions) -> Positions:
    """The positions as they are, but computed after x, so that what is written at them is written last.

    XLA copies a cache that a program reads and writes if it cannot tell which comes first.

    Args:
        x: (B, T, D), what the new tokens become, computed from all that the cache holds.
        position: of the new tokens, (B, T).
    """
    below = jnp.where(jnp.isnan(x[..., 0]), -3, -2)  # below every index, so that none is changed
    return {**position, "index": jnp.maximum(position["index"], below)}


def write(cache: Cache, state: Params, position: Positions) -> Cache:
    """The cache with new entries in it, each at its index modulo the capacity, of which the newest win.

    Args:
        cache: before.
        state: of the stack's `Result`; its `cache` entries have leaves (n, B, ..., T, width), or (n, B, ..., 1, width)
            for a sublayer that keeps the newest token's alone.
        position: of the new tokens, (B, T).
    """
    index = position["index"]
    rows = jnp.arange(index.shape[0])[:, None]
    newest = jnp.max(index, -1, keepdims=True)

    def place(capacity: int) -> jax.Array:
        return jnp.where((index >= 0) & (index > newest - capacity), index % capacity, capacity)

    def put(old: Any, new: Any) -> Any:
        if isinstance(new, dict):
            return {**old, **{name: put(old[name], entry) for name, entry in new.items()}}
        where = place(old.shape[-2])
        if new.shape[-2] < index.shape[-1]:  # the state behind the newest token alone
            where = jnp.min(where, -1, keepdims=True)
        return pin_batch(_scattered(old, where, new.astype(old.dtype)), 1)

    segments = {
        i: {
            j: put(sublayers, {name: new["cache"] for name, new in state[i][j].items() if "cache" in new})
            for j, sublayers in pattern.items()
        }
        for i, pattern in cache.segments.items()
    }
    held = {
        n: {
            name: old.at[rows, place(n)].set(position[name].astype(old.dtype), mode="drop")
            for name, old in entries.items()
        }
        for n, entries in cache.position.items()
    }
    return replace(cache, position=held, segments=segments)


def by_rows(read: Callable[[Any], tuple[Cache, Any]], cache: Cache, inputs: Any, n_rows: int) -> tuple[Cache, Any]:
    """A cache that is filled a few rows of the batch after another, and what else came of them.

    Args:
        read: of inputs (n_rows, ...) to the cache of these rows and a pytree of arrays (n_rows, ...).
        cache: to be filled, of B rows.
        inputs: pytree of arrays (B, ...).
        n_rows: a divisor of B.
    """

    def step(cache: Cache, group: tuple[jax.Array, Any]) -> tuple[Cache, Any]:
        first, inputs = group
        part, others = read(inputs)

        def put(whole: Any, part: Any, axis: int) -> Any:
            place = partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=axis)
            return jax.tree.map(place, whole, part)

        return replace(
            cache,
            position=put(cache.position, part.position, 0),
            segments=put(cache.segments, part.segments, 1),
            memory_position=put(cache.memory_position, part.memory_position, 0),
        ), others

    groups = jax.tree.map(lambda x: x.reshape(-1, n_rows, *x.shape[1:]), inputs)
    n_groups = jax.tree.leaves(groups)[0].shape[0]
    cache, others = jax.lax.scan(step, cache, (n_rows * jnp.arange(n_groups), groups))
    return cache, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), others)


def _scattered(old: jax.Array, where: jax.Array, new: jax.Array) -> jax.Array:
    """Entries (n, B, ..., S, width) with new ones (n, B, ..., T, width) at their places (B, T); at S there is none.

    Rows are a batch axis of the scatter, so that each device has its own; of indexed rows it would gather all.
    """
    tokens = old.ndim - 2
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(0, *range(2, tokens), tokens + 1),
        inserted_window_dims=(tokens,),
        scatter_dims_to_operand_dims=(tokens,),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(old, where[..., None], new, numbers, mode="drop")
