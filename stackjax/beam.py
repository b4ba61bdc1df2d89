"""Beam search: the most probable continuations, several at a time."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from stackjax.check import numbers_by_row, whole
from stackjax.decode import follow, repeat_last
from stackjax.model import Model
from stackjax.option import DecodeOptions
from stackjax.prompt import begin, checked_prompt
from stackjax.recipe.base import Coefficients
from stackjax.sample import stop_tokens
from stackjax.sublayer import Cache, Params, SideInputs


@struct.dataclass
class Beams:
    """The continuations that `search` returns, best first.

    Args:
        tokens: (B, K, n) new tokens; a beam that has ended repeats the stop token that ended it; -1 where the model's
            logits were NaN.
        score: (B, K) log-probability of each, divided by the length penalty.
        length: (B, K) tokens up to and with the stop token.
    """

    tokens: jax.Array
    score: jax.Array
    length: jax.Array


def search(
    model: Model,
    params: Params,
    tokens: jax.Array,
    side_inputs: SideInputs | None = None,
    *,
    n_tokens: int,
    n_beams: int,
    stop: Any = None,
    length_penalty: Any = 0.0,
    coefficients: Coefficients | None = None,
    dtype: Any = jnp.float32,
) -> Beams:
    """Keep the K most probable continuations of each prompt, token by token.

    A beam that has ended stays among the K with the score it has, until better ones push it out. Ends early when all
    beams have. On a CPU it holds a second copy of the layers' parameters, see `stackjax.unrolled`.

    Args:
        model: a decoder; of an encoder-decoder, its `decoder` together with the memory.
        params: of the model.
        tokens: (B, T) prompts, see `stackjax.decode.pad`.
        side_inputs: `position` {index: (B, T)}, -1 where padded, None for no padding; with cross-attention `memory`
            (B, S, D), the encoder's output, and `memory_position`.
        n_tokens: n, how many to add.
        n_beams: K.
        stop: token that ends a beam, or several (n,) of which each does; None for none.
        length_penalty: one number, the a in ((5 + length) / 6)^a, by which the final scores are divided before they are
            ranked.
        coefficients: the recipe's numbers; None takes them from the depth.
        dtype: of the stream and of the cache.

    Raises:
        ValueError: as for `stackjax.decode.generate`; less than one beam, or more than there are continuations.

    Source: Wu et al. 2016, section 7, arXiv:1609.08144, without its coverage penalty.
    """
    checked_prompt(model, tokens, side_inputs, n_tokens)
    whole(n_beams=n_beams)
    numbers_by_row("length_penalty", length_penalty, ())
    if not 1 <= n_beams <= model.embedding.vocab**n_tokens:
        raise ValueError(f"n_beams must be 1 .. V^n, all continuations there are; got {n_beams}")
    options: DecodeOptions = {"coefficients": coefficients, "dtype": dtype}
    stop = stop_tokens(stop, model.embedding.vocab)
    return _search(model, params, tokens, side_inputs, n_tokens, n_beams, stop, length_penalty, **options)


@partial(jax.jit, static_argnames=("model", "n_tokens", "n_beams", "dtype"))
def _search(
    model: Model,
    params: Params,
    tokens: jax.Array,
    side_inputs: SideInputs | None,
    n_tokens: int,
    n_beams: int,
    stop: jax.Array | None,
    length_penalty: Any,
    *,
    coefficients: Coefficients | None,
    dtype: Any,
) -> Beams:
    options: DecodeOptions = {"coefficients": coefficients, "dtype": dtype}
    model, params, begun = begin(model, params, tokens, side_inputs, n_tokens, **options)
    batch, vocab = begun.logits.shape
    each = jnp.arange(batch)[:, None]
    first_index = jnp.repeat(begun.index, n_beams)

    def choose(step: Any, logits: jax.Array, state: tuple[Cache, jax.Array, Beams]) -> tuple[Cache, jax.Array, Beams]:
        """The K best of all K V continuations, with the cache of the beams that they continue."""
        cache, done, beams = state
        log_prob = jax.nn.log_softmax(logits, -1).reshape(batch, n_beams, vocab)
        if stop is not None:
            last = jnp.take(beams.tokens, step - 1, axis=-1, mode="clip")
            stay = jnp.where(jnp.arange(vocab) == last[:, :, None], 0, -jnp.inf)
            log_prob = jnp.where(done[:, :, None], stay, log_prob)
        score, best = jax.lax.top_k((beams.score[:, :, None] + log_prob).reshape(batch, -1), n_beams)
        parent, token = best // vocab, jnp.where(jnp.isnan(score), -1, best % vocab).astype(jnp.int32)
        done = done[each, parent]
        beams = Beams(
            tokens=beams.tokens[each, parent].at[:, :, step].set(token),
            score=score,
            length=beams.length[each, parent] + ~done,
        )
        rows = (each * n_beams + parent).reshape(-1)
        return _take_rows(cache, rows), done if stop is None else done | jnp.isin(token, stop), beams

    def going(loop: Any) -> jax.Array:
        step, (_, done, _) = loop
        return (step < n_tokens) & ~jnp.all(done)

    def go_on(loop: Any) -> Any:
        step, (cache, done, beams) = loop
        token = beams.tokens[:, :, step - 1].reshape(-1)
        index = jnp.where(done.reshape(-1), -1, first_index + step - 1)
        logits, cache = follow(model, params, token, index, cache, **options)
        return step + 1, choose(step, logits, (cache, done, beams))

    only_one = jnp.where(jnp.arange(n_beams) == 0, 0, -jnp.inf).astype(begun.logits.dtype)
    empty = Beams(
        tokens=jnp.zeros((batch, n_beams, n_tokens), jnp.int32),
        score=jnp.broadcast_to(only_one, (batch, n_beams)),
        length=jnp.zeros((batch, n_beams), jnp.int32),
    )
    cache = _take_rows(begun.cache, jnp.repeat(jnp.arange(batch), n_beams))
    first = (cache, jnp.zeros((batch, n_beams), bool), empty)
    logits = jnp.repeat(begun.logits, n_beams, 0)
    _, (_, _, beams) = jax.lax.while_loop(going, go_on, (1, choose(0, logits, first)))
    beams = replace(beams, tokens=repeat_last(beams.tokens, beams.length))
    score = beams.score / ((5 + beams.length) / 6) ** length_penalty
    order = jnp.argsort(-score, -1)
    return jax.tree.map(lambda x: x[each, order], replace(beams, score=score))


def _take_rows(cache: Cache, rows: jax.Array) -> Cache:
    """The cache of the given rows of the batch."""
    position, memory_position = jax.tree.map(lambda x: x[rows], (cache.position, cache.memory_position))
    segments = jax.tree.map(lambda x: x[:, rows], cache.segments)
    return replace(cache, position=position, segments=segments, memory_position=memory_position)
