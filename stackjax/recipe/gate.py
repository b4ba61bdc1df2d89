"""Learned gates on the branch: ReZero, SkipInit, LayerScale and highways."""

from collections.abc import Hashable
from dataclasses import dataclass
from math import log
from typing import Any

import jax

from stackjax.norm import wide
from stackjax.parameter import Constant, Init, Normal, Spec, xavier, zeros
from stackjax.recipe.base import Geometry, Recipe
from stackjax.recipe.residual import Ended, Form, Gated, add, times, with_state


@dataclass(frozen=True, kw_only=True)
class SkipInit(Recipe):
    """x + g f(x), one g for each branch, 0 at first, no norm: every layer starts as the identity.

    Source: De & Smith 2020, arXiv:2002.10444.
    """

    residual: Form = Gated()


@dataclass(frozen=True, kw_only=True)
class GatedTogether(Form):
    """alpha x + beta g f(gamma x), with the g of the layer, which travels beside x: the inner half of `SharedGate`."""

    @property
    def kind(self) -> Hashable:
        return "one stream and a gate"

    def view(self, stream):
        return stream["x"]

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], stream["x"]))
        return {**stream, "x": add(scale["alpha"], stream["x"], scale["beta"] * stream["gate"], y)}, out


@dataclass(frozen=True, kw_only=True)
class SharedGate(Form):
    """The outer form of a layer whose sublayers share one gate, zero at first."""

    @property
    def kind(self) -> Hashable:
        return "one stream and a gate"

    def spec(self, d_model, depth):
        return {"gate": Spec(shape=(), role="residual", init=zeros)}

    def view(self, stream):
        return {"x": stream}

    def apply(self, params, scale, stream, branch, key=None):
        inner, out = branch({"x": stream, "gate": params["gate"]})
        return inner["x"], out


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
        return {"norm": self.norm.spec(d_model), "gate": gate}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], self.norm.apply(params["norm"], stream)))
        out = with_state(out, "norm", self.norm.state(params["norm"], stream))
        return add(scale["alpha"], stream, scale["beta"] * params["gate"], y), out


@dataclass(frozen=True, kw_only=True)
class LayerScale(Recipe):
    """x + g * f(norm(x)), a gate for each feature that starts smaller in deeper stacks.

    Source: Touvron et al. 2021 (CaiT), eq. (4), arXiv:2103.17239; std-0.02 init as in the authors' code.
    """

    residual: Form = FeatureGated()
    law: Init = Normal(0.02)


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

    def apply(self, params, scale, stream, branch, key=None):
        t = jax.nn.sigmoid(wide(stream) @ params["gate"] + params["gate_bias"])
        y, out = branch(times(scale["gamma"], stream))
        return add((1 - t) * scale["alpha"], stream, t * scale["beta"], y), out


@dataclass(frozen=True, kw_only=True)
class Highway(Recipe):
    """(1 - t) x + t f(x), t = sigmoid(x W + b) for each feature, b = -log(2L) at first, no norm.

    Source: Srivastava et al. 2015, eq. (3) and section 2.2 (negative bias), arXiv:1505.00387, with sublayers as the
    transform.
    """

    residual: Form = HighwayGated()
