"""Causality: a token depends on itself and on earlier ones of its own example, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.model import Model
from stackjax.sublayer import SideInputs
from stackjax.testing.compare import promise
from stackjax.testing.inputs import N_BATCH, N_TOKENS, drawn, in_dtype, in_order, named, normal


def influence(model: Model, side_inputs: SideInputs | None = None) -> np.ndarray:
    """max |d y[0, t] / d x[b, s]|, of the stack's output by what is embedded: (T, B, T), entry [t, b, s].

    Args:
        model: any.
        side_inputs: positions of `N_TOKENS` tokens and the like; None for 0, 1, ...
    """
    side_inputs = in_dtype(side_inputs or in_order(), jnp.float64)
    params, x = drawn(model), normal(N_BATCH, N_TOKENS, model.stack.d_model)

    def run(x: jax.Array) -> jax.Array:
        # Positions on the stream act on the tokens one by one, so the stream before them may be varied.
        x = model.embedding.position.embed(params["embedding"]["position"], side_inputs.position or {}, x)
        return model.stack.apply(params["stack"], x, side_inputs)[0]

    @jax.jit
    def rows(x: jax.Array) -> jax.Array:
        first = jnp.arange(N_BATCH)[:, None, None] == 0
        seeds = jnp.eye(N_TOKENS)[:, None, :, None] * first * normal(1, 1, *x.shape[1:], key=3)
        return jax.vmap(jax.vjp(run, x)[1])(seeds)[0]

    return np.abs(rows(x)).max(-1)


def check_causality(
    model: Model, side_inputs: SideInputs | None = None, *, sees_all: bool = True, subject: str | None = None
) -> None:
    """d y[t] / d x[s] is exactly zero for s > t and for another example; and not zero for s <= t.

    Args:
        model: a decoder.
        side_inputs: positions of `N_TOKENS` tokens and the like; None for 0, 1, ...
        sees_all: whether a token sees all earlier ones; False where a window or a choice leaves some out.
        subject: what messages call it.

    Raises:
        AssertionError: a token that depends on a later one or on another example, or not on an earlier one.
    """
    with jax.enable_x64(True), promise(subject or named(model), "causality"):
        by = influence(model, side_inputs)
        for t, b, s in np.argwhere(by > 0):
            if b:
                raise AssertionError(f"token {t} depends on another example, by {by[t, b, s]:.1e}")
            if s > t:
                raise AssertionError(f"token {t} depends on token {s}, which comes later, by {by[t, b, s]:.1e}")
        for t, s in np.argwhere(np.tril(by[:, 0] == 0)):
            if sees_all or s == t:
                raise AssertionError(f"token {t} does not depend on token {s}, which it should see")
