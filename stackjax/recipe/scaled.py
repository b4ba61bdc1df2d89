"""Numbers on skip, branch and branch input: LayerNorm scaling, and any numbers of your own."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from stackjax.parameter import Init, Normal
from stackjax.recipe.base import Coefficients, Geometry, Recipe, layer_index, with_coefficients
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Pre


@dataclass(frozen=True, kw_only=True)
class LayerNormScaling(Recipe):
    """x + f(norm(x) / sqrt(l)) in layer l = 1 .. L, so that the stream's variance grows slowly.

    The factor comes after the norm's own scale. The init is a plain std of 0.02, never combined with 1/sqrt(2L).

    Source: Sun et al. 2025, section 4, arXiv:2502.05795.
    """

    residual: Form = Pre()
    default_init: Init = Normal(0.02)

    def coefficients(self, geometry: Geometry) -> Coefficients:
        return with_coefficients(super().coefficients(geometry), gamma=layer_index(geometry) ** -0.5)


@dataclass(frozen=True, kw_only=True)
class Weighted(Recipe):
    """alpha x + beta f(gamma x), around whatever form, with the numbers given as data.

    To sweep them without compiling again, replace them in `stack.coefficients()` instead and pass that to `apply`.

    Args:
        residual: the form.
        alpha: on the skip: one number, one for each layer, or a row (S,) for each layer; arrays become tuples.
        beta: on the branch.
        gamma: on the branch's input.
    """

    residual: Form = Pre()
    alpha: Any = 1.0
    beta: Any = 1.0
    gamma: Any = 1.0

    def __post_init__(self):
        for name in ("alpha", "beta", "gamma"):
            object.__setattr__(self, name, _nested_tuple(np.asarray(getattr(self, name), np.float64)))

    def coefficients(self, geometry: Geometry) -> Coefficients:
        return with_coefficients(
            super().coefficients(geometry), **{n: self._rows(n, geometry) for n in ("alpha", "beta", "gamma")}
        )

    def _rows(self, name: str, geometry: Geometry) -> Any:
        numbers = jnp.asarray(getattr(self, name), jnp.float32)
        if numbers.ndim == 1:
            numbers = numbers[:, None]
        fits = (geometry.depth, 1), (geometry.depth, geometry.n_sublayers)
        if numbers.ndim and numbers.shape not in fits:
            raise ValueError(
                f"{name} must be one number, ({geometry.depth},) for the layers or "
                f"({geometry.depth}, {geometry.n_sublayers}) for the sublayers; got {numbers.shape}"
            )
        return numbers


def _nested_tuple(numbers: np.ndarray) -> Any:
    return tuple(_nested_tuple(row) for row in numbers) if numbers.ndim else float(numbers)
