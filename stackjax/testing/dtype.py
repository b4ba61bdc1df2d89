"""Dtypes: what goes in as bfloat16 comes out as bfloat16, behind positions on the stream and every sublayer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.layer import Trace
from stackjax.model import Model
from stackjax.sublayer import SideInputs
from stackjax.testing.compare import promise
from stackjax.testing.inputs import N_BATCH, N_TOKENS, drawn, in_dtype, in_order, named, normal


def check_dtype(model: Model, side_inputs: SideInputs | None = None, *, subject: str | None = None) -> None:
    """A stream in bfloat16 stays one behind the position and every sublayer, and its values are finite.

    The stack casts its stream back after each layer; until then a form that returns float32 takes its layer along.

    Args:
        model: any; parameters are in float32.
        side_inputs: positions of `N_TOKENS` tokens and the like; None for 0, 1, ...
        subject: what messages call it.

    Raises:
        AssertionError: another dtype or shape, or a value that is not finite.
    """
    side_inputs = in_dtype(side_inputs or in_order(), jnp.bfloat16)
    params = drawn(model, jnp.float32)
    x = normal(N_BATCH, N_TOKENS, model.stack.d_model, key=1, dtype=jnp.bfloat16)
    dtypes: dict[str, Any] = {}

    def note(trace: Trace) -> dict[str, jax.Array]:
        for name, intermediates in trace.intermediates.items():
            dtypes[f"the stream before {name}"] = intermediates["view"].dtype
            dtypes[f"the output of {name}"] = intermediates["output"].dtype
        dtypes["the stream behind the layer"] = trace.after.dtype
        return {}

    with promise(subject or named(model), "output dtype = input dtype"):
        entered = model.embedding.position.embed(params["embedding"]["position"], side_inputs.position or {}, x)
        run = jax.jit(lambda params, x: model.stack.apply(params, x, side_inputs, measure=note))
        y, _ = run(params["stack"], entered)
        first, last = {"the stream behind the position": entered.dtype}, {"the stack's output": y.dtype}
        for where, dtype in {**first, **dtypes, **last}.items():
            if dtype != x.dtype:
                raise AssertionError(f"{where} is {dtype}; the stream entered as {x.dtype}")
        if y.shape != x.shape:
            raise AssertionError(f"the stack's output has the shape {y.shape}; its input has {x.shape}")
        if not np.isfinite(np.asarray(y, np.float32)).all():
            raise AssertionError("the stack's output is not finite")
