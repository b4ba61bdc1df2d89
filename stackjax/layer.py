"""A layer: a few sublayers, each joined to the stream by its residual form."""

from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import struct

from stackjax.display import Description
from stackjax.recipe.base import Geometry, Recipe
from stackjax.recipe.residual import Form, Through
from stackjax.sublayer import Given, Out, Params, Sublayer, add_losses


@struct.dataclass
class Trace:
    """What an observer sees of one layer.

    Args:
        before: x_l, (..., T, D).
        after: x_{l+1}, (..., T, D).
        seen: by sublayer: `stream`, x before it; `x`, the input of its branch; `y`, its output; and its own.
    """

    before: jax.Array
    after: jax.Array
    seen: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Layer(Description):
    """One layer's description.

    Args:
        subs: sublayers in order, with distinct names.
        forms: the residual form of each; filled in by a recipe (`dress`).
        outer: the form of the layer as a whole.
    """

    subs: tuple[Sublayer, ...]
    forms: tuple[Form, ...] = ()
    outer: Form = Through()

    def __post_init__(self):
        names = [sub.name for sub in self.subs]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a layer needs sublayers with distinct names; got {names}")
        if self.forms and len(self.forms) != len(self.subs):
            raise ValueError(f"one form per sublayer; got {len(self.forms)} forms for {len(self.subs)} sublayers")

    def dress(self, recipe: Recipe, index: int, geometry: Geometry) -> "Layer":
        """This layer with the recipe's sublayers and forms, as layer `index` of its stack."""
        subs = tuple(sub.each(lambda inner: recipe.adapt(inner, geometry)) for sub in self.subs)
        forms = tuple(recipe.form(sub, slot, index, geometry) for slot, sub in enumerate(subs))
        return replace(self, subs=subs, forms=forms, outer=recipe.outer(index, geometry))

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        """{sublayer: specs, ..., residual: {sublayer: specs, ..., outer: specs}}."""
        residual = {sub.name: form.spec(d_model, depth) for sub, form in zip(self.subs, self.forms, strict=True)}
        residual["outer"] = self.outer.spec(d_model, depth)
        return {**{sub.name: sub.spec(d_model) for sub in self.subs}, "residual": residual}

    def view(self, stream: Any) -> jax.Array:
        """The (..., T, D) that an observer calls x_l."""
        return self.forms[0].view(self.outer.view(stream))

    def apply(
        self,
        params: Params,
        stream: Any,
        given: dict[str, Given],
        *,
        scale: dict[str, jax.Array],
        outer_scale: dict[str, jax.Array],
        key: jax.Array | None = None,
    ) -> tuple[Any, Out, Trace]:
        """Stream to stream.

        Args:
            params: as declared by `spec`.
            stream: as opened by the forms.
            given: for each sublayer, by name.
            scale: numbers of each sublayer, leading axis S.
            outer_scale: numbers of the layer.
            key: PRNG key of this layer; None means evaluation.

        Returns:
            The stream; losses summed, and state by sublayer; and what an observer may look at.
        """

        def run(inner: Any) -> tuple[Any, Out]:
            outs: dict[str, Out] = {}
            for slot, (sub, form) in enumerate(zip(self.subs, self.forms, strict=True)):
                sub_key = None if key is None else jax.random.fold_in(key, slot)
                inner, outs[sub.name] = self._sublayer(
                    sub,
                    form,
                    params,
                    inner,
                    given[sub.name],
                    jax.tree.map(lambda a, s=slot: a[s], scale),
                    sub_key,
                )
            loss: dict[str, jax.Array] = {}
            for out in outs.values():
                loss = add_losses(loss, out.loss)
            state = {name: out.state for name, out in outs.items() if out.state}
            return inner, Out(loss=loss, state=state, seen={name: out.seen for name, out in outs.items()})

        outer_key = None if key is None else jax.random.fold_in(key, len(self.subs))
        new, out = self.outer.apply(params["residual"]["outer"], outer_scale, stream, run, outer_key)
        return new, out, Trace(before=self.view(stream), after=self.view(new), seen=out.seen)

    @staticmethod
    def _sublayer(
        sub: Sublayer,
        form: Form,
        params: Params,
        stream: Any,
        given: Given,
        scale: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[Any, Out]:
        branch_key, form_key = (None, None) if key is None else jax.random.split(key)

        def branch(x: Any, **more: Any) -> tuple[jax.Array, Out]:
            y, out = sub.apply(params[sub.name], x, replace(given, key=branch_key, **more))
            return y, replace(out, seen={**out.seen, "stream": form.view(stream), "x": x, "y": y})

        with jax.named_scope(sub.name):
            return form.apply(params["residual"][sub.name], scale, stream, branch, form_key)
