"""Leaving layers out: what a layer is worth, and what the stream already says below the last one.

    stack = skippable(model.stack)
    coefficients = keep(stack.coefficients(), numbers)          numbers (L,): 1 keeps a layer, 0 passes the stream by

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
import numpy as np

from stackjax.abstract_model import AbstractModel
from stackjax.layer import Layer
from stackjax.recipe.around import Around, AroundForm
from stackjax.recipe.base import Coefficients, Geometry
from stackjax.recipe.form import Branch, Form, FormCoefficients, Function
from stackjax.stack import Stack
from stackjax.sublayer import Aux, Params


@dataclass(frozen=True, kw_only=True)
class AsItIs(Form):
    """f(x): a layer whose sublayers join the stream themselves."""

    def update(self, x: Any, f: Function, c: FormCoefficients) -> Any:
        return f(x)


@dataclass(frozen=True, kw_only=True)
class Skippable(AroundForm):
    """The form of a whole layer, or the stream as it was where the coefficient `keep` is 0.

    Args:
        inner: the form underneath.
    """

    inner: Form = AsItIs()

    def apply(
        self, params: Params, c: FormCoefficients, stream: Any, branch: Branch, key: jax.Array | None = None
    ) -> tuple[Any, Aux]:
        new, aux = self.inner.apply(params, c, stream, branch, key)
        return jax.tree.map(lambda a, b: jnp.where(c.keep > 0, a, b), new, stream), aux


@dataclass(frozen=True, kw_only=True)
class _Skipping(Around):
    """Any recipe, with layers that can be left out: `keep` among the coefficients of each, 1 at first."""

    def outer(self, layer: int, geometry: Geometry) -> Form:
        return Skippable(inner=self.base.outer(layer, geometry) or AsItIs())

    def coefficients(self, geometry: Geometry) -> Coefficients:
        return keep(self.base.coefficients(geometry), jnp.ones(geometry.depth, jnp.float32))


def skippable(stack: Stack) -> Stack:
    """A stack with the same parameters whose layers can be left out by `keep` among its coefficients."""

    def change(layer: Layer) -> Layer:
        return replace(layer, outer=Skippable(inner=layer.outer or AsItIs()))

    segments = tuple(segment.map(change) for segment in stack.segments)
    return replace(stack, segments=segments, recipe=_Skipping(base=stack.recipe))


def keep(coefficients: Coefficients, numbers: jax.Array) -> Coefficients:
    """`coefficients` with what `skippable` needs.

    Args:
        coefficients: of the stack.
        numbers: (L,) 1 keeps a layer, 0 leaves it out.
    """
    return {**coefficients, "outer": {**coefficients["outer"], "keep": numbers}}


def losses(
    model: AbstractModel, params: Params, batch: Any, loss: Callable[[jax.Array], jax.Array], **options: Any
) -> tuple[jax.Array, Any]:
    """The loss with all layers, (), and with each of them left out, one after another in one program.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters.
        batch: what its `apply` reads: an array, or a tuple (source, tokens).
        loss: of what `apply` returns.
        **options: of `apply`.

    Returns:
        (), and (L,) for each stack: {encoder: .., decoder: ..} in an encoder-decoder.
    """
    inputs = batch if isinstance(batch, tuple) else (batch,)
    skipping = model.with_stacks({path: skippable(stack) for path, stack in model.stacks().items()})

    depths, tree = jax.tree.flatten(model.per_stack(lambda _, stack: stack.depth))
    coefficients = tree.flatten_up_to(model.per_stack(lambda _, stack: stack.coefficients()))

    def one(numbers: list[jax.Array]) -> jax.Array:
        coefficients_left = jax.tree.unflatten(tree, list(map(keep, coefficients, numbers)))
        y, _ = skipping.apply(params, *inputs, coefficients=coefficients_left, **options)
        return loss(y)

    bounds = np.cumsum(depths)
    masks = jnp.concatenate((jnp.ones((1, bounds[-1])), 1 - jnp.eye(bounds[-1])))
    values = jax.lax.map(one, jnp.split(masks, bounds[:-1], 1))
    return values[0], jax.tree.unflatten(tree, jnp.split(values[1:], bounds[:-1]))
