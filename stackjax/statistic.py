"""Running statistics: parameters that no gradient trains, but that each training step renews."""

from typing import Any

import jax.numpy as jnp

from stackjax.sublayer import Params


def update(params: Params, state: dict[str, Any]) -> Params:
    """A stack's parameters with the running statistics that a training step returned.

    Args:
        params: of the stack.
        state: `Result.state` of the step: {segment: {layer: {sublayer: {residual, statistic}}}, leave}.

    Returns:
        `params` with new values where `state` has them. A looped layer takes the mean over its repeats.
    """
    segments = dict(params["segments"])
    for i, period in state.items():
        if i == "leave":
            continue
        for j, subs in period.items():
            for name, own in subs.items():
                layer = segments[i][j]
                residual = _write(layer["residual"][name], own.get("residual", {}))
                layer = {**layer, name: _write(layer[name], own.get("statistic", {}))}
                layer["residual"] = {**layer["residual"], name: residual}
                segments[i] = {**segments[i], j: layer}
    leave = {**params["leave"], "inner": _write(params["leave"]["inner"], state.get("leave", {}))}
    return {**params, "segments": segments, "leave": leave}


def _write(params: Params, new: Params) -> Params:
    """`params` with the leaves that `new`, a part of the same tree, holds."""
    written = dict(params)
    for name, value in new.items():
        if isinstance(value, dict):
            written[name] = _write(params[name], value)
        else:
            repeats = tuple(range(value.ndim - params[name].ndim))
            written[name] = jnp.mean(value, repeats).astype(params[name].dtype) if repeats else value
    return written
