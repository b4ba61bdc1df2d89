"""Learned gates on the branch: ReZero, SkipInit, LayerScale and highways."""

from dataclasses import dataclass
from math import log
from typing import Any

import jax

from stackjax.norm import upcast
from stackjax.parameter import Constant, Init, Normal, Spec, xavier, zeros
from stackjax.recipe.base import Geometry, Recipe
from stackjax.recipe.form import Form, FormCoefficients, Function, add
from stackjax.recipe.residual import Ended, Gated


@dataclass(frozen=True, kw_only=True)
class SkipInit(Recipe):
    """x + g f(x), one g for each branch, 0 at first, no norm: every layer starts as the identity.

    Source: De & Smith 2020, arXiv:2002.10444.
    """

    residual: Form = Gated()


@dataclass(frozen=True, kw_only=True)
class GatedTogether(Form):
    """alpha x + beta g f(gamma x), with the g of the whole layer, which `SharedGate` around it holds."""

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        if not all(isinstance(layer.outer, SharedGate) for layer in layers):
            raise ValueError("a gate that a layer's sublayers share stands in an outer form: `SharedGate`")

    def update(self, x: jax.Array, f: Function, c: FormCoefficients) -> jax.Array:
        return add(c.alpha, x, c.beta * c.gate, f(c.gamma * x))


@dataclass(frozen=True, kw_only=True)
class SharedGate(Form):
    """The outer form of a layer whose sublayers share one gate, zero at first."""

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {"gate": Spec(shape=(), role="residual", init=zeros)}

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, gate: jax.Array) -> jax.Array:
        return f(x, gate=gate)


@dataclass(frozen=True, kw_only=True)
class ReZero(Recipe):
    """x + g f(x), one g for the sublayers of a layer, 0 at first, no norm.

    Source: Bachlechner et al. 2020, eq. (1) and section 4 (g is shared within a layer), arXiv:2003.04887.
    """

    residual: Form = GatedTogether()

    def outer(self, layer: int, geometry: Geometry) -> Form:
        return SharedGate()


def first_scale(depth: int) -> float:
    """LayerScale's initial gate: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.

    Source: Touvron et al. 2021, section 2, arXiv:2103.17239.
    """
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


@dataclass(frozen=True, kw_only=True)
class FeatureGated(Ended):
    """alpha x + beta g * f(gamma norm(x)), g a learned vector, small at first, and a norm at the end.

    Args:
        initial: every entry of g; None takes `first_scale` of the depth.

    Source: Touvron et al. 2021, eq. (4), arXiv:2103.17239.
    """

    initial: float | None = None

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        initial = first_scale(depth) if self.initial is None else self.initial
        gate = Spec(shape=(d_model,), role="residual", init=Constant(initial))
        return {**super().spec(d_model, depth), "gate": gate}

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, norm: Function, gate: jax.Array) -> jax.Array:
        return add(c.alpha, x, c.beta * gate, f(c.gamma * norm(x)))


@dataclass(frozen=True, kw_only=True)
class LayerScale(Recipe):
    """x + g * f(norm(x)), a gate for each feature that starts smaller in deeper stacks.

    Source: Touvron et al. 2021 (CaiT), eq. (4), arXiv:2103.17239; std-0.02 init as in the authors' code.
    """

    residual: Form = FeatureGated()
    default_init: Init = Normal(0.02)


def first_bias(depth: int) -> float:
    """A highway's initial gate bias, -log(2L): gates of about 1/(2L), so that 2L of them carry e^-1 of the stream.

    The authors search -1 to -10 for each depth (arXiv:1507.06228, section 3.1) and take -2 and -4 for 50 layers; the
    rule is ours, and gives -4.6 there.
    """
    return -log(2 * max(depth, 1))


@dataclass(frozen=True, kw_only=True)
class HighwayGated(Form):
    """(1 - t) alpha x + t beta f(gamma x), t = sigmoid(x W + b); no norm.

    Args:
        bias: every entry of b at first; negative carries x through. None takes `first_bias` of the depth.

    Source: Srivastava et al. 2015, eq. (3), arXiv:1505.00387.
    """

    bias: float | None = None

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        bias = first_bias(depth) if self.bias is None else self.bias
        return {
            "gate": Spec(shape=(d_model, d_model), role="residual", init=xavier),
            "gate_bias": Spec(shape=(d_model,), role="residual", init=Constant(bias)),
        }

    def update(
        self, x: jax.Array, f: Function, c: FormCoefficients, gate: jax.Array, gate_bias: jax.Array
    ) -> jax.Array:
        t = jax.nn.sigmoid(upcast(x) @ gate + gate_bias)
        return add((1 - t) * c.alpha, x, t * c.beta, f(c.gamma * x))


@dataclass(frozen=True, kw_only=True)
class Highway(Recipe):
    """(1 - t) x + t f(x), t = sigmoid(x W + b) for each feature, b = -log(2L) at first, no norm.

    Source: Srivastava et al. 2015, eq. (3) and section 2.2 (negative bias), arXiv:1505.00387, with sublayers as the
    transform.
    """

    residual: Form = HighwayGated()
