"""Statistics: every parameter that no gradient trains gets its new value from the forward pass."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.abstract_model import AbstractModel
from stackjax.layer import Layer
from stackjax.norm import BatchNorm, Norm
from stackjax.parameter import is_spec, path_name
from stackjax.recipe.form import Form
from stackjax.stack import Stack
from stackjax.sublayer import SideInputs
from stackjax.testing.compare import promise
from stackjax.testing.inputs import arguments, drawn, named


def with_norms(model: Any, change: Callable[[Norm], Norm]) -> Any:
    """A model with `change` applied to every norm that is a field of its residual forms, where they take it."""

    def in_form(form: Form) -> Form:
        changed = {}
        for field in fields(form):
            value = getattr(form, field.name)
            if field.init and isinstance(value, (Form, Norm)):
                changed[field.name] = in_form(value) if isinstance(value, Form) else change(value)
        try:
            return replace(form, **changed)
        except ValueError:  # a form may refuse a norm, such as one whose statistics it could not return
            return form

    def in_layer(layer: Layer) -> Layer:
        outer = None if layer.outer is None else in_form(layer.outer)
        return replace(layer, forms=tuple(map(in_form, layer.forms)), outer=outer)

    def in_stack(stack: Stack) -> Stack:
        return replace(stack, segments=tuple(segment.map(in_layer) for segment in stack.segments))

    return model.with_stacks({path: in_stack(stack) for path, stack in model.stacks().items()})


def with_batch_norm(model: Any) -> Any:
    """A model whose forms have batch norms, to see whether their statistics come back."""
    return with_norms(model, lambda norm: BatchNorm())


def in_evaluation(model: Any) -> Any:
    """A model whose norms take their running statistics, so that no example and no token sees another in them."""
    return with_norms(model, lambda norm: replace(norm, training=False) if hasattr(norm, "training") else norm)


def check_statistics(
    model: AbstractModel, side_inputs: SideInputs | None = None, *, subject: str | None = None
) -> None:
    """`apply` returns a new value for every parameter of role `statistic`, and `update_statistics` puts it there.

    Args:
        model: any; one without such parameters passes.
        side_inputs: positions of `N_TOKENS` tokens and the like; None for none.
        subject: what messages call it.

    Raises:
        AssertionError: a statistic that stays as it was.
    """
    declared = jax.tree.leaves(model.declaration(), is_leaf=is_spec)
    if all(one.spec.role != "statistic" for one in declared):
        return
    with jax.enable_x64(True), promise(subject or named(model), "statistics are returned"):
        params, inputs = drawn(model), arguments(model, side_inputs, jnp.float64)

        @jax.jit
        def updated(params: Any) -> Any:
            _, result = model.apply(params, *inputs, dtype=jnp.float64)
            return model.update_statistics(params, result.state)

        new = updated(params)
        leaves = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(new), declared, strict=True)
        for (path, before), after, one in leaves:
            if one.spec.role == "statistic" and np.array_equal(before, after):
                raise AssertionError(f"{path_name(path)} has no new value after a forward pass")
