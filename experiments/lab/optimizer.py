"""Optimisers by name: those of stackjax, and any of optax by its dotted path."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optax

import stackjax as sj

from . import names

Make = Callable[..., optax.GradientTransformation]
"""`make(model, learning_rate=, weight_decay=)`, whose numbers may be traced."""

OPTIMIZERS: Mapping[str, Make] = {"adamw": sj.optim.adamw, "muon": sj.optim.muon}
"""Optimisers that know the recipe's multipliers, by name."""


def optimizer_named(name: str) -> Make:
    """The optimiser of this name.

    Args:
        name: a key of `OPTIMIZERS`, or the dotted path of a function that makes an optax transformation from
            `learning_rate`, such as `optax:lion`.

    Raises:
        ValueError: nothing of that name, or what it makes is no transformation.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if ":" not in name:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"--optimizer {name} is unknown; known are {known}, or a dotted path such as optax:lion")
    make = names.dotted(name, "optimizer")
    try:
        options = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(make).parameters else {}
        inner = make(learning_rate=1.0, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer {name!r} must be a function of learning_rate: {error}") from error
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise ValueError(f"optimizer {name!r} makes no optax transformation; it gives {type(inner).__name__}")
    return partial(of_optax, inner)


def of_optax(
    inner: optax.GradientTransformation, model: sj.Model, *, learning_rate: Any, weight_decay: Any
) -> optax.GradientTransformation:
    """An optax optimiser with the recipe's multipliers on learning rate and weight decay.

    What it makes at a learning rate of 1, the other way round, is the direction. One that looks at a leaf as a whole,
    or at its rank, sees the matrices of all layers as one: stackjax's own are told about the layers.

    Args:
        inner: made with a learning rate of 1 and no weight decay.
        model: declares the parameters and the multipliers.
        learning_rate: a number, traced or not.
        weight_decay: decoupled, times the learning rate.
    """
    return optax.chain(
        inner,
        optax.scale(-1.0),
        sj.optim.by_recipe(model, learning_rate=learning_rate, weight_decay=weight_decay),
        sj.optim.by_projection(model),
    )
