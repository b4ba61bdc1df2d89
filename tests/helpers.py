"""Helpers of several test files: cases of which some are tried every day, compiled outputs, and converted weights."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict


def daily(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """Cases to parametrise over; those that are not chosen are left to `pytest -m thorough`."""
    cases = list(cases)
    assert set(chosen) <= set(cases), set(chosen) - set(cases)
    return [
        case
        if case in chosen
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough)
        for case in cases
    ]


@partial(jax.jit, static_argnums=0, static_argnames="dtype")
def output(model: Any, params: Any, *inputs: Any, **options: Any) -> jax.Array:
    """What a model or a stack makes of its inputs; one compile costs a sixth of those of all its operations alone."""
    return model.apply(params, *inputs, **options)[0]


def filled(params: Any, weights: dict[str, Any]) -> Any:
    """Parameters with a weight for every leaf, by its path `a/b/c`; groups that hold no parameter stay as declared."""
    flat = flatten_dict(params, sep="/", keep_empty_nodes=True)
    shapes = {path: leaf.shape for path, leaf in flat.items() if hasattr(leaf, "shape")}
    assert shapes == {path: weight.shape for path, weight in weights.items()}
    return unflatten_dict({**flat, **weights}, sep="/")
