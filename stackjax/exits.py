"""Early exits: what a model would say if it ended after any of its layers.

    logits, _ = exits.logits(model, params, tokens)             (L + 1, ..., T, V), of x_0 .. x_L
    losses = exits.losses(model, params, tokens, loss)          (L + 1,), one program; weigh and sum them to train with

Each exit is the model's own end, with the recipe's final norm and the head, on the stream after that layer. One pass
through the stack makes all of them; the last is the model's output.

Logits after every layer, and training with a loss at each:

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=3, n_heads=2)
    >>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
    >>> sj.exits.logits(model, params, tokens)[0].shape
    (4, 1, 8, 16)
    >>> def loss(params):
    ...     return sj.exits.losses(model, params, tokens, lambda logits: sj.loss.next_token(logits, tokens)).mean()
    >>> jax.tree.structure(jax.jit(jax.grad(loss))(params)) == jax.tree.structure(params)
    True

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; trained with: Elhoushi et al. 2024, section 4.1.2,
arXiv:2404.16710.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import instance
from stackjax.history import History
from stackjax.layer import Trace
from stackjax.model import Model
from stackjax.sublayer import Params, Result

EXIT = "exit"
"""Name of the measure that holds what the stack would return if it ended in front of each layer."""


def hidden(model: Model, params: Params, tokens: jax.Array, *inputs: Any, **options: Any) -> tuple[jax.Array, Result]:
    """The stack's output after each layer, in place of that after the last alone: `Model.hidden` at all depths.

    Args:
        model: a decoder or an encoder.
        params: its parameters.
        tokens: (..., T) integers.
        *inputs: side inputs.
        **options: of `Model.hidden`.

    Returns:
        (L + 1, ..., T, D), of x_0 .. x_L, and the stack's `Result`.

    Raises:
        ValueError: a recipe whose end reads what all layers made.
    """
    instance("model", model, Model)
    params, measure = model.checked(params), options.pop("measure", None)

    def left(trace: Trace) -> dict[str, jax.Array]:
        measured = {} if measure is None else measure(trace)
        return {**measured, EXIT: model.stack.leave(params["stack"], _unfinished(trace.stream))}

    x, result = model.hidden(params, tokens, *inputs, measure=left, **options)
    measured = dict(result.measure)
    return jnp.concatenate((measured.pop(EXIT), x[None])), replace(result, measure=measured)


def logits(model: Model, params: Params, tokens: jax.Array, *inputs: Any, **options: Any) -> tuple[jax.Array, Result]:
    """Logits after each layer.

    Args:
        model: a decoder or an encoder.
        params: its parameters.
        tokens: (..., T) integers.
        *inputs: side inputs.
        **options: of `Model.hidden`.

    Returns:
        (L + 1, ..., T, V), at least float32, of x_0 .. x_L, and the stack's `Result`.
    """
    x, result = hidden(model, params, tokens, *inputs, **options)
    return model.logits(params, x, coefficients=options.get("coefficients")), result


def losses(
    model: Model,
    params: Params,
    tokens: jax.Array,
    loss: Callable[[jax.Array], jax.Array],
    *inputs: Any,
    **options: Any,
) -> jax.Array:
    """The loss of each exit; the logits of one exit are made at a time, in the backward pass too.

    Args:
        model: a decoder or an encoder.
        params: its parameters.
        tokens: (..., T) integers.
        loss: of logits (..., T, V).
        *inputs: side inputs.
        **options: of `Model.hidden`.

    Returns:
        (L + 1,), of x_0 .. x_L.
    """
    x, _ = hidden(model, params, tokens, *inputs, **options)

    @jax.checkpoint
    def one(x: jax.Array) -> jax.Array:
        return loss(model.logits(params, x, coefficients=options.get("coefficients")))

    return jax.lax.map(one, x)


class _Unfinished:
    """A history in the middle of a stack, which no end may read."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("the end of this recipe reads what all layers made, so there is none after fewer of them")


def _unfinished(stream: Any) -> Any:
    def is_history(node: Any) -> bool:
        return isinstance(node, History)

    return jax.tree.map(lambda node: _Unfinished() if is_history(node) else node, stream, is_leaf=is_history)
