"""Recurrent depth: some layers in the middle run again and again, with one copy of their parameters.

    model = looped(model, before=2, turns=16, after=2)      layers 0 1, then 2 .. L - 3 sixteen times, then L - 2, L - 1
    model.apply(params, tokens, turns=n, backward_turns=8)  n of the 16, traced; gradients through the last 8 alone
    with_turns(model, 64)                                   more of them, with the same parameters

Trained with a number of turns that is drawn for each step, a model can be given more of them afterwards than it ever
had. All numbers up to those that are described are one program, which runs no more turns than it is told to:

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> plain = sj.decoder(vocab=16, d_model=16, depth=4, n_heads=2)
    >>> inject = sj.recipe.InputInjection(base=plain.stack.recipe, joined="linear")
    >>> model = sj.recurrence.looped(plain, before=1, turns=8, after=1, recipe=inject)
    >>> params, tokens = model.init(jax.random.key(0)), jnp.arange(8)[None]
    >>> @partial(jax.jit, static_argnames="backward_turns")
    ... def gradients(params, turns, backward_turns):
    ...     print("traced")
    ...     options = {"turns": turns, "backward_turns": backward_turns}
    ...     return jax.grad(lambda p: sj.loss.next_token(model.apply(p, tokens, **options)[0], tokens))(params)
    >>> for step in range(3):
    ...     turns = sj.recurrence.draw_turns(jax.random.key(step), mean=4, most=8)
    ...     params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients(params, turns, backward_turns=2))
    traced
    >>> deeper = sj.recurrence.with_turns(model, 32)
    >>> deeper.stack.depth, deeper.n_params == model.n_params
    (66, True)

Decoding keeps each turn's keys and values:

    >>> sj.decode.generate(deeper, params, tokens, n_tokens=2).tokens.shape
    (1, 2)

Source: Dehghani et al. 2018, arXiv:1807.03819; Geiping et al. 2025, section 3, arXiv:2502.05171.
"""

from dataclasses import replace
from typing import TypeVar

import jax
import jax.numpy as jnp

from stackjax.check import known, shown
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.recipe.around import Around
from stackjax.recipe.base import Loop, Recipe
from stackjax.stack import Stack

_Looped = TypeVar("_Looped", Stack, Model)


def looped(model: _Looped, *, turns: int, before: int = 0, after: int = 0, recipe: Recipe | None = None) -> _Looped:
    """A model whose middle layers are run several times.

    Args:
        model: a stack, a decoder or an encoder, of layers that each have parameters of their own.
        turns: how many times; at most, where `apply` is told to run fewer.
        before: layers in front of the loop.
        after: layers behind it.
        recipe: the depth treatment, such as `recipe.InputInjection` around the model's own; None keeps that. Another
            in its place needs one that changes nothing inside sublayers, for what it changed would stay.

    Returns:
        The same kind of model, `before + (L - before - after) * turns + after` layers deep; the recipe's numbers are
        those of that depth.

    Raises:
        ValueError: a model with a loop or with two stacks, no layers to loop, no turns; a recipe that treats the layers
            in the loop differently, or is not around one that changed the sublayers.
    """
    stack = _stack(model)
    length = stack.depth - before - after
    if stack.looped or before < 0 or after < 0 or length < 1:
        raise ValueError(
            f"a loop is made of layers that no loop has yet, those between the first {before} and the last {after}; "
            f"got a stack of {stack.depth}{', with a loop' if stack.looped else ''}"
        )
    loop = Loop(before=before, length=length, turns=_count(turns))
    if recipe is None:
        return _with_loop(model, _layers(stack), loop, after, stack.recipe)
    own = _nested(stack.recipe)
    if stack.recipe not in _nested(recipe) and any(type(r).adapt not in (Recipe.adapt, Around.adapt) for r in own):
        raise ValueError(
            f"{shown(stack.recipe)} changed the sublayers of this model, which {shown(recipe)} would keep: give a "
            "recipe around the model's own, or make the model with the new one"
        )
    return _with_loop(model, _layers(stack), loop, after, recipe)


def with_turns(model: _Looped, turns: int) -> _Looped:
    """A model with a loop, with another number of turns; the parameters stay as they are.

    Args:
        model: with a loop.
        turns: how many are described: the most that `apply` runs.

    Raises:
        ValueError: a model without a loop, or no turns.
    """
    stack = _stack(model)
    loop = stack.geometry.loop
    if loop is None:
        raise ValueError("this stack has no loop: make one with `looped`, or with Stack.of(..., looped=True)")
    every = _layers(stack)
    once = every[: loop.before + loop.length] + every[loop.stop :]
    return _with_loop(model, once, replace(loop, turns=_count(turns)), stack.depth - loop.stop, stack.recipe)


def draw_turns(key: jax.Array, *, mean: float, most: int, spread: float = 0.5) -> jax.Array:
    """A number of turns for one step of training: 1 + Poisson(exp(N(log mean - spread² / 2, spread²))).

    Mostly below the mean, and seldom far above; what is above `most` is cut to it.

    Args:
        key: PRNG key.
        mean: of the Poisson variable's rate.
        most: the number of turns described.
        spread: of the rate's logarithm.

    Returns:
        () integer, 1 .. most.

    Raises:
        ValueError: a mean that is known not to be positive.

    Source: Geiping et al. 2025, section 3.3, arXiv:2502.05171.
    """
    if (number := known(mean)) is not None and not number > 0:
        raise ValueError(f"mean must be positive; got {number}")
    rate_key, key = jax.random.split(key)
    rate = jnp.exp(jnp.log(mean) - spread**2 / 2 + spread * jax.random.normal(rate_key))
    return 1 + jnp.minimum(jax.random.poisson(key, rate), most - 1)


def _stack(model: Stack | Model) -> Stack:
    stacks = model.stacks()
    if len(stacks) != 1:
        raise ValueError(f"a loop is made in a model of one stack; got {shown(type(model).__name__)}")
    return next(iter(stacks.values()))


def _nested(recipe: Recipe) -> list[Recipe]:
    """A recipe and those underneath it."""
    return [recipe, *(_nested(recipe.base) if isinstance(recipe, Around) else [])]


def _layers(stack: Stack) -> list[Layer]:
    return [layer for segment in stack.segments for layer in segment.each]


def _count(turns: int) -> int:
    if not (isinstance(turns, int) and turns > 0):
        raise ValueError(f"turns must be a positive int, known when compiling; got {shown(turns)}")
    return turns


def _with_loop(model: _Looped, once: list[Layer], loop: Loop, after: int, recipe: Recipe) -> _Looped:
    """The model with a loop, from its layers with the loop run once."""
    stop = loop.before + loop.length
    layers = once[: loop.before] + once[loop.before : stop] * loop.turns + once[stop:]
    (path, stack), *_ = model.stacks().items()
    geometry = replace(stack.geometry, depth=loop.stop + after, loop=loop)
    return model.with_stacks({path: Stack.from_layers(layers, geometry, recipe)})
