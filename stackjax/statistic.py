"""Statistics: parameters that no gradient trains.

Running means, singular vectors and routing biases have the role `statistic`. Whoever computes new values of them in
the forward pass returns them as state; `update_statistics` writes them back after the optimiser's step.
"""

from typing import Any

import jax
import jax.numpy as jnp

from stackjax.sublayer import Params


def update_statistics(params: Params, state: Params) -> Params:
    """A stack's parameters with the new statistics of a forward pass.

    A looped layer returns new values at each repeat and keeps their mean.

    Args:
        params: of a stack.
        state: `Result.state` of `Stack.apply`; caches in it are left alone.
    """
    outside = {side: _merged(params[side], state[side]) for side in ("enter", "leave") if side in state}
    segments = {
        i: {j: _layer(layer, state.get(i, {}).get(j, {})) for j, layer in pattern.items()}
        for i, pattern in params["segments"].items()
    }
    return {**params, **outside, "segments": segments}


def _layer(params: Params, state: Params) -> Params:
    """One layer with new statistics, {sublayer: {statistic: its own, residual: its form's}, residual: the outer's}."""
    sublayers = {name: new for name, new in state.items() if name != "residual"}
    statistics = {name: new["statistic"] for name, new in sublayers.items() if "statistic" in new}
    forms = {name: new["residual"] for name, new in sublayers.items() if "residual" in new}
    if "residual" in state:
        forms["outer"] = state["residual"]
    return _merged(params, {**statistics, "residual": forms})


def _merged(old: Any, new: Any) -> Any:
    """`old` with the leaves that `new` has."""
    if isinstance(new, dict):
        return {**old, **{name: _merged(old[name], value) for name, value in new.items()}}
    new = jnp.mean(new, 0) if new.ndim > old.ndim else new
    return jax.lax.stop_gradient(new).astype(old.dtype)
