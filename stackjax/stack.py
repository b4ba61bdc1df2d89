"""The stack: one layer, scanned.

A stack is a tuple of segments; a segment is a short period of layers repeated n times by one scan. Most stacks are one
segment of period one: a single compiled layer, whatever the depth. Parameters are born stacked on axis 0 and stay so.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct

from stackjax import scan
from stackjax.display import Whole, block, stack_lines
from stackjax.layer import Layer
from stackjax.parameter import declare, is_spec, realise
from stackjax.period import Measure, period
from stackjax.recipe.base import Geometry, Recipe, Schedule, multipliers
from stackjax.segment import Segment, by_layer, fold
from stackjax.statistic import absorb
from stackjax.sublayer import Cache, Given, Params, add_losses


@struct.dataclass
class Result:
    """What a stack returns beside its output.

    Args:
        loss: {name: scalar}, summed over the layers.
        state: what the next call needs, nested like the segments: {segment: {layer of the period: {sublayer: state}}};
            and the statistics of the ends, if there are any, under `enter` and `leave`.
        measure: {name: (L, ...)} from the `measure` asked for; rows of NaN for layers that do not have the name.
    """

    loss: dict[str, jax.Array]
    state: dict[str, Any]
    measure: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stack(Whole):
    """A deep stack as a description; make one with `Stack.of`.

    Args:
        segments: what is scanned, in order; the layers are dressed by the recipe.
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
            {layer.outer.kind for layer in layers},
        ):
            if len(kinds) > 1:
                raise ValueError(
                    f"forms with different streams cannot meet in one stack; got {sorted(map(str, kinds))}"
                )
        different = tuple(dict.fromkeys(layers))
        looped = any(segment.looped for segment in self.segments)
        for form in dict.fromkeys(form for layer in different for form in (*layer.forms, layer.outer)):
            form.check(different, looped)
        if looped:
            declared = jax.tree.leaves(self.declaration()["segments"], is_leaf=is_spec)
            apart = sorted({d.spec.role for d in declared if jnp.size(self.gain(d.spec.role)) > 1})
            if apart:
                name = type(self.recipe).__name__
                raise ValueError(
                    f"{name} scales {', '.join(apart)} differently in each layer, so they cannot be looped"
                )

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
            *layers: one layer, or a period of them that is cycled through, or one for each layer of the stack.
            depth: L, 0 or more.
            d_model: D.
            recipe: the depth treatment.
            looped: whether all layers share one copy of the parameters (`depth` must then be whole periods).
            side: "encoder" or "decoder", for recipes whose constants depend on it.
            other_depth: layers in the stack on the other side of an encoder-decoder.

        Raises:
            ValueError: a depth that is negative, or not whole periods when looped; forms that cannot meet or be looped.
        """
        if not layers:
            raise ValueError("a stack needs at least one layer description, also at depth 0")
        if depth < 0:
            raise ValueError(f"depth must be 0 or more; got {depth}")
        if d_model < 1:
            raise ValueError(f"d_model must be positive; got {d_model}")
        if looped and depth % len(layers):
            raise ValueError(f"a looped stack repeats whole periods; got depth={depth}, period={len(layers)}")
        width = max(len(layer.subs) for layer in layers)
        geometry = Geometry(depth=depth, d_model=d_model, n_sublayers=width, side=side, other_depth=other_depth)
        dressed = [layers[i % len(layers)].dress(recipe, i, geometry) for i in range(max(depth, 1))]
        if looped and depth and dressed != dressed[: len(layers)] * (depth // len(layers)):
            raise ValueError(f"{type(recipe).__name__} treats layers differently, so they cannot be looped")
        if depth == 0:
            segments = (Segment(layers=tuple(dressed), n=0),)
        elif looped:
            period = tuple(dressed[: len(layers)])
            segments = (Segment(layers=period, n=depth // len(period), looped=True),)
        else:
            segments = fold(dressed)
        return cls(segments=segments, recipe=recipe, geometry=geometry)

    def __repr__(self) -> str:
        title = f"Stack: {self.depth} layers of width {self.d_model}, {self.n_params:,} parameters, {self.recipe!r}"
        return block(title, stack_lines(self))

    @property
    def depth(self) -> int:
        """L."""
        return self.geometry.depth

    @property
    def d_model(self) -> int:
        """D."""
        return self.geometry.d_model

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`.

        {enter: {inner, outer}, segments: {segment: {layer of the period: {sublayer, ..., residual}}}, shared, leave}
        """
        segments: Params = {}
        shared: Params = {}
        for i, start, segment in self.placed():
            period = len(segment.layers)
            segments[i] = {}
            for j, layer in enumerate(segment.layers):
                mine = tuple(range(start + j, start + segment.depth, period))
                segments[i][str(j)] = declare(
                    layer.spec(self.d_model, self.depth),
                    layers=(start + j,) if segment.looped else mine,
                    stacked=not segment.looped,
                )
                for sub in layer.subs:
                    _share(shared, sub.shared(self.d_model))
        return {
            "enter": self._end("enter"),
            "segments": segments,
            "shared": declare(shared, prefix="shared/"),
            "leave": self._end("leave"),
        }

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Draw the parameters, stacked on axis 0 within each segment."""
        return self.constrain(realise(key, self.declaration(), law=self.recipe.law, gain=self.gain, dtype=dtype))

    def constrain(self, params: Params) -> Params:
        """The parameters where the recipe wants them after each step, see `Recipe.constrain`."""
        return self.recipe.constrain(params, self.declaration())

    def gain(self, role: str) -> Any:
        """The recipe's factor on the init of a role, () or (L,)."""
        return self.recipe.gain(role, self.geometry)

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier`."""
        return multipliers(self.declaration(), self.recipe, self.geometry)

    def schedule(self) -> Schedule:
        """The recipe's numbers for this depth: data that `apply` reads, and that may be replaced or vmapped."""
        return self.recipe.schedule(self.geometry)

    def calibrate(self, params: Params, x: jax.Array, given: Given | None = None, **options: Any) -> Params:
        """Parameters before the first step, which some recipes set from one batch; arguments are those of `apply`."""

        def observe(own: Params, measure: Measure) -> dict[str, jax.Array]:
            return self.apply(own, x, given, measure=measure, **options)[1].measure

        return self.recipe.calibrate(params, self.declaration(), observe)

    def absorb(self, params: Params, state: Params) -> Params:
        """Parameters after a step, with the statistics that `apply` returned as `Result.state`."""
        return absorb(params, state)

    def enter(self, params: Params, x: jax.Array) -> Any:
        """Open the stream from x (..., T, D)."""
        layer, own = self.segments[0].layers[0], params["enter"]
        return layer.outer.enter(own["outer"], layer.forms[0].enter(own["inner"], x))

    def leave(self, params: Params, stream: Any) -> jax.Array:
        """Close the stream to (..., T, D)."""
        layer, own = self.segments[-1].layers[-1], params["leave"]
        return layer.forms[-1].leave(own["inner"], layer.outer.leave(own["outer"], stream))

    def apply(
        self,
        params: Params,
        x: jax.Array,
        given: Given | None = None,
        *,
        schedule: Schedule | None = None,
        key: jax.Array | None = None,
        cache: Cache | None = None,
        taps: jax.Array | None = None,
        probes: Any = None,
        measure: Measure | None = None,
        remat: scan.Remat = "none",
        loop: bool = False,
        unroll: int = 1,
    ) -> tuple[jax.Array, Result]:
        """Run x through all layers.

        Args:
            params: as drawn by `init`.
            x: (..., T, D)
            given: positions, memory and whatever else travels beside x.
            schedule: the numbers of each sublayer and layer; None takes the recipe's.
            key: PRNG key for dropout and stochastic depth; None means evaluation.
            cache: decoding cache, see `stackjax.decode`; read, never written.
            taps: (L + 1,) zeros whose gradient is |dLoss/dx_l|² for x_0 .. x_L, in O(L) memory.
            probes: like the stream with a leading axis L, zeros that are added to the stream before each layer; their
                gradient is dLoss/dx_l itself.
            measure: what to reduce each layer's `Trace` to.
            remat: what the backward pass recomputes: "none", "layer", "nested" or a jax checkpoint policy.
            loop: run a Python loop over the layers, the plain reference, instead of scans.
            unroll: layers (periods) per scan step.

        Returns:
            (..., T, D), and the `Result`.
        """
        chex.assert_shape(x, (..., None, self.d_model))
        given = Given() if given is None else given
        schedule = self.schedule() if schedule is None else schedule
        tables = self._prepare(params, given, x.shape[-2], cache)
        per_layer = {
            "scale": schedule["sub"],
            "outer": schedule["outer"],
            "key": None if key is None else jax.vmap(lambda l: jax.random.fold_in(key, l))(jnp.arange(self.depth)),
            "tap": None if taps is None else taps[:-1],
            "probe": probes,
        }
        chex.assert_tree_shape_prefix(per_layer, (self.depth,))
        stream = self.enter(params, x)
        loss: dict[str, jax.Array] = {}
        state: Params = {}
        measures = []
        for i, start, segment in self.placed():
            xs: dict[str, Any] = jax.tree.map(
                lambda a, start=start, segment=segment: a[start : start + segment.depth].reshape(
                    segment.n, len(segment.layers), *a.shape[1:]
                ),
                per_layer,
            )
            own = params["segments"][i]
            xs["params"] = None if segment.looped else own
            xs["cache"] = None if cache is None else cache.segments[i]
            body = period(segment, own, given, tables, measure, remat, loop)
            stream, ys = scan.run(body, stream, xs, segment.n, nested=remat == "nested", loop=loop, unroll=unroll)
            loss = add_losses(loss, {name: jnp.sum(value, 0) for name, value in ys[0].items()})
            state[i], measured = ys[1], ys[2]
            measures.append((segment.n, measured))
        if taps is not None:
            stream = scan.tap(stream, taps[-1])
        state |= self._ends_state(params, x, stream)
        return self.leave(params, stream), Result(loss=loss, state=state, measure=by_layer(measures))

    def placed(self) -> list[tuple[str, int, Segment]]:
        """Each segment with its name and the index of its first layer."""
        placed, start = [], 0
        for i, segment in enumerate(self.segments):
            placed.append((str(i), start, segment))
            start += segment.depth
        return placed

    def _end(self, side: str) -> Params:
        """Declared parameters of `enter` or `leave`; a norm there has the role end_norm."""
        layer = self.segments[0].layers[0] if side == "enter" else self.segments[-1].layers[-1]
        inner = layer.forms[0] if side == "enter" else layer.forms[-1]
        specs = {
            "inner": inner.ends(self.d_model, self.depth)[side],
            "outer": layer.outer.ends(self.d_model, self.depth)[side],
        }
        outside = jax.tree.map(
            lambda spec: replace(spec, role="end_norm") if spec.role == "norm" else spec,
            specs,
            is_leaf=is_spec,
        )
        return declare(outside, prefix=f"{side}/")

    def _ends_state(self, params: Params, x: jax.Array, stream: Any) -> Params:
        """New statistics of `enter` and `leave`, given what each reads; empty without any."""
        first, last = self.segments[0].layers[0], self.segments[-1].layers[-1]
        inner = last.outer.leave(params["leave"]["outer"], stream)
        new = {
            "enter": first.forms[0].statistics("enter", params["enter"]["inner"], x),
            "leave": last.forms[-1].statistics("leave", params["leave"]["inner"], inner),
        }
        return {side: {"inner": state} for side, state in new.items() if state}

    def _prepare(self, params: Params, given: Given, n_tokens: int, cache: Cache | None) -> dict[Any, Any]:
        """Each different sublayer's table, computed once, outside the scan."""
        tables = {}
        past = None if cache is None else cache.position
        for segment in self.segments:
            for layer in segment.layers:
                for sub in layer.subs:
                    if sub not in tables:
                        tables[sub] = sub.prepare(params["shared"], given, n_tokens, self.d_model, past)
        return tables


def _share(shared: Params, more: Params) -> None:
    """Add declarations to those of the stack; one name means one set of parameters."""
    for name, specs in more.items():
        if shared.setdefault(name, specs) != specs:
            raise ValueError(
                f"two sublayers share parameters {name!r} and declare them differently; rename one of them"
            )
