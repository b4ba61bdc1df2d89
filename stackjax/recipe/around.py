"""Bases of recipes and forms that add one thing to another one, whatever that is."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import jax

from stackjax.parameter import Gain, Init
from stackjax.recipe.base import Geometry, Multiplier, Observe, Recipe, Schedule
from stackjax.recipe.placement import PreNorm
from stackjax.recipe.residual import Form
from stackjax.sublayer import Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class AroundForm(Form):
    """Another form with something added: what a subclass does not override is the other's.

    Args:
        inner: the form underneath.
    """

    inner: Form

    @property
    def kind(self) -> Hashable:
        return self.inner.kind

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        self.inner.check(layers, looped)

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return self.inner.spec(d_model, depth)

    def ends(self, d_model: int, depth: int) -> dict[str, Any]:
        return self.inner.ends(d_model, depth)

    def enter(self, params: Params, x: jax.Array) -> Any:
        return self.inner.enter(params, x)

    def leave(self, params: Params, stream: Any) -> jax.Array:
        return self.inner.leave(params, stream)

    def view(self, stream: Any) -> jax.Array:
        return self.inner.view(stream)

    def statistics(self, side: str, params: Params, x: Any) -> Params:
        return self.inner.statistics(side, params, x)


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
    law: Init = field(init=False, repr=False)
    base: Recipe = PreNorm()

    def __post_init__(self):
        object.__setattr__(self, "residual", self.base.residual)
        object.__setattr__(self, "law", self.base.law)
        under = self.base
        while isinstance(under, Around):
            if type(under) is type(self):
                raise ValueError(f"{type(self).__name__} is already in its base; its numbers would have to serve both")
            under = under.base

    def adapt(self, sub: Sublayer, geometry: Geometry) -> Sublayer:
        return self.base.adapt(sub, geometry)

    def adapt_head(self, head: Any, geometry: Geometry) -> Any:
        return self.base.adapt_head(head, geometry)

    def form(self, sub: Sublayer, slot: int, layer: int, geometry: Geometry) -> Form:
        return self.base.form(sub, slot, layer, geometry)

    def outer(self, layer: int, geometry: Geometry) -> Form:
        return self.base.outer(layer, geometry)

    def schedule(self, geometry: Geometry) -> Schedule:
        return self.base.schedule(geometry)

    def gain(self, role: str, geometry: Geometry) -> Gain:
        return self.base.gain(role, geometry)

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        return self.base.multiplier(role, geometry)

    def constrain(self, params: Params, declaration: Any) -> Params:
        return self.base.constrain(params, declaration)

    def calibrate(self, params: Params, declaration: Params, observe: Observe) -> Params:
        return self.base.calibrate(params, declaration, observe)
