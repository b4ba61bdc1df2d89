"""The stack: one layer, scanned.

A stack is a tuple of segments; a segment is a short pattern of layers repeated n times by one scan. Most stacks are one
segment of one layer: a single compiled layer, whatever the depth. Parameters are born stacked on axis 0 and stay so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import chex
import jax
import jax.numpy as jnp

from stackjax import edit as editing
from stackjax import scan
from stackjax.abstract_model import AbstractModel
from stackjax.check import first_axis, hashable, instance
from stackjax.display import block, stack_lines
from stackjax.layer import Layer
from stackjax.option import RunOptions
from stackjax.parameter import declare, is_spec, realise, restrict, share
from stackjax.pin import pin
from stackjax.recipe.base import Coefficients, Geometry, Recipe, checked_coefficients, multipliers
from stackjax.recipe.form import Form
from stackjax.segment import Measure, Segment, fold, scan_body, stacked_by_layer
from stackjax.statistic import update_statistics
from stackjax.sublayer import Cache, Params, Result, SideInputs, Sublayer, add_losses, checked


@dataclass(frozen=True, kw_only=True)
class Stack(AbstractModel):
    """A deep stack as a description; make one with `Stack.of`.

    Args:
        segments: what is scanned, in order; with the sublayers and forms that the recipe gives them.
        recipe: the depth treatment.
        geometry: depth, width and side.
    """

    segments: tuple[Segment, ...]
    recipe: Recipe
    geometry: Geometry

    def __post_init__(self):
        layers = [layer for segment in self.segments for layer in segment.layers]
        for kinds in (
            {form.kind for layer in layers for form in layer.forms},
            {None if layer.outer is None else layer.outer.kind for layer in layers},
        ):
            if len(kinds) > 1:
                raise ValueError(
                    f"forms with different streams cannot meet in one stack; got {sorted(map(str, kinds))}"
                )
        different = tuple(dict.fromkeys(layers))
        looped = any(segment.looped for segment in self.segments)
        for form in dict.fromkeys(form for layer in different for form in (*layer.forms, layer.outer) if form):
            form.check(different, looped)
        if looped:
            declared = jax.tree.leaves(self.declaration()["segments"], is_leaf=is_spec)
            apart = sorted({d.spec.role for d in declared if jnp.size(self.gain(d.spec.role)) > 1})
            if apart:
                scaled = f"{type(self.recipe).__name__} scales {', '.join(apart)} differently in each layer"
                raise ValueError(f"{scaled}, so they cannot be looped")

    @classmethod
    def of(
        cls,
        *layers: Layer,
        depth: int,
        d_model: int,
        recipe: Recipe,
        looped: bool = False,
        side: Literal["encoder", "decoder"] = "decoder",
        other_depth: int = 0,
    ) -> "Stack":
        """Describe a stack.

        Args:
            *layers: one layer, or a pattern of them that is cycled through, or one for each layer of the stack.
            depth: L, 0 or more.
            d_model: D.
            recipe: the depth treatment.
            looped: whether all layers share one copy of the parameters (`depth` must then be whole patterns).
            side: "encoder" or "decoder", for recipes whose constants depend on it.
            other_depth: layers in the stack on the other side of an encoder-decoder.

        Raises:
            ValueError: a depth that is negative, or not whole patterns when looped; forms that cannot meet or be
                looped.
        """
        instance("recipe", recipe, Recipe)
        hashable("recipe", recipe)
        for layer in layers:
            instance("a stack's layer", layer, Layer)
        if not layers:
            raise ValueError("a stack needs at least one layer description, also at depth 0")
        if depth < 0:
            raise ValueError(f"depth must be 0 or more; got {depth}")
        if d_model < 1:
            raise ValueError(f"d_model must be positive; got {d_model}")
        if looped and depth % len(layers):
            raise ValueError(f"a looped stack repeats whole patterns; got depth={depth}, pattern={len(layers)}")
        width = max(len(layer.sublayers) for layer in layers)
        geometry = Geometry(depth=depth, d_model=d_model, n_sublayers=width, side=side, other_depth=other_depth)
        every = [layers[i % len(layers)].with_recipe(recipe, i, geometry) for i in range(max(depth, 1))]
        if looped and depth and every != every[: len(layers)] * (depth // len(layers)):
            raise ValueError(f"{type(recipe).__name__} treats layers differently, so they cannot be looped")
        if depth == 0:
            segments = (Segment(layers=tuple(every), n=0),)
        elif looped:
            pattern = tuple(every[: len(layers)])
            segments = (Segment(layers=pattern, n=depth // len(pattern), looped=True),)
        else:
            segments = fold(every)
        return cls(segments=segments, recipe=recipe, geometry=geometry)

    def __repr__(self) -> str:
        title = f"Stack: {self.depth} layers of width {self.d_model}, {self.n_params:,} parameters, {self.recipe!r}"
        return block(title, stack_lines(self))

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return self.geometry.depth

    @property
    def d_model(self) -> int:
        """D, the width of the stream."""
        return self.geometry.d_model

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all values that an edit may replace, see `stackjax.edit`."""
        layers = (layer for segment in self.segments for layer in segment.layers)
        return tuple(dict.fromkeys(site for layer in layers for site in layer.sites))

    def stacks(self) -> "dict[tuple[str, ...], Stack]":
        return {(): self}

    def with_stacks(self, stacks: "Mapping[tuple[str, ...], Stack]") -> "Stack":
        return stacks[()]

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`.

        {enter: {inner, outer}, segments: {segment: {layer of the pattern: {sublayer, .., residual}}}, shared, leave}
        """
        segments: Params = {}
        shared: Params = {}
        for i, start, segment in self.placed():
            segments[i] = {}
            for j, layer in enumerate(segment.layers):
                repeats = tuple(range(start + j, start + segment.depth, len(segment.layers)))
                segments[i][str(j)] = declare(
                    layer.spec(self.d_model, self.depth),
                    layers=(start + j,) if segment.looped else repeats,
                    stacked=not segment.looped,
                )
                for sublayer in layer.sublayers:
                    share(shared, sublayer.shared(self.d_model))
        size = self.d_model, self.depth
        enter = {name: form.enter_spec(*size) for name, form in self._end_forms("enter").items()}
        leave = {name: form.leave_spec(*size) for name, form in self._end_forms("leave").items()}
        outside = {"enter": _outside(enter), "shared": shared, "leave": _outside(leave)}
        return {"segments": segments, **{name: declare(specs, prefix=f"{name}/") for name, specs in outside.items()}}

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Draw the parameters, stacked on axis 0 within each segment."""
        init = self.recipe.default_init
        return self.project(realise(key, self.declaration(), default_init=init, gain=self.gain, dtype=dtype))

    def project(self, params: Params) -> Params:
        """The parameters where the recipe wants them after each step, see `Recipe.project`."""
        return self.recipe.project(params, restrict(self.declaration(), params))

    def gain(self, role: str) -> Any:
        """The recipe's factor on the initialiser of a role, () or (L,)."""
        return self.recipe.gain(role, self.geometry)

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier`."""
        return multipliers(self.declaration(), self.recipe, self.geometry)

    def coefficients(self) -> Coefficients:
        """The recipe's numbers for this depth: data that `apply` reads, and that may be replaced or vmapped."""
        return self.recipe.coefficients(self.geometry)

    def checked_coefficients(self, coefficients: Coefficients | None) -> Coefficients:
        """The recipe's numbers if None are given, else what is given, if its names and axes are those of the recipe."""
        return checked_coefficients(coefficients, self.recipe, self.geometry)

    def calibrate(
        self, params: Params, x: jax.Array, side_inputs: SideInputs | None = None, **options: Unpack[RunOptions]
    ) -> Params:
        """Parameters before the first step, which some recipes set from one batch; arguments are those of `apply`."""

        def observe(trial: Params, measure: Measure) -> dict[str, jax.Array]:
            return self.apply(trial, x, side_inputs, **{**options, "measure": measure})[1].measure

        return self.recipe.calibrate(self.checked(params), self.declaration(), observe)

    def update_statistics(self, params: Params, state: Params) -> Params:
        """Parameters after a step, with the running statistics that `apply` returned as `Result.state`."""
        return update_statistics(params, state)

    def enter(self, params: Params, x: jax.Array) -> Any:
        """Open the stream from x (..., T, D)."""
        return self._enter(params, x)[0]

    def leave(self, params: Params, stream: Any) -> jax.Array:
        """Close the stream to (..., T, D)."""
        return self._leave(params, stream)[0]

    def _enter(self, params: Params, x: jax.Array) -> tuple[Any, Params]:
        """The stream, and the new statistics of the norms on its way in."""
        stream, state = x, {}
        for name, form in self._end_forms("enter").items():
            parameters, new = form.bind(params["enter"].get(name, {}), form.enter_norms)
            stream = form.enter(stream, **parameters)
            state |= {name: new} if new else {}
        return stream, state

    def _leave(self, params: Params, stream: Any) -> tuple[jax.Array, Params]:
        """The output, and the new statistics of the norms on the way out."""
        state = {}
        for name, form in reversed(self._end_forms("leave").items()):
            parameters, new = form.bind(params["leave"].get(name, {}), form.leave_norms)
            stream = form.leave(stream, **parameters)
            state |= {name: new} if new else {}
        return stream, state

    def apply(
        self,
        params: Params,
        x: jax.Array,
        side_inputs: SideInputs | None = None,
        *,
        coefficients: Coefficients | None = None,
        key: jax.Array | None = None,
        cache: Cache | None = None,
        taps: jax.Array | None = None,
        perturbations: Any = None,
        measure: Measure | None = None,
        edit: editing.Edit | None = None,
        remat: scan.Remat = "none",
        loop: bool = False,
        unroll: int = 1,
    ) -> tuple[jax.Array, Result]:
        """Run x through all layers.

        Args:
            params: as drawn by `init`.
            x: (..., T, D)
            side_inputs: positions, memory and whatever else travels beside x.
            coefficients: the numbers of each sublayer and layer; None takes the recipe's.
            key: PRNG key for dropout and stochastic depth; None means evaluation.
            cache: decoding cache, see `stackjax.decode`; read, never written.
            taps: (L + 1,) zeros whose gradient is |dLoss/dx_l|² for x_0 .. x_L, in O(L) memory.
            perturbations: like the stream with a leading axis L, zeros that are added to the stream before each layer;
                their gradient is dLoss/dx_l itself.
            measure: what to reduce each layer's `Trace` to.
            edit: what to replace in the layers, see `stackjax.edit`.
            remat: what the backward pass recomputes: "none", "layer", "nested" or a jax checkpoint policy.
            loop: run a Python loop over the layers, the plain reference, instead of scans.
            unroll: layers (patterns) per scan step.

        Returns:
            (..., T, D), and the `Result`.
        """
        chex.assert_shape(x, (..., None, self.d_model))
        if not x.size:
            raise ValueError(f"a stack needs at least one token; got x of shape {x.shape}")
        first_axis("taps", taps, self.depth + 1)
        first_axis("perturbations", perturbations, self.depth)
        editing.check(edit, self.sites)
        params = self.checked(params)
        side_inputs = checked(side_inputs, x.shape[:-1])
        coefficients = self.checked_coefficients(coefficients)
        prepared = self._prepare(params, side_inputs, x.shape[-2], cache, edit)
        by_layer = {
            "sublayer": coefficients["sublayer"],
            "outer": coefficients.get("outer", {}),
            "key": None if key is None else jax.vmap(lambda l: jax.random.fold_in(key, l))(jnp.arange(self.depth)),
            "tap": None if taps is None else taps[:-1],
            "perturbation": perturbations,
            "layer": jnp.arange(self.depth) if edit else None,
        }
        stream, entered = self._enter(params, x)
        loss: dict[str, jax.Array] = {}
        state: Params = {}
        measures = []
        for i, start, segment in self.placed():
            stored = params["segments"][i]
            xs: dict[str, Any] = jax.tree.map(
                lambda a, start=start, segment=segment: a[start : start + segment.depth].reshape(
                    segment.n, len(segment.layers), *a.shape[1:]
                ),
                by_layer,
            )
            xs["params"] = None if segment.looped else stored
            xs["cache"] = None if cache is None else cache.segments[i]
            shared = stored if segment.looped else None
            body = scan_body(segment, shared, side_inputs, prepared, measure, edit, remat, loop)
            stream, ys = scan.run(body, stream, xs, segment.n, nested=remat == "nested", loop=loop, unroll=unroll)
            loss = add_losses(loss, {name: jnp.sum(value, 0) for name, value in ys[0].items()})
            state[i] = ys[1]
            measures.append((segment.n, ys[2]))
        stream = pin(stream)
        if taps is not None:
            stream = scan.tap(stream, taps[-1])
        y, left = self._leave(params, stream)
        state |= {side: new for side, new in (("enter", entered), ("leave", left)) if new}
        return y, Result(loss=loss, state=state, measure=stacked_by_layer(measures))

    def placed(self) -> list[tuple[str, int, Segment]]:
        """Each segment with its name and the index of its first layer."""
        placed, start = [], 0
        for i, segment in enumerate(self.segments):
            placed.append((str(i), start, segment))
            start += segment.depth
        return placed

    def _end_forms(self, side: Literal["enter", "leave"]) -> dict[str, Form]:
        """The forms that open or close the stream: that of the first or last sublayer, and the outer one around it."""
        layer = self.segments[0].layers[0] if side == "enter" else self.segments[-1].layers[-1]
        inner = layer.forms[0] if side == "enter" else layer.forms[-1]
        return {"inner": inner} if layer.outer is None else {"inner": inner, "outer": layer.outer}

    def _prepare(
        self, params: Params, side_inputs: SideInputs, n_tokens: int, cache: Cache | None, edit: editing.Edit | None
    ) -> dict[Sublayer, Any]:
        """The values that each different sublayer prepares, once, outside the scan."""
        prepared = {}
        cached = None if cache is None else cache.position
        for layer in (layer for segment in self.segments for layer in segment.layers):
            for sublayer in layer.sublayers:
                if sublayer not in prepared:
                    its_inputs = replace(side_inputs, edits=editing.edits_of(edit, sublayer.name, None))
                    prepared[sublayer] = sublayer.prepare(params["shared"], its_inputs, n_tokens, self.d_model, cached)
        return prepared


def _outside(specs: Params) -> Params:
    """Specs of `enter` or `leave`, where the role of a norm is final_norm; an outer form without any has no group."""
    specs = {name: group for name, group in specs.items() if group or name == "inner"}
    return jax.tree.map(
        lambda spec: replace(spec, role="final_norm") if spec.role == "norm" else spec, specs, is_leaf=is_spec
    )
