"""Decoding: one token after another, each layer's keys and values kept instead of computed again.

    cache = stackjax.cache.empty(...)        no tokens yet
    x, cache = extend(model, ..., cache)     run new tokens, a whole prompt or a single one, behind those in the cache
    generate(model, ...)                     a loop over `extend`, inside one jit; see also `stackjax.beam`

Prompts are padded on either side to the length of a bucket, with index -1, and one compile serves them all.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.tree_util import Partial

from stackjax import edit as editing
from stackjax import sample
from stackjax.cache import after, bounded, write
from stackjax.check import instance, prng_key, shown
from stackjax.model import Model
from stackjax.option import DecodeOptions
from stackjax.prompt import begin, checked_prompt
from stackjax.recipe.base import Coefficients
from stackjax.sublayer import Cache, Params, SideInputs, checked


def pad(
    prompts: Sequence[Sequence[int]], length: int | None = None, *, left: bool = False
) -> tuple[jax.Array, SideInputs]:
    """Ragged prompts as one array: `generate(model, params, *pad(prompts), n_tokens=..)`.

    Args:
        prompts: B lists of tokens.
        length: T to pad to; None takes the longest prompt's. Each length is a compile, so keep to a few.
        left: whether the padding goes before the prompt.

    Returns:
        Tokens (B, T), 0 where padded, and side inputs with their positions, -1 there.

    Raises:
        ValueError: an empty prompt, one longer than `length`, or one of anything but integers of 32 bits.
    """
    lengths = [len(prompt) for prompt in prompts]
    length = max(lengths, default=0) if length is None else length
    if not lengths or not 0 < min(lengths) <= max(lengths) <= length:
        got = f"{min(lengths)} to {max(lengths)}" if lengths else "no prompts"
        raise ValueError(f"prompts must have 1 to length={length} tokens; got {got}")
    for prompt in prompts:
        row = np.asarray(prompt)
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer) or abs(row).max() >= 2**31:
            raise ValueError(f"prompts must be lists of integer tokens; got {shown(prompt)}")
    tokens = np.zeros((len(prompts), length), np.int32)
    index = np.full((len(prompts), length), -1, np.int32)
    for row, prompt in enumerate(prompts):
        columns = slice(length - len(prompt), length) if left else slice(len(prompt))
        tokens[row, columns], index[row, columns] = prompt, np.arange(len(prompt))
    return jnp.asarray(tokens), SideInputs(position={"index": jnp.asarray(index)})


def extend(
    model: Model,
    params: Params,
    tokens: jax.Array,
    side_inputs: SideInputs,
    cache: Cache,
    **options: Unpack[DecodeOptions],
) -> tuple[jax.Array, Cache]:
    """Run new tokens behind those in the cache.

    Args:
        model: a decoder.
        params: of the model.
        tokens: (B, T) integers, or vectors (B, T, D).
        side_inputs: `position` of the tokens, (B, T); index -1 is padding. Of a memory the cache holds all that is
            needed.
        cache: what went before.
        **options: see `DecodeOptions`.

    Returns:
        (B, T, D) for `model.logits`, and the cache with the new tokens in it. Rows whose tokens do not fit into it are
        NaN.

    Raises:
        ValueError: no position; a memory; tokens that are known not to fit into the cache; a cache of other rows or of
            another stack.
    """
    shape = model.embedding.shape(tokens, model.stack.d_model)
    instance("side_inputs", side_inputs, SideInputs)
    if side_inputs.memory is not None or side_inputs.memory_position is not None:
        raise ValueError("the cache holds all that is needed of a memory: give it to cache.empty, and none here")
    position = checked(side_inputs, shape, model.stack.d_model).position
    if position is None or position["index"].shape != shape:
        got = "none" if position is None else position["index"].shape
        raise ValueError(f"say where the tokens stand: give side_inputs.position, index {shape}; got {got}")
    wanted = {name: {(segment.n, shape[0])} for name, _, segment in model.stack.placed()}
    held = {name: {leaf.shape[:2] for leaf in jax.tree.leaves(tree)} for name, tree in cache.segments.items()}
    if held.keys() != wanted.keys() or any(held[name] - wanted[name] for name in held):
        raise ValueError(
            f"the cache must be one of this model, for {shape[0]} rows: layers and rows by segment {wanted}; got {held}"
        )
    reading = replace(side_inputs, memory_position=cache.memory_position)
    x, result = model.hidden(params, tokens, reading, cache=cache, **options)
    x = bounded(x, cache, position)
    return x, write(cache, result.state, after(x, position))


def follow(
    model: Model,
    params: Params,
    token: jax.Array,
    index: jax.Array,
    cache: Cache,
    **options: Unpack[DecodeOptions],
) -> tuple[jax.Array, Cache]:
    """One more token for each row.

    Args:
        model: a decoder.
        params: of the model.
        token: (B,)
        index: (B,) where the tokens stand.
        cache: of what went before.
        **options: see `DecodeOptions`.

    Returns:
        Logits (B, V) of the tokens that follow, and the cache with these in it.
    """
    where = SideInputs(position={"index": index[:, None]})
    x, cache = extend(model, params, token[:, None], where, cache, **options)
    return model.logits(params, x[:, 0], coefficients=options.get("coefficients")), cache


@struct.dataclass
class Generated:
    """The continuations that `generate` returns.

    Args:
        tokens: (B, n) new tokens; a row that has ended repeats the stop token that ended it; -1 where the model's
            logits were NaN.
        log_prob: (B, n) of each under the model itself, before temperature and the like; 0 where a row has ended.
        length: (B,) tokens up to and with the stop token.
    """

    tokens: jax.Array
    log_prob: jax.Array
    length: jax.Array


def generate(
    model: Model,
    params: Params,
    tokens: jax.Array,
    side_inputs: SideInputs | None = None,
    *,
    n_tokens: int,
    key: jax.Array | None = None,
    temperature: Any = None,
    top_k: Any = None,
    top_p: Any = None,
    stop: Any = None,
    coefficients: Coefficients | None = None,
    dtype: Any = jnp.float32,
    edit: editing.Edit | None = None,
) -> Generated:
    """Continue prompts, one token after another.

    Compiled once for each shape of `tokens` and each n_tokens; everything else is data. Ends early when all rows have.
    On a CPU it holds a second copy of the layers' parameters, see `stackjax.unrolled`.

    Args:
        model: a decoder; of an encoder-decoder, its `decoder` together with the memory.
        params: of the model.
        tokens: (B, T) prompts, see `pad`; or vectors (B, T, D) in their place, see `Embedding.vectors`.
        side_inputs: `position` {index: (B, T)}, -1 where padded, None for no padding; with cross-attention `memory`
            (B, S, D), the encoder's output, and `memory_position`.
        n_tokens: n, how many to add.
        key: PRNG key for drawing; None takes the most probable token.
        temperature: see `stackjax.sample`; this and the next two need a key.
        top_k: see `stackjax.sample`.
        top_p: see `stackjax.sample`.
        stop: token that ends a row, or several (n,) of which each does; None for none.
        coefficients: the recipe's numbers; None takes them from the depth.
        dtype: of the stream and of the cache.
        edit: what to replace in the layers, see `stackjax.edit`; a function that is made anew is compiled anew, a
            `jax.tree_util.Partial` of one that is not takes its arrays as data.

    Raises:
        ValueError: what `prompt.start` and `sample.draw` raise; a stop token outside of the vocabulary; sublayers that
            cannot be decoded with.
    """
    checked_prompt(model, tokens, side_inputs, n_tokens)
    sample.check(tokens.shape[:1], temperature=temperature, top_k=top_k, top_p=top_p)
    key = None if key is None else prng_key(key)
    adjust = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    editing.check(edit, model.stack.sites)
    if edit is not None:
        edit = {site: f if isinstance(f, Partial) else Partial(f) for site, f in edit.items()}
    options: DecodeOptions = {"coefficients": coefficients, "dtype": dtype, "edit": edit}
    stops = sample.stop_tokens(stop, model.embedding.vocab)
    return _generate(model, params, tokens, side_inputs, n_tokens, key, adjust, stops, **options)


def repeat_last(tokens: jax.Array, length: jax.Array) -> jax.Array:
    """Tokens (..., n) with all from `length` (...) on equal to the one before."""
    last = jnp.take_along_axis(tokens, length[..., None] - 1, -1)
    return jnp.where(jnp.arange(tokens.shape[-1]) < length[..., None], tokens, last)


@partial(jax.jit, static_argnames=("model", "n_tokens", "dtype"))
def _generate(
    model: Model,
    params: Params,
    tokens: jax.Array,
    side_inputs: SideInputs | None,
    n_tokens: int,
    key: jax.Array | None,
    adjust: dict[str, Any],
    stop: jax.Array | None,
    **options: Unpack[DecodeOptions],
) -> Generated:
    model, params, begun = begin(model, params, tokens, side_inputs, n_tokens, **options)

    def choose(step: Any, logits: jax.Array, done: jax.Array, out: Generated) -> tuple[jax.Array, jax.Array, Generated]:
        token = sample.draw(None if key is None else jax.random.fold_in(key, step), logits, **adjust)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), token[:, None], -1)[:, 0]
        log_prob = jnp.where(token < 0, jnp.nan, log_prob)
        out = Generated(
            tokens=out.tokens.at[:, step].set(token),
            log_prob=out.log_prob.at[:, step].set(jnp.where(done, 0, log_prob)),
            length=out.length + ~done,
        )
        return token, done if stop is None else done | jnp.isin(token, stop), out

    def going(state: Any) -> jax.Array:
        step, _, done, _, _ = state
        return (step < n_tokens) & ~jnp.all(done)

    def go_on(state: Any) -> Any:
        step, token, done, cache, out = state
        index = jnp.where(done, -1, begun.index + step - 1)
        logits, cache = follow(model, params, token, index, cache, **options)
        token, done, out = choose(step, logits, done, out)
        return step + 1, token, done, cache, out

    batch = tokens.shape[0]
    empty = Generated(
        tokens=jnp.zeros((batch, n_tokens), jnp.int32),
        log_prob=jnp.zeros((batch, n_tokens), begun.logits.dtype),
        length=jnp.zeros(batch, jnp.int32),
    )
    token, done, out = choose(0, begun.logits, jnp.zeros(batch, bool), empty)
    out = jax.lax.while_loop(going, go_on, (1, token, done, begun.cache, out))[-1]
    return replace(out, tokens=repeat_last(out.tokens, out.length))
