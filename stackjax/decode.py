"""Decoding: one token after another, each layer's keys and values kept instead of computed again.

    cache = stackjax.cache.empty(...)        no tokens yet
    x, cache = extend(model, ..., cache)     run new tokens, a whole prompt or a single one, behind those in the cache
    generate(model, ...)                     a loop over `extend`, inside one jit; see also `stackjax.beam`

Prompts are padded on either side to the length of a bucket, with index -1, and one compile serves them all.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from stackjax import sample
from stackjax.attend import flat_positions
from stackjax.cache import empty, write
from stackjax.model import Model
from stackjax.recipe.base import Schedule
from stackjax.sublayer import Cache, Given, Params, Positions


def pad(
    prompts: Sequence[Sequence[int]], length: int | None = None, *, left: bool = False
) -> tuple[jax.Array, Positions]:
    """Ragged prompts as one array.

    Args:
        prompts: B lists of tokens.
        length: T to pad to; None takes the longest prompt's. Each length is a compile, so keep to a few.
        left: whether the padding goes before the prompt.

    Returns:
        Tokens (B, T), 0 in padded slots, and their positions, -1 there.

    Raises:
        ValueError: an empty prompt, or one longer than `length`.
    """
    lengths = [len(prompt) for prompt in prompts]
    length = max(lengths) if length is None else length
    if not 0 < min(lengths) <= max(lengths) <= length:
        raise ValueError(f"prompts must have 1 to length={length} tokens; got {min(lengths)} to {max(lengths)}")
    tokens = np.zeros((len(prompts), length), np.int32)
    index = np.full((len(prompts), length), -1, np.int32)
    for row, prompt in enumerate(prompts):
        here = slice(length - len(prompt), length) if left else slice(len(prompt))
        tokens[row, here], index[row, here] = prompt, np.arange(len(prompt))
    return jnp.asarray(tokens), {"index": jnp.asarray(index)}


def extend(
    model: Model,
    params: Params,
    tokens: jax.Array,
    position: Positions,
    cache: Cache,
    *,
    schedule: Schedule | None = None,
    dtype: Any = jnp.float32,
    **options: Any,
) -> tuple[jax.Array, Cache]:
    """Run new tokens behind those in the cache.

    Args:
        model: a decoder.
        params: of the model.
        tokens: (B, T) integers.
        position: of the tokens, (B, T); index -1 is padding.
        cache: what went before.
        schedule: the recipe's numbers; None takes them from the depth.
        dtype: of the stream.
        **options: of `Model.hidden`.

    Returns:
        (B, T, D) for `model.logits`, and the cache with the new tokens in it.
    """
    chex.assert_shape(position["index"], tokens.shape)
    given = Given(position=position, memory_position=cache.memory_position)
    x, result = model.hidden(params, tokens, given, cache=cache, schedule=schedule, dtype=dtype, **options)
    return x, write(cache, result.state, position)


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


def start(
    model: Model,
    params: Params,
    tokens: jax.Array,
    position: Positions | None,
    n_tokens: int,
    *,
    memory: jax.Array | None = None,
    memory_position: Positions | None = None,
    schedule: Schedule | None = None,
    dtype: Any = jnp.float32,
) -> Start:
    """Read a prompt into a cache with room for n_tokens more; logits are taken of each row's last token alone.

    Args:
        model: a decoder.
        params: of the model.
        tokens: (B, T) integers.
        position: {index: (B, T)}; None means no padding.
        n_tokens: that will follow.
        memory: see `empty`.
        memory_position: see `empty`.
        schedule: see `extend`.
        dtype: of the stream and of the cache.

    Raises:
        ValueError: no token to add, more tokens than the model's position table has rows, or positions other than an
            index.
    """
    chex.assert_rank(tokens, 2)
    if n_tokens < 1:
        raise ValueError(f"n_tokens must be positive; got {n_tokens}")
    slots, limit = tokens.shape[1] + n_tokens, model.embedding.position.limit
    if limit is not None and slots > limit:
        raise ValueError(f"{tokens.shape[1]} + {n_tokens} tokens, but the position table has {limit} rows")
    if position is not None and set(position) != {"index"}:
        raise ValueError(f"only indices go on by themselves; got positions {sorted(position)}; use `extend`")
    index = jnp.broadcast_to(flat_positions(position, tokens.shape[1])["index"], tokens.shape)
    position = {"index": index}
    remembered = {"memory": memory, "memory_position": memory_position}
    nothing, cache = (empty(model.stack, params["stack"], position, n, dtype=dtype, **remembered) for n in (0, slots))
    given = Given(position=position, memory_position=nothing.memory_position)
    x, result = model.hidden(params, tokens, given, cache=nothing, schedule=schedule, dtype=dtype)
    cache = write(cache, result.state, position)
    last = jnp.take_along_axis(x, jnp.argmax(index, -1)[:, None, None], 1)[:, 0]
    return Start(logits=model.logits(params, last, schedule=schedule), index=jnp.max(index, -1) + 1, cache=cache)


def follow(
    model: Model,
    params: Params,
    token: jax.Array,
    index: jax.Array,
    cache: Cache,
    *,
    schedule: Schedule | None = None,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, Cache]:
    """One more token for each row.

    Args:
        model: a decoder.
        params: of the model.
        token: (B,)
        index: (B,) where the tokens stand.
        cache: of what went before.
        schedule: the recipe's numbers; None takes them from the depth.
        dtype: of the stream.

    Returns:
        Logits (B, V) of the tokens that follow, and the cache with these in it.
    """
    x, cache = extend(model, params, token[:, None], {"index": index[:, None]}, cache, schedule=schedule, dtype=dtype)
    return model.logits(params, x[:, 0], schedule=schedule), cache


@struct.dataclass
class Generated:
    """What `generate` returns.

    Args:
        tokens: (B, n) new tokens; a row that has ended is filled with the stop token.
        log_prob: (B, n) of each under the model itself, before temperature and the like; 0 where a row has ended.
        length: (B,) tokens up to and with the stop token.
    """

    tokens: jax.Array
    log_prob: jax.Array
    length: jax.Array


@partial(jax.jit, static_argnames=("model", "n_tokens", "dtype"))
def generate(
    model: Model,
    params: Params,
    tokens: jax.Array,
    position: Positions | None = None,
    *,
    n_tokens: int,
    key: jax.Array | None = None,
    temperature: Any = None,
    top_k: Any = None,
    top_p: Any = None,
    stop: Any = None,
    memory: jax.Array | None = None,
    memory_position: Positions | None = None,
    schedule: Schedule | None = None,
    dtype: Any = jnp.float32,
) -> Generated:
    """Continue prompts.

    Compiled once for each shape of `tokens` and each n_tokens; everything else is data. Ends early when all rows have.

    Args:
        model: a decoder; of an encoder-decoder, its `decoder` together with the memory.
        params: of the model.
        tokens: (B, T) prompts, see `pad`.
        position: {index: (B, T)}, -1 where padded; None means no padding.
        n_tokens: n, how many to add.
        key: PRNG key for drawing; None takes the most probable token.
        temperature: see `stackjax.sample`.
        top_k: see `stackjax.sample`.
        top_p: see `stackjax.sample`.
        stop: token that ends a row; None for none.
        memory: (B, S, D), the encoder's output; None for a decoder alone.
        memory_position: of the memory's tokens; None means no padding.
        schedule: the recipe's numbers; None takes them from the depth.
        dtype: of the stream and of the cache.
    """
    own = {"schedule": schedule, "dtype": dtype}
    begun = start(model, params, tokens, position, n_tokens, memory=memory, memory_position=memory_position, **own)
    adjust = {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    def choose(step: Any, logits: jax.Array, done: jax.Array, out: Generated) -> tuple[jax.Array, jax.Array, Generated]:
        token = sample.draw(None if key is None else jax.random.fold_in(key, step), logits, **adjust)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), token[:, None], -1)[:, 0]
        if stop is not None:
            token = jnp.where(done, stop, token).astype(token.dtype)
        out = Generated(
            tokens=out.tokens.at[:, step].set(token),
            log_prob=out.log_prob.at[:, step].set(jnp.where(done, 0, log_prob)),
            length=out.length + ~done,
        )
        return token, done if stop is None else token == stop, out

    def going(state: Any) -> jax.Array:
        step, _, done, _, _ = state
        return (step < n_tokens) & ~jnp.all(done)

    def go_on(state: Any) -> Any:
        step, token, done, cache, out = state
        index = jnp.where(done, -1, begun.index + step - 1)
        logits, cache = follow(model, params, token, index, cache, **own)
        token, done, out = choose(step, logits, done, out)
        return step + 1, token, done, cache, out

    batch = tokens.shape[0]
    nothing = Generated(
        tokens=jnp.full((batch, n_tokens), 0 if stop is None else stop, jnp.int32),
        log_prob=jnp.zeros((batch, n_tokens), begun.logits.dtype),
        length=jnp.zeros(batch, jnp.int32),
    )
    token, done, out = choose(0, begun.logits, jnp.zeros(batch, bool), nothing)
    return jax.lax.while_loop(going, go_on, (1, token, done, begun.cache, out))[-1]
