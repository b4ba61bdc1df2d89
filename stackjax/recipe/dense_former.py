"""Layers that read a weighted average of all earlier ones: DenseFormer, and DLCL before it."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.history import History
from stackjax.norm import LayerNorm, NoNorm, Norm
from stackjax.parameter import Init, Spec
from stackjax.recipe.around import Around
from stackjax.recipe.base import Coefficients, Geometry, layer_index
from stackjax.recipe.form import Form, FormCoefficients, Function


def latest(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """e_l: all weight on the layer's own output, as without averaging. Layer l is the l-th from 1; `layer` from 0."""
    return (jnp.arange(shape[0]) == layer + 1).astype(jnp.float32)


def mean(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """1 / (l + 1) for the embedding and the outputs of the first l layers."""
    return (jnp.arange(shape[0]) < layer + 2).astype(jnp.float32) / (layer + 2)


@dataclass(frozen=True, kw_only=True)
class DepthAverage(Form):
    """The outer form y_l = sum_j a_lj norm(X_j), X_l = layer(y_{l-1}), X_0 = y_0 the embedding.

    The coefficients say with `reads` (L, L + 1) over which j <= l the sum runs, and with `average` whether layer l has
    one at all; where it has none, y_l = X_l.

    Args:
        depth: L.
        norm: of each X_j as it is stored.
        init: of the weights (L + 1,) of each layer.
    """

    depth: int
    norm: Norm = NoNorm()
    norms = ("norm",)
    init: Init = latest

    @property
    def kind(self) -> Hashable:
        return "average over depth"

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        if looped:
            raise ValueError("an average over depth has weights of its own in every layer; a looped stack shares them")
        kinds = {form.kind for layer in layers for form in layer.forms}
        if kinds != {"one stream"}:
            raise ValueError(f"an average over depth needs sublayers with one stream; got {sorted(map(str, kinds))}")

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {**super().spec(d_model, depth), "average": Spec(shape=(depth + 1,), role="residual", init=self.init)}

    @property
    def enter_norms(self) -> tuple[str, ...]:
        return ("norm",)

    def enter(self, x: jax.Array, norm: Function) -> Any:
        x = norm(x)
        return {"x": x, "history": History.start(x, self.depth + 1)}

    def update(self, x: Any, f: Function, c: FormCoefficients, average: jax.Array, norm: Function) -> Any:
        new = f(x["x"])
        history = x["history"].write(c.slot, norm(new))
        y = history.sum(average * c.reads).astype(new.dtype)
        return {"x": jnp.where(c.average > 0, y, new), "history": history}

    def leave(self, stream: Any) -> jax.Array:
        return stream["x"]

    def view(self, stream: Any) -> jax.Array:
        return stream["x"]


@dataclass(frozen=True, kw_only=True)
class DenseFormer(Around):
    """A weighted average over the outputs of earlier layers after every `period`-th layer of any recipe.

    The weights start with 1 on the newest output and 0 elsewhere: the base recipe, exactly.

    Args:
        dilation: k, the average after layer l reads only j = l modulo k.
        period: p, there is an average only after layers p, 2p, ...

    Raises:
        ValueError: a dilation or a period below 1; a base with an outer form of its own.

    Source: Pagliardini et al. 2024, section 3, arXiv:2402.02622. Weights that the dilation or the period leave out stay
    among the parameters, unused.
    """

    dilation: int = 1
    period: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.dilation < 1 or self.period < 1:
            raise ValueError(f"dilation and period are at least 1; got {self.dilation} and {self.period}")

    def outer(self, layer: int, geometry: Geometry) -> Form:
        taken = self.base.outer(layer, geometry)
        if taken is not None:
            raise ValueError(f"DenseFormer is an outer form, and its base has one already: {taken}")
        return self.average(geometry)

    def average(self, geometry: Geometry) -> DepthAverage:
        """The outer form."""
        return DepthAverage(depth=geometry.depth)

    def coefficients(self, geometry: Geometry) -> Coefficients:
        coefficients = self.base.coefficients(geometry)
        l = layer_index(geometry)
        apart = l - jnp.arange(geometry.depth + 1)
        outer = {
            "slot": l[:, 0].astype(jnp.int32),
            "reads": ((apart >= 0) & (apart % self.dilation == 0)).astype(jnp.float32),
            "average": (l[:, 0] % self.period == 0).astype(jnp.float32),
        }
        return {**coefficients, "outer": {**coefficients["outer"], **outer}}


@dataclass(frozen=True, kw_only=True)
class DLCL(DenseFormer):
    """Dynamic linear combination of layers: x_{l+1} = sum_{j<=l} w_lj norm(X_j), w_lj = 1 / (l + 1) at first.

    Source: Wang et al. 2019, section 3, arXiv:1906.01787, the pre-norm case.
    """

    def average(self, geometry: Geometry) -> DepthAverage:
        return DepthAverage(depth=geometry.depth, norm=LayerNorm(), init=mean)
