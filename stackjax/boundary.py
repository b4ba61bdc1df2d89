"""The two ends of a stack, where the forms of its first and its last layer open and close the stream."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax

from stackjax.parameter import is_spec
from stackjax.recipe.form import Form
from stackjax.segment import Segment
from stackjax.sublayer import Params


def enter_spec(segments: Sequence[Segment], d_model: int, depth: int) -> Params:
    """Parameters where the stream is opened, {inner, outer}.

    Args:
        segments: of the stack.
        d_model: D.
        depth: L.
    """
    return _specs(segments, 0, lambda form: form.enter_spec(d_model, depth))


def leave_spec(segments: Sequence[Segment], d_model: int, depth: int) -> Params:
    """Parameters where the stream is closed, {inner, outer}.

    Args:
        segments: of the stack.
        d_model: D.
        depth: L.
    """
    return _specs(segments, -1, lambda form: form.leave_spec(d_model, depth))


def enter(segments: Sequence[Segment], params: Params, x: jax.Array) -> tuple[Any, Params]:
    """The stream, and the new statistics of the norms on its way in.

    Args:
        segments: of the stack.
        params: as declared by `enter_spec`.
        x: (..., T, D)
    """
    stream, state = x, {}
    for name, form in _forms(segments, 0).items():
        parameters, new = form.bind(params.get(name, {}), form.enter_norms)
        stream = form.enter(stream, **parameters)
        state |= {name: new} if new else {}
    return stream, state


def leave(segments: Sequence[Segment], params: Params, stream: Any) -> tuple[jax.Array, Params]:
    """The output (..., T, D), and the new statistics of the norms on the way out.

    Args:
        segments: of the stack.
        params: as declared by `leave_spec`.
        stream: as the forms carry it.
    """
    state = {}
    for name, form in reversed(_forms(segments, -1).items()):
        parameters, new = form.bind(params.get(name, {}), form.leave_norms)
        stream = form.leave(stream, **parameters)
        state |= {name: new} if new else {}
    return stream, state


def _forms(segments: Sequence[Segment], index: int) -> dict[str, Form]:
    """The form of the first or the last sublayer, and the outer one around it."""
    layer = segments[index].layers[index]
    inner = {"inner": layer.forms[index]}
    return inner if layer.outer is None else {**inner, "outer": layer.outer}


def _specs(segments: Sequence[Segment], index: int, spec: Callable[[Form], Params]) -> Params:
    """The specs, where the role of a norm is final_norm; an outer form without any has no group."""
    specs = {name: spec(form) for name, form in _forms(segments, index).items()}
    specs = {name: group for name, group in specs.items() if group or name == "inner"}
    return jax.tree.map(
        lambda spec: replace(spec, role="final_norm") if spec.role == "norm" else spec, specs, is_leaf=is_spec
    )
