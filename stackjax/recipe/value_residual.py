"""Value residual: every layer's attention also reads the values of the first."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.parameter import Constant, Spec
from stackjax.recipe.around import Around, AroundForm
from stackjax.recipe.base import Geometry, Schedule, innermost, is_attention, with_sub
from stackjax.recipe.residual import Form, Through
from stackjax.sublayer import Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class WithValue(AroundForm):
    """Any form, with the first layer's values V_1 beside its stream: attention uses own V_l + earlier V_1.

    The schedule says which layer is the `first` (its values are stored, and it uses them as they are) and how much of
    its `own` and of the `earlier` values a layer uses.

    Args:
        width: G K, the width of the values; None in a sublayer without values, which passes V_1 on.
        learned: initial values of (own, earlier) if they are learned, and then multiplied by the schedule's numbers.
    """

    width: int | None
    learned: tuple[float, float] | None = None

    @property
    def kind(self) -> Hashable:
        return f"first values beside {self.inner.kind}"

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        self.inner.check(layers, looped)
        outer = {layer.outer.kind for layer in layers}
        if outer != {Through().kind}:
            raise ValueError(f"value residual cannot be carried through an outer form; got {sorted(map(str, outer))}")
        subs = [(sub, _width(form)) for layer in layers for sub, form in zip(layer.subs, layer.forms, strict=True)]
        without = [type(sub).__name__ for sub, width in subs if width is None and reads_itself(sub)]
        widths = {width for _, width in subs if width is not None}
        if without or subs[0][1] is None or len(widths) > 1:
            raise ValueError(
                "value residual needs a self-attention as the first sublayer, and in all layers plain `Attention` with "
                f"values of one width; got {subs[0][0].name!r} first, widths {sorted(widths)}, and without values of "
                f"their own {sorted(set(without))}"
            )

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        specs = self.inner.spec(d_model, depth)
        if self.learned is None or self.width is None:
            return specs
        own, earlier = (Spec(shape=(), role="residual", init=Constant(value)) for value in self.learned)
        return {**specs, "own_value": own, "earlier_value": earlier}

    def enter(self, params: Params, x: jax.Array) -> Any:
        return {"inner": self.inner.enter(params, x), "value": jnp.zeros((*x.shape[:-1], self.width), x.dtype)}

    def leave(self, params: Params, stream: Any) -> jax.Array:
        return self.inner.leave(params, stream["inner"])

    def view(self, stream: Any) -> jax.Array:
        return self.inner.view(stream["inner"])

    def statistics(self, side: str, params: Params, x: Any) -> Params:
        return self.inner.statistics(side, params, x if side == "enter" else x["inner"])

    def apply(self, params, scale, stream, branch, key=None):
        if self.width is None:
            new, out = self.inner.apply(params, scale, stream["inner"], branch, key)
            return {**stream, "inner": new}, out
        first = scale["first"] > 0
        own = jnp.where(first, 1, scale["own"] * params.get("own_value", 1))
        earlier = jnp.where(first, 0, scale["earlier"] * params.get("earlier_value", 1))

        def with_value(x, **more):
            return branch(x, value=(own, earlier, stream["value"]), **more)

        new, out = self.inner.apply(params, scale, stream["inner"], with_value, key)
        value = out.seen["value"].reshape(stream["value"].shape)
        return {"inner": new, "value": jnp.where(first, value, stream["value"])}, out


def reads_itself(sub: Sublayer) -> bool:
    """Whether there is self-attention in a sublayer."""
    return any(is_attention(one) and not getattr(one, "cross", False) for one in innermost(sub))


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

    def form(self, sub: Sublayer, slot: int, layer: int, geometry: Geometry) -> Form:
        width = None
        if isinstance(sub, Attention) and not sub.cross:
            width = sub.groups * sub.head_width(geometry.d_model)
        return WithValue(
            inner=self.base.form(sub, slot, layer, geometry),
            width=width,
            learned=(self.own, self.earlier) if self.learned else None,
        )

    def schedule(self, geometry: Geometry) -> Schedule:
        first = jnp.arange(geometry.depth)[:, None] == 0
        own, earlier = (1.0, 1.0) if self.learned else (self.own, self.earlier)
        return with_sub(self.base.schedule(geometry), first=first, own=own, earlier=earlier)
