"""Choosing a token: small pure functions from logits to logits, and one that draws.

Removed tokens get a logit of -inf. All numbers may be traced, and may be arrays (..., 1) with one number for each row;
out of their range they are refused where they are known, and make NaN of the logits where they are traced.

Prompts of several lengths, padded and marked as such:

    >>> import jax, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> params = jax.jit(model.init)(jax.random.key(0))
    >>> tokens, side_inputs = sj.decode.pad([[1, 2, 3, 4], [5]])
    >>> side_inputs.position["index"].tolist()
    [[0, 1, 2, 3], [0, -1, -1, -1]]
    >>> sj.decode.generate(model, params, tokens, side_inputs, n_tokens=3).tokens.shape
    (2, 3)

A stream of tokens, each handed on as soon as it is there:

    >>> start = jax.jit(sj.prompt.start, static_argnums=(0, 4))
    >>> follow = jax.jit(sj.decode.follow, static_argnums=0)
    >>> state = start(model, params, tokens, side_inputs, 3)
    >>> logits, index, cache = state.logits, state.index, state.cache
    >>> for step in range(3):
    ...     token = sj.sample.draw(None, logits)
    ...     logits, cache = follow(model, params, token, index + step, cache)
    ...     print("tokens for", token.shape[0], "prompts")
    tokens for 2 prompts
    tokens for 2 prompts
    tokens for 2 prompts
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from stackjax.check import ids, integers, known, numbers_by_row, prng_key, shown

RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "temperature": (lambda t: t >= 0, "0, which is greedy, or more"),
    "top_k": (lambda k: (k >= 1) & (k % 1 == 0), "a whole number, 1 or more"),
    "top_p": (lambda p: (p > 0) & (p <= 1), "above 0 and at most 1"),
}
"""The condition on each number, and how an error says it."""


def check(rows: tuple[int, ...], **adjust: Any) -> None:
    """Refuse numbers out of their range, where they are known, and of other shapes than () and (..., 1).

    Args:
        rows: the shape of the logits without V.
        **adjust: temperature, top_k, top_p; None is none.

    Raises:
        ValueError: another name, something that is no number, or one out of its range; numbers that are not one for
            all or one for each row.
    """
    for name, number in adjust.items():
        if name not in RULES:
            raise ValueError(f"drawing is adjusted by {', '.join(RULES)}; got {name}={number}")
        if number is None:
            continue
        numbers_by_row(name, number, rows)
        holds, rule = RULES[name]
        value = known(number)
        if value is not None and not holds(value).all():
            raise ValueError(f"{name} must be {rule}; got {number}")


def temperature(logits: Float[Array, "... V"], t: Any) -> Float[Array, "... V"]:
    """logits / t up to a constant: below 1 sharpens, above 1 flattens, 0 leaves the greatest alone.

    Args:
        logits: (..., V)
        t: 0 or more.

    Returns:
        (..., V)
    """
    check(logits.shape[:-1], temperature=t)
    below = logits - jnp.max(logits, -1, keepdims=True)
    best = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, -1)[..., None]
    cold = jnp.asarray(t) < jnp.finfo(jnp.float32).tiny
    cooled = jnp.where(cold, jnp.where(best, below, -jnp.inf), below / jnp.where(cold, 1.0, t))
    return _where_allowed("temperature", t, cooled)


def top_k(logits: Float[Array, "... V"], k: Any) -> Float[Array, "... V"]:
    """Keep the k largest, and what equals the k-th.

    Args:
        logits: (..., V)
        k: 1 or more; V or more keeps all.

    Source: Fan et al. 2018, section 5.2, arXiv:1805.04833.
    """
    check(logits.shape[:-1], top_k=k)
    falling = -jnp.sort(-logits, -1)
    last = jnp.clip(jnp.asarray(k), 1, logits.shape[-1]).astype(jnp.int32) - 1
    last = jnp.broadcast_to(last, (*logits.shape[:-1], 1))
    allowed = logits >= jnp.take_along_axis(falling, last, -1)
    return _where_allowed("top_k", k, jnp.where(allowed, logits, -jnp.inf))


def top_p(logits: Float[Array, "... V"], p: Any) -> Float[Array, "... V"]:
    """Keep the smallest set of most probable tokens whose probability is at least p.

    Args:
        logits: (..., V)
        p: in (0, 1]; the most probable token is always kept.

    Source: Holtzman et al. 2019, eq. (2), arXiv:1904.09751.
    """
    check(logits.shape[:-1], top_p=p)
    order = jnp.argsort(-logits, -1)
    falling = jnp.take_along_axis(jax.nn.softmax(logits, -1), order, -1)
    before = jnp.cumsum(falling, -1) - falling
    allowed = (before < p).at[..., 0].set(True)
    allowed = jnp.take_along_axis(allowed, jnp.argsort(order, -1), -1)
    return _where_allowed("top_p", p, jnp.where(allowed, logits, -jnp.inf))


def draw(key: PRNGKeyArray | None, logits: Float[Array, "*B V"], **adjust: Any) -> Int[Array, "*B"]:
    """Draw a token from softmax(logits), adjusted; without a key, the most probable one.

    Args:
        key: PRNG key; None is greedy.
        logits: (..., V)
        **adjust: temperature, top_k, top_p, applied in this order; None leaves one out.

    Returns:
        (...) integers; -1, which is no token, where the logits are NaN or nothing is left of them.

    Raises:
        ValueError: numbers to draw by without a key, or out of their range.
    """
    check(logits.shape[:-1], **adjust)
    given = {name: number for name, number in adjust.items() if number is not None}
    possible = jnp.isfinite(jnp.max(logits, -1))
    if key is None:
        if given:
            raise ValueError(
                f"drawing by {', '.join(given)} needs a key; without one the most probable token is taken, always"
            )
        token = jnp.argmax(logits, -1)
    else:
        for change in (temperature, top_k, top_p):
            if change.__name__ in given:
                logits = change(logits, given[change.__name__])
        token = jax.random.categorical(prng_key(key), logits)
    return jnp.where(possible & jnp.isfinite(jnp.max(logits, -1)), token, -1).astype(jnp.int32)


def stop_tokens(stop: Any, vocab: int) -> Int[Array, " n"] | None:
    """The tokens that end a row, (n,); None for none.

    Args:
        stop: one, or several.
        vocab: V.

    Raises:
        ValueError: something else, or a token outside of the vocabulary.
    """
    if stop is None:
        return None
    if isinstance(stop, str):
        raise ValueError(f"stop must be a token's number, as the tokenizer gives it; got {shown(stop)}")
    several = jnp.atleast_1d(jnp.asarray(stop))
    if several.ndim != 1 or not several.size:
        raise ValueError(f"stop must be one token or several (n,), at least one; got the shape {several.shape}")
    integers("stop", several)
    ids("stop", several, vocab)
    return several


def _where_allowed(name: str, number: Any, logits: jax.Array) -> jax.Array:
    return logits if known(number) is not None else jnp.where(RULES[name][0](number), logits, jnp.nan)
