"""A layer: a few sublayers, each joined to the stream by its residual form."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from flax import struct

from stackjax import tensor_parallel
from stackjax.check import hashable, instance, shown
from stackjax.description import Description
from stackjax.history import fill, without_histories
from stackjax.recipe.base import Geometry, Recipe
from stackjax.recipe.form import Branch, Form, FormCoefficients
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer, add_losses, call


@struct.dataclass
class Trace:
    """The record of one layer that an observer reads.

    Args:
        stream: what the recipe's forms carry in front of the layer, of which x_l is a view.
        before: x_l, (..., T, D).
        after: x_{l+1}, (..., T, D).
        intermediates: by sublayer: `stream`, the stream before it, and `view`, what an observer calls x there (..., T,
            D); `input` of its branch and `output`; and what the sublayer itself returned as intermediates. What an edit
            (`stackjax.edit`) replaced is seen as replaced.
    """

    stream: Any
    before: jax.Array
    after: jax.Array
    intermediates: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Layer(Description):
    """One layer's description.

    Args:
        sublayers: in order, with distinct names.
        forms: the residual form of each; filled in by a recipe (`with_recipe`).
        outer: the form around the layer as a whole; None for none.
    """

    sublayers: tuple[Sublayer, ...]
    forms: tuple[Form, ...] = ()
    outer: Form | None = None
    numbers = ("sublayers",)

    def __post_init__(self):
        names = [sublayer.name for sublayer in self.sublayers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a layer needs sublayers with distinct names; got {names}")
        if self.forms and len(self.forms) != len(names):
            raise ValueError(f"one form per sublayer; got {len(self.forms)} forms for {len(names)} sublayers")
        hashable("a layer", self)

    def with_recipe(self, recipe: Recipe, index: int, geometry: Geometry) -> "Layer":
        """This layer with the recipe's sublayers and forms, as layer `index` of its stack."""
        adapted = tuple(sublayer.map(lambda inner: recipe.adapt(inner, geometry)) for sublayer in self.sublayers)
        forms = tuple(recipe.form(sublayer, i, index, geometry) for i, sublayer in enumerate(adapted))
        return replace(self, sublayers=adapted, forms=forms, outer=recipe.outer(index, geometry))

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        """{sublayer: specs, ..., residual: {sublayer: specs, ..., outer: specs}}."""
        forms = zip(self.sublayers, self.forms, strict=True)
        residual = {sublayer.name: form.spec(d_model, depth) for sublayer, form in forms}
        if self.outer is not None and (specs := self.outer.spec(d_model, depth)):
            residual["outer"] = specs
        return {**{sublayer.name: sublayer.spec(d_model) for sublayer in self.sublayers}, "residual": residual}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all values that an edit may replace, see `stackjax.edit`."""
        return tuple(
            f"{sublayer.name}/{site}"
            for sublayer in self.sublayers
            for site in ("stream", "input", *sublayer.sites, "output")
        )

    def view(self, stream: Any) -> jax.Array:
        """The (..., T, D) that an observer calls x_l."""
        return self.forms[0].view(stream if self.outer is None else self.outer.view(stream))

    def truncated(self, entered: Any, reached: Any) -> Any:
        """The stream behind turns of a loop that have no gradient, see `Form.truncated`."""
        return reached if self.outer is None else self.outer.truncated(entered, reached)

    def apply(
        self,
        params: Params,
        stream: Any,
        side_inputs: dict[str, SideInputs],
        *,
        coefficients: dict[str, jax.Array],
        outer_coefficients: dict[str, jax.Array],
        key: jax.Array | None = None,
    ) -> tuple[Any, Aux, Trace]:
        """Stream to stream.

        Args:
            params: as declared by `spec`.
            stream: as opened by the forms.
            side_inputs: of each sublayer, by name.
            coefficients: of each sublayer's form, leading axis S.
            outer_coefficients: of the outer form.
            key: PRNG key of this layer; None means evaluation.

        Returns:
            The stream; losses summed, and state by sublayer; and what an observer may look at.
        """

        def sublayers(inner: Any, hints: dict[str, Any]) -> tuple[Any, Aux]:
            """One after another; `hints` are coefficients from the outer form."""
            loss: dict[str, jax.Array] = {}
            state, intermediates = {}, {}
            for i, (sublayer, form) in enumerate(zip(self.sublayers, self.forms, strict=True)):
                name = sublayer.name
                inner = _edited(side_inputs[name], inner)
                seen = {"stream": without_histories(inner), "view": form.view(inner)}
                keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, i))
                c = FormCoefficients({**{n: value[i] for n, value in coefficients.items()}, **hints})
                its_inputs = replace(side_inputs[name], key=keys[0])
                branch = Branch(partial(_on_all_tokens, sublayer, params[name], its_inputs), dtype)
                with jax.named_scope(name):
                    joined = form.apply(params["residual"][name], c, inner, branch, keys[1])
                inner, aux = _checked(form, joined)
                loss = add_losses(loss, aux.loss)
                intermediates[name] = {**seen, **aux.intermediates}
                if aux.state:
                    state[name] = aux.state
            return inner, Aux(loss=loss, state=state, intermediates=intermediates)

        dtype = jax.tree.leaves(stream)[0].dtype
        if self.outer is None:
            new, aux = sublayers(stream, {})
        else:
            outer_key = None if key is None else jax.random.fold_in(key, len(self.sublayers))
            c, group = FormCoefficients(outer_coefficients), params["residual"].get("outer", {})
            joined = self.outer.apply(group, c, stream, Branch(sublayers, dtype), outer_key)
            new, aux = _checked(self.outer, joined)
        before, after = self.view(stream), self.view(new)
        return new, aux, Trace(stream=stream, before=before, after=after, intermediates=aux.intermediates)


def bare(layer: Any) -> None:
    """Refuse what is no layer without forms, which a recipe is to give it.

    Raises:
        ValueError: as said.
    """
    instance("a stack's layer", layer, Layer)
    if layer.forms or layer.outer:
        raise ValueError("the recipe gives layers their forms: give Stack.of layers without forms and outer")


def _on_all_tokens(
    sublayer: Sublayer, params: Params, side_inputs: SideInputs, x: jax.Array, **options: Any
) -> tuple[jax.Array, Aux]:
    """A sublayer on tokens that are gathered for it and scattered behind it, see `stackjax.tensor_parallel`."""
    function = partial(call, sublayer, params, side_inputs=side_inputs)
    y, aux = tensor_parallel.on_all_tokens(function, x, **options)
    return (y if sublayer.dropout else tensor_parallel.scatter_tokens(y)), aux  # dropout is behind the scatter


def _checked(form: Form, returned: Any) -> tuple[Any, Aux]:
    """The stream and the `Aux` that a form returned.

    Raises:
        ValueError: it returned something else.
    """
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Aux)):
        raise ValueError(
            f"{type(form).__name__}.apply must return (stream, Aux), with what its branch returned in the Aux; it "
            f"returned {shown(returned)}"
        )
    return returned


def _edited(side_inputs: SideInputs, stream: Any) -> Any:
    """The stream before a sublayer, edited; a `History`, whose slots are set once, stays as it is."""
    return fill(side_inputs.edited("stream", without_histories(stream)), stream)
