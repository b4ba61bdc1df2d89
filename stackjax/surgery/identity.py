"""Layers that pass the stream on: a deeper model that computes exactly the same."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.abstract_model import AbstractModel, Path, at, put
from stackjax.parameter import is_spec, realise, zeros
from stackjax.recipe.attention_residuals import AttentionResidual
from stackjax.recipe.value_residual import WithValue
from stackjax.segment import Segment
from stackjax.stack import Stack
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer
from stackjax.surgery.selection import Numbers, duplicated, each_tree, places, pruned, select, stack_at, within

CLOSING = frozenset({"out", "down", "cross_out"})
"""Roles of the matrices that a sublayer's output comes out of."""


def insert_identity(
    model: AbstractModel,
    params: Params,
    after: Sequence[int],
    *,
    coefficients: Numbers,
    state: Any = None,
    stack: Path | None = None,
) -> tuple[Any, Params, Any]:
    """A deeper model that computes exactly the same: layers are inserted that pass the stream on.

    An inserted layer is a copy of the one before it whose residual form has its initial parameters, and whose sublayers
    end in zero matrices (roles out, down and cross_out, with what low-rank factors add to them) unless the form is
    closed at first (a gate of zero, as in ReZero); an optimiser's moments of it are zero.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters.
        after: the layers, 0 .. L-1, behind each of which one is inserted; behind one that is named twice, two.
        coefficients: as for `select`.
        state: as for `select`.
        stack: which stack; None where there is only one.

    Returns:
        The model, its parameters and the state.

    Raises:
        ValueError: a recipe in which no layer passes the stream on to the bit (norms on the stream, a stream that
            records every layer), or whose numbers for the other layers would change with the depth; a loop; a sublayer
            without such a matrix.

    Source: Wu et al. 2024, section 3.2, arXiv:2401.02415.
    """
    path, old = stack_at(model, stack)
    if old.looped:
        raise ValueError("all layers of a loop share their parameters, so none can be the identity alone")
    forms = {form for segment in old.segments for layer in segment.layers for form in layer.forms}
    if any(isinstance(form, (AttentionResidual, WithValue)) for form in forms):
        name = type(old.recipe).__name__
        raise ValueError(f"{name} records what its layers made, so that no layer leaves the stream as it was")
    order = duplicated(old.depth, after)
    inserted = [i for i in range(1, len(order)) if order[i] == order[i - 1]]
    new, params, state = select(model, params, order, coefficients=coefficients, state=state, stack=stack)
    deeper: Stack = new.stacks()[path]
    originals = np.array(pruned(deeper.depth, inserted), np.int32)
    before, behind = old.coefficients(), deeper.coefficients()
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b if jnp.ndim(b) == 0 else b[originals])), before, behind)
    if not all(jax.tree.leaves(same)):
        raise ValueError(
            f"{type(old.recipe).__name__} has other numbers for the other layers at depth {deeper.depth}, so that the "
            "function changes; take coefficients='original'"
        )
    for layer in inserted:
        reborn = _with_initial_form(deeper, layer, new.layer_params(params, layer, path))
        if _change(deeper, layer, at(params, path), reborn, scale=1.0):
            reborn = _silenced(deeper, layer, reborn)
            if change := _change(deeper, layer, at(params, path), reborn, scale=0.0):
                raise ValueError(
                    f"in {type(old.recipe).__name__} a layer whose sublayers output zero still changes the stream (by "
                    f"up to {change:.3g} where it is of size 1), so no layer is the identity"
                )
        params = new.with_layer_params(params, layer, reborn, path)

    def without_moments(tree: Params) -> Params:
        part = within(tree, path)
        if part is None:
            return tree
        for layer in inserted:
            name, j, repeat = places(deeper)[layer]
            moments = jax.tree.map(lambda a, r=repeat: jnp.asarray(a).at[r].set(0), part["segments"][name][j])
            part = put(part, ("segments", name, j), moments)
        return put(tree, path, part)

    return new, params, each_tree(new, without_moments, state)


@dataclass(frozen=True, kw_only=True)
class _Fixed(Sublayer):
    """A sublayer whose output does not depend on its input."""

    scale: float

    def spec(self, d_model: int) -> dict[str, Any]:
        return {}

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        return self.scale * jax.random.normal(jax.random.key(1), x.shape, x.dtype), Aux()


def _declared(stack: Stack, layer: int) -> Params:
    name, j, _ = places(stack)[layer]
    return stack.declaration()["segments"][name][j]


def _with_initial_form(stack: Stack, layer: int, params: Params) -> Params:
    """A layer's parameters with those of its residual form as they are drawn."""
    repeat = places(stack)[layer][2]
    init = {"default_init": stack.recipe.default_init, "gain": stack.gain}
    drawn = realise(jax.random.key(0), _declared(stack, layer)["residual"], **init)
    residual = jax.tree.map(lambda old, new: new[repeat].astype(old.dtype), params["residual"], drawn)
    return {**params, "residual": residual}


def _silenced(stack: Stack, layer: int, params: Params) -> Params:
    """A layer's parameters with zeros where its sublayers end.

    Raises:
        ValueError: a sublayer without a matrix of a role in `CLOSING`.
    """
    name, j, _ = places(stack)[layer]

    def closes(sublayer: Sublayer) -> Sublayer:
        specs = jax.tree.leaves(sublayer.spec(stack.d_model), is_leaf=is_spec)
        if CLOSING.isdisjoint(spec.role for spec in specs):
            raise ValueError(
                f"no matrix of {type(sublayer).__name__} has a role out of {', '.join(sorted(CLOSING))}, so it is not "
                "known which parameters make its output zero"
            )
        return sublayer

    for sublayer in stack.segments[int(name)].layers[int(j)].sublayers:
        sublayer.map(closes)

    def begun(specs: Any, values: Any) -> Any:
        return jax.tree.map(lambda d, value: jnp.zeros_like(value) if d.spec.init is zeros else value, specs, values)

    def close(specs: Any, values: Any, beside: Collection[str] = ()) -> Any:
        """`beside` are the closing matrices of the group around, whose low-rank factors are here, by the same names."""
        if is_spec(specs):
            return values
        closing = {key for key, d in specs.items() if is_spec(d) and d.spec.role in CLOSING}
        ends = {name for key in closing for name in (key, f"{key}_bias")}
        closed = {}
        for key, value in values.items():
            factors = key in beside and not is_spec(specs[key])
            closed[key] = begun(specs[key], value) if factors else close(specs[key], value, closing)
        return {key: jnp.zeros_like(value) if key in ends else value for key, value in closed.items()}

    sublayers = {key: value for key, value in params.items() if key != "residual"}
    return {**close(_declared(stack, layer), sublayers), "residual": params["residual"]}


def _change(stack: Stack, layer: int, params: Params, layer_params: Params, *, scale: float) -> float:
    """The most that a layer moves the stream, if its sublayers output noise of some size.

    Args:
        stack: that it is in.
        layer: its index.
        params: of the stack.
        layer_params: of the layer.
        scale: of the noise.
    """
    name, j, _ = places(stack)[layer]
    held = stack.segments[int(name)].layers[int(j)]
    fixed = replace(held, sublayers=tuple(_Fixed(name=sublayer.name, scale=scale) for sublayer in held.sublayers))
    numbers = stack.coefficients()
    x = jax.random.normal(jax.random.key(0), (2, 3, stack.d_model))
    outputs = []
    for n in (0, 1):
        chosen = {key: jax.tree.map(lambda a, n=n: a[layer : layer + n], numbers[key]) for key in ("sublayer", "outer")}
        residual = jax.tree.map(lambda a, n=n: a[None][:n], layer_params["residual"])
        one = {sublayer.name: {} for sublayer in fixed.sublayers} | {"residual": residual}
        short = replace(stack, segments=(Segment(layers=(fixed,), n=n),), geometry=replace(stack.geometry, depth=n))
        y, _ = short.apply({**params, "segments": {"0": {"0": one}}}, x, coefficients={**numbers, **chosen})
        outputs.append(y)
    return float(jnp.max(jnp.abs(outputs[1] - outputs[0])))
