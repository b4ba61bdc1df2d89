"""Reading a prompt into a decoding cache, with room for the tokens that will follow it."""

from dataclasses import replace
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import struct

from stackjax.backend import rows_together
from stackjax.cache import bounded, by_rows, empty, write
from stackjax.check import ids, instance, known, whole
from stackjax.dot_product import flat_positions
from stackjax.model import Model
from stackjax.option import DecodeOptions
from stackjax.sequence import mesh_in_use
from stackjax.sublayer import Cache, Params, SideInputs, checked
from stackjax.unrolled import unrolled


@struct.dataclass
class Start:
    """A prompt that has been read.

    Args:
        logits: (B, V) of the token that comes next.
        index: (B,) its index.
        cache: holds the prompt.
    """

    logits: jax.Array
    index: jax.Array
    cache: Cache


def checked_prompt(
    model: Model, tokens: jax.Array, side_inputs: SideInputs | None, n_tokens: int
) -> tuple[SideInputs, jax.Array]:
    """The side inputs of prompts, and the index of each token (B, T), which is among them.

    Args:
        model: a decoder.
        tokens: (B, T) integers, or vectors (B, T, D).
        side_inputs: the caller's.
        n_tokens: that will follow.

    Raises:
        ValueError: what `start` raises.
    """
    instance("model", model, Model)
    shape = model.embedding.shape(tokens, model.stack.d_model)
    if len(shape) != 2:
        raise ValueError(f"prompts must be (B, T), padded to one length as `pad` does; got the shape {shape}")
    whole(n_tokens=n_tokens)
    if n_tokens < 1:
        raise ValueError(f"n_tokens must be positive; got {n_tokens}")
    if tokens.shape == shape:
        ids("tokens", tokens, model.embedding.vocab)
    side_inputs = checked(side_inputs, shape, model.stack.d_model)
    limit = model.embedding.position.limit
    if limit is not None and shape[1] + n_tokens > limit:
        raise ValueError(f"{shape[1]} + {n_tokens} tokens, but the position table has {limit} rows")
    if side_inputs.position is not None and set(side_inputs.position) != {"index"}:
        kinds = sorted(side_inputs.position)
        raise ValueError(f"only indices go on by themselves; got positions {kinds}; use `extend`")
    index = jnp.broadcast_to(flat_positions(side_inputs.position, shape[1])["index"], shape)
    numbers = known(index)
    if numbers is not None and not (numbers >= 0).any(-1).all():
        raise ValueError("every prompt needs a token; got a row whose indices are all -1, padding")
    return replace(side_inputs, position={"index": index}), index


def start(
    model: Model,
    params: Params,
    tokens: jax.Array,
    side_inputs: SideInputs | None,
    n_tokens: int,
    **options: Unpack[DecodeOptions],
) -> Start:
    """Read a prompt into a cache with room for n_tokens more; logits are taken of each row's last token alone.

    Args:
        model: a decoder.
        params: of the model.
        tokens: (B, T) integers, or vectors (B, T, D).
        side_inputs: `position` {index: (B, T)}, None for no padding; for a decoder with cross-attention `memory`
            (B, S, D) and `memory_position`.
        n_tokens: that will follow.
        **options: see `DecodeOptions`.

    Raises:
        ValueError: no token to add, more tokens than the model's position table has rows, positions other than an
            index; and, where they are known, tokens outside of the vocabulary, an empty prompt, indices too far apart
            for the cache. Where such are traced the logits are NaN.
    """
    params, (side_inputs, index) = model.checked(params), checked_prompt(model, tokens, side_inputs, n_tokens)
    capacity = index.shape[-1] + n_tokens
    dtype = options.get("dtype", jnp.float32)
    none, cache = (empty(model.stack, params["stack"], side_inputs, n, dtype=dtype) for n in (0, capacity))
    reading = replace(side_inputs, memory=None, memory_position=none.memory_position)
    x, result = model.hidden(params, tokens, reading, cache=none, **options)
    x = jnp.where(jnp.any(index >= 0, -1)[:, None, None], bounded(x, cache, {"index": index}), jnp.nan)
    cache = write(cache, result.state, {"index": index})
    last = jnp.take_along_axis(x, jnp.argmax(index, -1)[:, None, None], 1)[:, 0]
    logits = model.logits(params, last, coefficients=options.get("coefficients"))
    return Start(logits=logits, index=jnp.max(index, -1) + 1, cache=cache)


def begin(
    model: Model,
    params: Params,
    tokens: jax.Array,
    side_inputs: SideInputs | None,
    n_tokens: int,
    **options: Unpack[DecodeOptions],
) -> tuple[Model, Params, Start]:
    """`start` for a loop over tokens, with the layers taken apart (`stackjax.unrolled`).

    A few prompts after another where that is faster (`backend.rows_together`), but all at once where they have a
    memory, lie on a mesh, or are seen by an edit.

    Args:
        model: a decoder.
        params: of the model.
        tokens: as for `start`.
        side_inputs: as for `start`.
        n_tokens: that will follow.
        **options: see `DecodeOptions`.

    Returns:
        The model and the parameters of the loop's steps, and the prompts in a cache for them.
    """
    params, (side_inputs, index) = model.checked(params), checked_prompt(model, tokens, side_inputs, n_tokens)
    n_rows = rows_together(*index.shape)
    at_once = options.get("edit") is not None or side_inputs.memory is not None or not mesh_in_use(tokens).empty
    if at_once or n_rows == index.shape[0]:
        begun = start(model, params, tokens, side_inputs, n_tokens, **options)
        model, params, cache = unrolled(model, params, begun.cache)
        return model, params, replace(begun, cache=cache)

    def read(rows: tuple[jax.Array, jax.Array]) -> tuple[Cache, tuple[jax.Array, jax.Array]]:
        tokens, index = rows
        where = replace(side_inputs, position={"index": index})
        begun = start(model, params, tokens, where, n_tokens, **options)
        return unrolled(model, params, begun.cache)[-1], (begun.logits, begun.index)

    dtype = options.get("dtype", jnp.float32)
    cache = empty(model.stack, params["stack"], side_inputs, index.shape[-1] + n_tokens, dtype=dtype)
    apart, layers, cache = unrolled(model, params, cache)
    cache, (logits, after_prompt) = by_rows(read, cache, (tokens, index), n_rows)
    return apart, layers, Start(logits=logits, index=after_prompt, cache=cache)
