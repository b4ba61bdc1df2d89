"""Bases of recipes and forms that add one thing to another one, whatever that is."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import jax

from stackjax.embedding import Head
from stackjax.norm import Norm
from stackjax.parameter import Gain, Init
from stackjax.recipe.base import Coefficients, Geometry, Multiplier, Observe, Recipe
from stackjax.recipe.form import Branch, Form, FormCoefficients
from stackjax.recipe.placement import PreNorm
from stackjax.sublayer import Aux, Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class AroundForm(Form):
    """Another form with something added: what a subclass does not override is the other's.

    A subclass overrides `apply`, and calls that of the form underneath with other arguments.

    Args:
        inner: the form underneath.
    """

    inner: Form

    @property
    def kind(self) -> Hashable:
        return self.inner.kind

    @property
    def enter_norms(self) -> tuple[str, ...]:
        return self.inner.enter_norms

    @property
    def leave_norms(self) -> tuple[str, ...]:
        return self.inner.leave_norms

    def truncated(self, entered: Any, reached: Any) -> Any:
        return self.inner.truncated(entered, reached)

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        self.inner.check(layers, looped)

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return self.inner.spec(d_model, depth)

    def enter_spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return self.inner.enter_spec(d_model, depth)

    def leave_spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return self.inner.leave_spec(d_model, depth)

    def norm_called(self, name: str) -> Norm:
        return self.inner.norm_called(name)

    def enter(self, x: jax.Array, **parameters: Any) -> Any:
        return self.inner.enter(x, **parameters)

    def leave(self, stream: Any, **parameters: Any) -> jax.Array:
        return self.inner.leave(stream, **parameters)

    def view(self, stream: Any) -> jax.Array:
        return self.inner.view(stream)

    def apply(
        self, params: Params, c: FormCoefficients, stream: Any, branch: Branch, key: jax.Array | None = None
    ) -> tuple[Any, Aux]:
        return self.inner.apply(params, c, stream, branch, key)


@dataclass(frozen=True, kw_only=True)
class Around(Recipe):
    """Another recipe with something added: what a subclass does not override is the other's.

    They nest: `StochasticDepth(base=ValueResidual(base=DeepNorm()))`.

    Args:
        base: the recipe underneath.

    Raises:
        ValueError: the same thing added twice.
    """

    residual: Form = field(init=False, repr=False)
    default_init: Init = field(init=False, repr=False)
    base: Recipe = PreNorm()

    def __post_init__(self):
        object.__setattr__(self, "residual", self.base.residual)
        object.__setattr__(self, "default_init", self.base.default_init)
        under = self.base
        while isinstance(under, Around):
            if type(under) is type(self):
                raise ValueError(f"{type(self).__name__} is already in its base; its numbers would have to serve both")
            under = under.base

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        return self.base.adapt(sublayer, geometry)

    def adapt_head(self, head: Head, geometry: Geometry) -> Head:
        return self.base.adapt_head(head, geometry)

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        return self.base.form(sublayer, index, layer, geometry)

    def outer(self, layer: int, geometry: Geometry) -> Form | None:
        return self.base.outer(layer, geometry)

    def coefficients(self, geometry: Geometry) -> Coefficients:
        return self.base.coefficients(geometry)

    def gain(self, role: str, geometry: Geometry) -> Gain:
        return self.base.gain(role, geometry)

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        return self.base.multiplier(role, geometry)

    def project(self, params: Params, declaration: Any) -> Params:
        return self.base.project(params, declaration)

    def calibrate(self, params: Params, declaration: Params, observe: Observe) -> Params:
        return self.base.calibrate(params, declaration, observe)
