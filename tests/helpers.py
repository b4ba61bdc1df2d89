"""Helpers of several test files: cases of which some are tried every day, and converted weights."""

from collections.abc import Iterable
from typing import Any

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


def filled(params: Any, weights: dict[str, Any]) -> Any:
    """Parameters with a weight for every leaf, by its path `a/b/c`; groups that hold no parameter stay as declared."""
    flat = flatten_dict(params, sep="/", keep_empty_nodes=True)
    shapes = {path: leaf.shape for path, leaf in flat.items() if hasattr(leaf, "shape")}
    assert shapes == {path: weight.shape for path, weight in weights.items()}
    return unflatten_dict({**flat, **weights}, sep="/")
