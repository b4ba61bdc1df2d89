"""Leaving layers out: what a layer is worth, and what the stream already says below the last one.

    stack = skippable(model.stack)
    schedule = keep(stack.schedule(), numbers)          numbers (L,): 1 keeps a layer, 0 passes the stream by

With 1 - e_l the loss tells what layer l is worth. With ones up to l and zeros above, the model's own end (its final
norm and head) reads the stream after layer l: the logit lens. The numbers are data, so one compile serves all of them,
and they may be mapped over.

Source of the lens: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.recipe.around import AroundForm
from stackjax.recipe.base import Schedule
from stackjax.recipe.residual import Form, Through
from stackjax.stack import Stack
from stackjax.sublayer import Params


@dataclass(frozen=True, kw_only=True)
class Skippable(AroundForm):
    """The form of a whole layer, or the stream as it was where the schedule's number `keep` is 0.

    Args:
        inner: the form underneath.
    """

    inner: Form = Through()

    def apply(self, params, scale, stream, branch, key=None):
        new, out = self.inner.apply(params, scale, stream, branch, key)
        return jax.tree.map(lambda a, b: jnp.where(scale["keep"] > 0, a, b), new, stream), out


def skippable(stack: Stack) -> Stack:
    """The same stack, with the same parameters, whose layers can be left out; its schedule needs `keep`."""
    segments = tuple(
        replace(segment, layers=tuple(replace(layer, outer=Skippable(inner=layer.outer)) for layer in segment.layers))
        for segment in stack.segments
    )
    return replace(stack, segments=segments)


def keep(schedule: Schedule, numbers: jax.Array) -> Schedule:
    """`schedule` with what `skippable` needs.

    Args:
        schedule: of the stack.
        numbers: (L,) 1 keeps a layer, 0 leaves it out.
    """
    return {**schedule, "outer": {**schedule["outer"], "keep": numbers}}


def losses(
    whole: Any, params: Params, batch: jax.Array, loss: Callable[[jax.Array], jax.Array], **options: Any
) -> tuple[jax.Array, jax.Array]:
    """The loss with all layers, (), and with each of them left out, (L,), one after another in one program.

    Args:
        whole: a `Stack` or a `Model`.
        params: its parameters.
        batch: what its `apply` reads.
        loss: of what `apply` returns.
        **options: of `apply`.
    """
    stack: Stack = getattr(whole, "stack", whole)
    skipping = skippable(stack) if whole is stack else replace(whole, stack=skippable(stack))

    def one(numbers: jax.Array) -> jax.Array:
        y, _ = skipping.apply(params, batch, schedule=keep(stack.schedule(), numbers), **options)
        return loss(y)

    masks = jnp.concatenate((jnp.ones((1, stack.depth)), 1 - jnp.eye(stack.depth)))
    found = jax.lax.map(one, masks)
    return found[0], found[1:]
