"""Value residual: every layer's attention also reads the values of the first."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.parameter import Constant, Spec
from stackjax.recipe.around import Around, AroundForm
from stackjax.recipe.base import Coefficients, Geometry, innermost, is_attention, layer_index, with_coefficients
from stackjax.recipe.form import Branch, Form, FormCoefficients
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer


def mix_with_first(value: jax.Array, side_inputs: SideInputs) -> jax.Array:
    """own V_l + earlier V_1, with what `WithValue` says of the three; V_l where nothing is said."""
    if "first_value" not in side_inputs.hints:
        return value
    own, earlier, first = (side_inputs.hints[name] for name in ("own", "earlier", "first_value"))
    return (own * value + earlier * first.reshape(value.shape)).astype(value.dtype)


@dataclass(frozen=True, kw_only=True)
class WithValue(AroundForm):
    """Any form, with the first layer's values V_1 beside its stream: attention uses own V_l + earlier V_1.

    The coefficients say which layer is the `first` (its values are stored, and it uses them as they are) and how much
    of its `own` and of the `earlier` values a layer uses.

    Args:
        width: G K, the width of the values; None in a sublayer without values, which passes V_1 on.
        learned: initial values of (own, earlier) if they are learned, and then multiplied by the coefficients.
    """

    width: int | None
    learned: tuple[float, float] | None = None

    @property
    def kind(self) -> Hashable:
        return f"first values beside {self.inner.kind}"

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        self.inner.check(layers, looped)
        if outer := sorted({str(layer.outer.kind) for layer in layers if layer.outer is not None}):
            raise ValueError(f"value residual cannot be carried through an outer form; got {outer}")
        joined = [pair for layer in layers for pair in zip(layer.sublayers, layer.forms, strict=True)]
        sublayers = [(sublayer, _width(form)) for sublayer, form in joined]
        without = [type(sublayer).__name__ for sublayer, width in sublayers if width is None and reads_itself(sublayer)]
        widths = {width for _, width in sublayers if width is not None}
        if without or sublayers[0][1] is None or len(widths) > 1:
            raise ValueError(
                "value residual needs a self-attention as the first sublayer, and in all layers plain `Attention` with "
                f"values of one width; got {sublayers[0][0].name!r} first, widths {sorted(widths)}, and without values "
                f"of their own {sorted(set(without))}"
            )

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        specs = self.inner.spec(d_model, depth)
        if self.learned is None or self.width is None:
            return specs
        own, earlier = (Spec(shape=(), role="residual", init=Constant(value)) for value in self.learned)
        return {**specs, "own_value": own, "earlier_value": earlier}

    def enter(self, x: jax.Array, **parameters: Any) -> Any:
        return {"inner": self.inner.enter(x, **parameters), "value": jnp.zeros((*x.shape[:-1], self.width), x.dtype)}

    def leave(self, stream: Any, **parameters: Any) -> jax.Array:
        return self.inner.leave(stream["inner"], **parameters)

    def view(self, stream: Any) -> jax.Array:
        return self.inner.view(stream["inner"])

    def apply(
        self, params: Params, c: FormCoefficients, stream: Any, branch: Branch, key: jax.Array | None = None
    ) -> tuple[Any, Aux]:
        if self.width is None:
            new, aux = self.inner.apply(params, c, stream["inner"], branch, key)
            return {**stream, "inner": new}, aux
        learned = {name: params[name] for name in ("own_value", "earlier_value") if self.learned is not None}
        own = jnp.where(c.first > 0, 1, c.own * learned.get("own_value", 1))
        earlier = jnp.where(c.first > 0, 0, c.earlier * learned.get("earlier_value", 1))

        with_value = branch.with_hints(own=own, earlier=earlier, first_value=stream["value"])
        inner = {name: value for name, value in params.items() if name not in learned}
        new, aux = self.inner.apply(inner, c, stream["inner"], with_value, key)
        value = aux.intermediates["value"].reshape(stream["value"].shape)
        return {"inner": new, "value": jnp.where(c.first > 0, value, stream["value"])}, aux


def reads_itself(sublayer: Sublayer) -> bool:
    """True if there is self-attention in a sublayer."""
    return any(is_attention(one) and not one.reads_memory for one in innermost(sublayer))


def _width(form: Any) -> int | None:
    """The width of a form that holds a `WithValue` somewhere inside."""
    return form.width if isinstance(form, WithValue) else _width(form.inner)


@dataclass(frozen=True, kw_only=True)
class ValueResidual(Around):
    """ResFormer: V_l' = own V_l + earlier V_1 for l > 1, in self-attention, around recipes without an outer form.

    0.5 and 0.5 is Identity-ResFormer; `learned` starts there (Learnable-ResFormer); own=1, earlier=2 is the best
    Constant-ResFormer; own=0, earlier=1 is SVFormer, where all layers use the first one's values.

    Args:
        own: of the layer's own values.
        earlier: of the first layer's values.
        learned: whether each layer learns the two, from these.

    Source: Zhou et al. 2024, eq. (4) to (6) and section 4, arXiv:2410.17897. SVFormer saves the value projections and
    half of the cache; here later layers keep both, unused.
    """

    own: float = 0.5
    earlier: float = 0.5
    learned: bool = False

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        adapted = self.base.adapt(sublayer, geometry)
        if isinstance(adapted, Attention) and not adapted.cross:
            return replace(adapted, transform_value=mix_with_first)
        return adapted

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        width = None
        if isinstance(sublayer, Attention) and not sublayer.cross:
            width = sublayer.groups * sublayer.head_width(geometry.d_model)
        return WithValue(
            inner=self.base.form(sublayer, index, layer, geometry),
            width=width,
            learned=(self.own, self.earlier) if self.learned else None,
        )

    def coefficients(self, geometry: Geometry) -> Coefficients:
        first = layer_index(geometry) == 1
        own, earlier = (1.0, 1.0) if self.learned else (self.own, self.earlier)
        return with_coefficients(self.base.coefficients(geometry), first=first, own=own, earlier=earlier)
