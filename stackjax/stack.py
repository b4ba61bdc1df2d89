"""The stack: one layer, scanned.

A stack is a tuple of segments; a segment is a short pattern of layers repeated n times by one scan. Most stacks are one
segment of one layer: a single compiled layer, whatever the depth. Parameters are born stacked on axis 0 and stay so.

More than `segment.MANY` layers that differ only in numbers, such as attention's window or a rotary base, are one scan
as well, with the numbers as data (`stackjax.by_layer`); their decoding cache is that of the widest window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Unpack

import chex
import jax
import jax.numpy as jnp

from stackjax import boundary, scan, turn
from stackjax import edit as editing
from stackjax.abstract_model import AbstractModel
from stackjax.by_layer import Numbers
from stackjax.check import first_axis, floating, hashable, instance, prng_key, whole
from stackjax.display import block, stack_lines
from stackjax.layer import Layer, bare
from stackjax.option import RunOptions
from stackjax.parameter import declare, is_spec, realise, restrict, share
from stackjax.pin import pin
from stackjax.recipe.base import Coefficients, Geometry, Loop, Recipe, checked_coefficients, checked_gain, multipliers
from stackjax.segment import Measure, Segment, borrowed_in, by_repeat, fold, prepare, scan_body, stacked_by_layer
from stackjax.statistic import update_statistics
from stackjax.sublayer import Cache, Params, Result, SideInputs, Sublayer, add_losses, checked


@dataclass(frozen=True, kw_only=True)
class Stack(AbstractModel):
    """A deep stack as a description; make one with `Stack.of`.

    Args:
        segments: what is scanned, in order; with the sublayers and forms that the recipe gives them.
        recipe: the depth treatment that they are from; for another, make the stack anew.
        geometry: depth, width and side.
    """

    segments: tuple[Segment, ...]
    recipe: Recipe
    geometry: Geometry

    def __post_init__(self):
        layers = [layer for segment in self.segments for layer in segment.layers]
        depth = sum(segment.depth for segment in self.segments)
        if depth != self.geometry.depth:
            raise ValueError(f"a stack of {depth} layers says depth={self.geometry.depth}: make it with Stack.of")
        for kinds in (
            {form.kind for layer in layers for form in layer.forms},
            {None if layer.outer is None else layer.outer.kind for layer in layers},
        ):
            if len(kinds) > 1:
                raise ValueError(
                    f"forms with different streams cannot meet in one stack; got {sorted(map(str, kinds))}"
                )
        borrowed_in(self.segments)
        different, looped = tuple(dict.fromkeys(layers)), self.looped
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
            ValueError: a depth below 0, or not whole patterns when looped; layers that have forms already; forms that
                cannot meet or be looped.
        """
        whole(depth=depth)
        instance("recipe", recipe, Recipe)
        hashable("recipe", recipe)
        for layer in layers:
            bare(layer)
        if not layers:
            raise ValueError("a stack needs at least one layer description, also at depth 0")
        if looped and depth % len(layers):
            raise ValueError(f"a looped stack repeats whole patterns; got depth={depth}, pattern={len(layers)}")
        geometry = Geometry(
            depth=depth,
            d_model=d_model,
            n_sublayers=max(len(layer.sublayers) for layer in layers),
            side=side,
            other_depth=other_depth,
            loop=Loop(length=len(layers), turns=depth // len(layers)) if looped and depth else None,
        )
        return cls.from_layers([layers[i % len(layers)] for i in range(max(depth, 1))], geometry, recipe)

    @classmethod
    def from_layers(cls, layers: Sequence[Layer], geometry: Geometry, recipe: Recipe) -> "Stack":
        """Describe a stack of these layers.

        Args:
            layers: one for each of the L layers, those of a loop at every turn; at depth 0 one that is described.
            geometry: depth, width, side and loop.
            recipe: the depth treatment.

        Raises:
            ValueError: forms that cannot meet or be looped.
        """
        every, loop = [layer.with_recipe(recipe, i, geometry) for i, layer in enumerate(layers)], geometry.loop
        if geometry.depth == 0:
            return cls(segments=(Segment(layers=tuple(every), n=0),), recipe=recipe, geometry=geometry)
        if loop is None:
            return cls(segments=fold(every), recipe=recipe, geometry=geometry)
        before, inside, after = every[: loop.before], every[loop.before : loop.stop], every[loop.stop :]
        if inside != inside[: loop.length] * loop.turns:
            raise ValueError(f"{type(recipe).__name__} treats layers differently, so they cannot be looped")
        core = Segment(layers=tuple(inside[: loop.length]), n=loop.turns, looped=True)
        return cls(segments=(*fold(before), core, *fold(after)), recipe=recipe, geometry=geometry)

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
    def looped(self) -> bool:
        """True if some layers run several times with one copy of their parameters."""
        return any(segment.looped for segment in self.segments)

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
        enter, leave = boundary.enter_spec(self.segments, *size), boundary.leave_spec(self.segments, *size)
        outside = {"enter": enter, "shared": shared, "leave": leave}
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
        return checked_gain(self.recipe, role, self.geometry)

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
        return boundary.enter(self.segments, params["enter"], x)[0]

    def leave(self, params: Params, stream: Any) -> jax.Array:
        """Close the stream to (..., T, D)."""
        return boundary.leave(self.segments, params["leave"], stream)[0]

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
        turns: Any = None,
        backward_turns: int | None = None,
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
            turns: (), how many turns of a loop to run out of those described, see `stackjax.recurrence`; None for all.
            backward_turns: how many of the last turns have gradients; None for all.
            remat: what the backward pass recomputes: "none", "layer", "nested", "offload" or a jax checkpoint policy.
            loop: run a Python loop over the layers, the plain reference, instead of scans.
            unroll: layers (patterns) per scan step.

        Returns:
            (..., T, D), and the `Result`.
        """
        chex.assert_shape(x, (..., None, self.d_model))
        if not x.size:
            raise ValueError(f"a stack needs at least one token; got x of shape {x.shape}")
        floating("x", x.dtype)
        first_axis("taps", taps, self.depth + 1)
        first_axis("perturbations", perturbations, self.depth)
        editing.check(edit, self.sites)
        turn.check(self.looped, turns, backward_turns, cache is not None)
        params = self.checked(params)
        side_inputs = checked(side_inputs, x.shape[:-1], self.d_model)
        coefficients = self.checked_coefficients(coefficients)
        cached = None if cache is None else cache.position
        n_tokens = x.shape[-2]
        prepared = prepare(self.segments, params["shared"], side_inputs, n_tokens, self.d_model, cached, edit)

        def prepare_in_layer(sublayer: Sublayer, numbers: Numbers) -> Any:
            its_inputs = replace(side_inputs, numbers=numbers, edits=editing.edits_of(edit, sublayer.name, None))
            return sublayer.prepare(params["shared"], its_inputs, n_tokens, self.d_model, cached)

        by_layer = {
            "sublayer": coefficients["sublayer"],
            "outer": coefficients.get("outer", {}),
            "key": None
            if key is None
            else jax.vmap(partial(jax.random.fold_in, prng_key(key)))(jnp.arange(self.depth)),
            "tap": None if taps is None else taps[:-1],
            "perturbation": perturbations,
            "layer": jnp.arange(self.depth) if edit else None,
        }
        stream, entered = boundary.enter(self.segments, params["enter"], x)
        scanned = partial(scan.run, nested=remat == "nested", loop=loop, unroll=unroll)
        loss: dict[str, jax.Array] = {}
        state, lent, measures = {}, {}, []
        for i, start, segment in self.placed():
            stored = params["segments"][i]
            xs = by_repeat(by_layer, start, segment)
            xs["params"] = None if segment.looped else stored
            xs["cache"] = None if cache is None else cache.segments[i]
            xs["numbers"] = segment.numbers_by_layer
            inputs = stored if segment.looped else None, replace(side_inputs, borrowed=lent), list(prepared.values())
            later = borrowed_in(self.segments[int(i) + 1 :])
            inlined = loop or (self.depth > 1 and (unroll > 1 or segment.n == 1))
            body = partial(scan_body, segment, tuple(prepared), prepare_in_layer, measure, edit, remat, inlined, later)
            if segment.looped and (turns is not None or backward_turns is not None):
                counts = {"turns": turns, "backward_turns": backward_turns}
                truncated = segment.layers[0].truncated
                stream, ys = turn.run(scanned, body, truncated, inputs, stream, xs, segment.n, **counts)
            else:
                stream, ys = scanned(body(inputs), stream, xs, segment.n)
            loss = add_losses(loss, {name: jnp.sum(value, 0) for name, value in ys[0].items()})
            state[i] = ys[1]
            measures.append((segment.n, ys[2]))
            lent = {**lent, **jax.tree.map(lambda a: a[-1], ys[3])}
        stream = pin(stream)
        if taps is not None:
            stream = scan.tap(stream, taps[-1])
        y, left = boundary.leave(self.segments, params["leave"], stream)
        state |= {side: new for side, new in (("enter", entered), ("leave", left)) if new}
        return y, Result(loss=loss, state=state, measure=stacked_by_layer(measures))

    def placed(self) -> list[tuple[str, int, Segment]]:
        """Each segment with its name and the index of its first layer."""
        placed, start = [], 0
        for i, segment in enumerate(self.segments):
            placed.append((str(i), start, segment))
            start += segment.depth
        return placed
