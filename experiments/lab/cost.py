"""Cost of a run, counted before it runs: FLOPs from the jaxpr, memory by a formula.

XLA's own count of FLOPs takes the body of a scan once, so it is wrong for every scanned stack.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from stackjax.model import Model

from .train import Task

UNCOUNTED = ("custom_call", "ffi_call", "pallas_call", "dot_product_attention")
"""Parts of names of primitives that hide matrix products."""


def matmul_flops(function: Callable, *args: Any) -> int:
    """FLOPs of the matrix products in a function, loops included: 2 m n k each. Everything else is left out.

    Args:
        function: any traceable function.
        *args: arrays, or their shapes (`jax.ShapeDtypeStruct`).

    Raises:
        ValueError: a loop whose length is not known, or a kernel that hides its products.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def step_flops(task: Task, batch: Any) -> int:
    """Model FLOPs of one training step on a batch (or its shapes), forward and backward, nothing recomputed.

    Masked entries of attention count like all others. Give a task whose attention is not fused (`backend="plain"`).
    """
    params = jax.eval_shape(task.model.init, jax.random.key(0))
    return matmul_flops(jax.grad(lambda p, b: task.loss(p, b, remat="none")[0]), params, batch)


def memory_estimate(
    model: Model,
    *,
    n_heads: int,
    lanes: int,
    batch: int,
    context: int,
    remat: str,
    at_once: bool = True,
    item_bytes: int = 4,
) -> int:
    """About how many bytes a group of lanes needs while training, within a factor of two.

    Weights, gradients and two moments of every lane, plus what the backward pass keeps: the stream between layers
    and the inside of as many layers as are not recomputed.

    Args:
        model: a decoder.
        n_heads: H.
        lanes: how many.
        batch: B.
        context: T.
        remat: "none", "layer", "nested" or "offload".
        at_once: whether the lanes run at the same time.
        item_bytes: of one number of the stream.
    """
    depth, d_model = model.stack.depth, model.stack.d_model
    stream = batch * context * d_model * item_bytes
    inside = 16 * stream + 3 * batch * n_heads * context**2 * 4
    activations = {
        "none": depth * inside,
        "layer": depth * stream + inside,
        "offload": depth * stream + inside,
        "nested": 2 * math.isqrt(max(depth, 1)) * stream + inside,
    }[remat]
    logits = 3 * batch * context * model.embedding.vocab * 4
    return lanes * 16 * model.n_params + (lanes if at_once else 1) * (activations + logits)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(equation.outvars[0].aval.shape) * _lengths(equation.invars[0], contracted)
    if name == "ragged_dot_general":
        contracted, _ = params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0]
        rows = params["ragged_dot_dimension_numbers"].lhs_ragged_dimensions[0]
        if rows in contracted:
            return 2 * math.prod(equation.outvars[0].aval.shape[1:]) * _lengths(equation.invars[0], contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * _lengths(equation.invars[0], contracted)
    if any(part in name for part in UNCOUNTED):
        raise ValueError(f"{name} hides its matrix products; count FLOPs with a backend that is written out")
    inner = [_count(jaxpr) for jaxpr in inner_jaxprs(params)]
    if name == "while":
        if any(inner):
            raise ValueError("a while loop of unknown length holds matrix products; use a scan to count its FLOPs")
        return 0
    if name == "cond":
        return max(inner, default=0)
    return params["length"] * sum(inner) if name == "scan" else sum(inner)


def _lengths(variable: Any, axes: tuple[int, ...]) -> int:
    return math.prod(variable.aval.shape[axis] for axis in axes)


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters: bodies of loops, branches, functions."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
