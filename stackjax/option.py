"""Options that functions pass on to a stack, as types, so that an editor knows their names.

What each does is said where it ends: `Stack.apply`, `Model.hidden`. Every class names all that it inherits, because a
TypedDict forgets its bases and the API reference would not find where an option was declared.
"""

from typing import Any, TypedDict

import jax

from stackjax import scan
from stackjax.edit import Edit
from stackjax.recipe.base import Coefficients
from stackjax.segment import Measure
from stackjax.sublayer import Cache


class CommonOptions(TypedDict, total=False):
    """Options of `Stack.apply` that both stacks of an encoder-decoder share."""

    measure: Measure | None
    remat: scan.Remat
    loop: bool
    unroll: int


class RunOptions(CommonOptions, TypedDict, total=False):
    """Options of `Stack.apply` that a model passes on to its stack."""

    cache: Cache | None
    taps: jax.Array | None
    perturbations: Any
    edit: Edit | None
    turns: Any
    backward_turns: int | None


class HiddenOptions(RunOptions, CommonOptions, TypedDict, total=False):
    """Options of `Model.hidden` beside those of the stack."""

    types: jax.Array | None
    dtype: Any


class BothOptions(CommonOptions, TypedDict, total=False):
    """Options of both sides of an encoder-decoder."""

    dtype: Any


class DecodeOptions(TypedDict, total=False):
    """Options of decoding: the recipe's numbers, None takes them from the depth; dtype of the stream and the cache;
    what to replace in the layers."""

    coefficients: Coefficients | None
    dtype: Any
    edit: Edit | None
