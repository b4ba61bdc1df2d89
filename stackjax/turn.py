"""The turns of a loop over layers: fewer of them than are described, and gradients of the last ones alone.

Both are how a loop is trained: with a number of turns that differs from step to step, and a backward pass as short
whatever that number. The turns without a gradient come in a scan of their own, that nothing is kept of; those that are
not to be run are its first, so that the last turn is always the last of the second scan.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stackjax import history
from stackjax.check import ids, shown
from stackjax.scan import Body


def check(looped: bool, turns: Any, backward_turns: int | None, cached: bool) -> None:
    """Refuse numbers of turns that are none, or that a stack cannot be run with.

    Args:
        looped: whether the stack has a loop.
        turns: to be run.
        backward_turns: with gradients.
        cached: whether the stack decodes.

    Raises:
        ValueError: something else than numbers of turns, or no loop; `turns` in decoding.
    """
    if turns is None and backward_turns is None:
        return
    if not looped:
        raise ValueError("turns and backward_turns are of a loop over layers, and this stack has none")
    if turns is not None and (jnp.ndim(turns) or not jnp.issubdtype(jnp.result_type(turns), jnp.integer)):
        raise ValueError(f"turns must be one integer, an array () if it is traced; got {shown(turns)}")
    if turns is not None and cached:
        raise ValueError(
            "a cache holds every turn, so decode with a model of as many: `stackjax.recurrence.with_turns`"
        )
    if backward_turns is not None and not (isinstance(backward_turns, int) and backward_turns > 0):
        raise ValueError(f"backward_turns must be a positive int, known when compiling; got {shown(backward_turns)}")


def run(
    scanned: Callable[[Body, Any, Any, int], tuple[Any, Any]],
    body: Callable[[Any], Body],
    truncated: Callable[[Any, Any], Any],
    inputs: Any,
    stream: Any,
    xs: Any,
    n: int,
    *,
    turns: Any = None,
    backward_turns: int | None = None,
) -> tuple[Any, Any]:
    """A loop over layers.

    Args:
        scanned: (body, stream, xs, n) to (stream, ys), n repeats of a body.
        body: one turn, (stream, x) to (stream, (loss, state, measure, lent)), made from `inputs`.
        truncated: (stream in front of turns without gradients, stream behind them) to what goes on, see `Form`.
        inputs: what every turn reads beside the stream and xs: parameters, side inputs.
        stream: in front of the first turn.
        xs: pytree of arrays with leading axis n.
        n: the number of turns described.
        turns: (), 1 .. n, how many of them are run; traced or not. None runs all.
        backward_turns: how many of the last have gradients; None for all.

    Returns:
        The stream, NaN if a traced `turns` is out of range; and the ys stacked on axis 0 in the order of the turns,
        those of turns that were not run at the end: losses 0, measures NaN.

    Raises:
        ValueError: turns that are known to be out of range; a stream with a `History`, or layers with running
            statistics, where turns may be left out.
    """

    def one(inputs: Any) -> Body:
        return body(inputs) if turns is None else _where_wanted(body(inputs))

    skipped = 0 if turns is None else n - turns
    if turns is not None:
        ids("turns", turns, n + 1, least=1)
        if history.holds_history(stream):
            raise ValueError("a recipe that keeps what earlier layers made needs all turns: leave out `turns`")
        xs = jax.tree.map(lambda a: a[(jnp.arange(n) - skipped) % n], xs)
        xs = (jnp.arange(n) >= skipped, xs)
    last = n if backward_turns is None else min(backward_turns, n)
    first = n - last
    parts = []
    if first:
        read, start, xs_before = _stopped((inputs, stream, jax.tree.map(lambda a: a[:first], xs)))
        reached, ys = _stopped(scanned(one(read), start, xs_before, first))
        goes_on = truncated(stream, reached)
        stream = jax.tree.map(lambda new, old: jnp.where(skipped < first, new, old), goes_on, stream)
        parts.append(ys)
    stream, ys = scanned(one(inputs), stream, jax.tree.map(lambda a: a[first:], xs), last)
    ys = jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts, ys)
    if turns is not None:
        ys = jax.tree.map(lambda a: a[(jnp.arange(n) + skipped) % n], ys)
        inside = (turns >= 1) & (turns <= n)
        stream = jax.tree.map(lambda a: jnp.where(inside, a, jnp.nan), stream)
    return stream, ys


def _where_wanted(body: Body) -> Body:
    """The body where its flag says so; elsewhere the stream as it is, losses of 0 and measures of NaN."""

    def run(stream: Any, x: Any) -> tuple[Any, Any]:
        stream, (loss, state, measure, lent) = body(stream, x)
        if jax.tree.leaves(state):
            raise ValueError("layers with running statistics would average over turns not run: leave out `turns`")
        if lent:
            raise ValueError("layers behind the loop read what its last turn made: leave out `turns`")
        return stream, (loss, state, jax.tree.map(_floating, measure), lent)

    def maybe(stream: Any, flagged: tuple[jax.Array, Any]) -> tuple[Any, Any]:
        wanted, x = flagged
        loss, state, measure, lent = jax.eval_shape(run, stream, x)[1]
        unread = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), measure)
        absent = jax.tree.map(jnp.zeros_like, loss), state, unread, lent
        return jax.lax.cond(wanted, run, lambda stream, x: (stream, absent), stream, x)

    return maybe


def _floating(a: jax.Array) -> jax.Array:
    """An array that can hold NaN."""
    return a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(jnp.float32)


def _stopped(tree: Any) -> Any:
    """A pytree whose arrays pass no gradient."""
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if isinstance(a, jax.Array) else a, tree)
