"""Segments: a short pattern of layers, repeated by one scan; and a list of layers as few such segments.

`fold` finds the patterns, `prepare` computes what all layers read, `scan_body` is what one step of the scan does, and
`stacked_by_layer` puts what was measured back in the order of the layers.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import by_layer, scan
from stackjax.by_layer import Numbers
from stackjax.check import shown
from stackjax.description import Description
from stackjax.display import segment_lines
from stackjax.edit import Edit, edits_of
from stackjax.layer import Layer, Trace
from stackjax.pin import pin
from stackjax.recipe.base import innermost
from stackjax.sublayer import CachedPositions, Params, SideInputs, Sublayer, add_losses, refuse_unread

Measure = Callable[[Trace], dict[str, jax.Array]]
"""Reduces what happened in one layer to a few arrays; the stack returns them with a leading axis L."""

Inputs = tuple[Params | None, SideInputs, list[Any]]
"""The arrays that all repeats of a segment's pattern read: its parameters where they share them, None where they do
not; the caller's side inputs; and what each different sublayer of the stack prepared outside the scan."""

MANY = 8
"""Unlike layers that are compiled one after another, each with its own numbers in the program."""

Lent = dict[tuple[str, str], Any]
"""Intermediates that later layers read, by sublayer and name, of the last layer that has them."""


@dataclass(frozen=True, kw_only=True)
class Segment(Description):
    """A short pattern of layers, repeated.

    Args:
        layers: the pattern.
        n: how many times it is repeated.
        looped: whether all repeats share one copy of the parameters.
        unlike: the layers one by one, where repeats differ in numbers (`stackjax.by_layer`), of which the pattern has
            the largest; none where they are alike.

    Raises:
        ValueError: unlike layers that are not repeats of the pattern up to their numbers.
    """

    layers: tuple[Layer, ...]
    n: int
    looped: bool = False
    unlike: tuple[Layer, ...] = ()

    def __post_init__(self):
        if self.unlike and (self.looped or _pattern(self.unlike, len(self.layers)) != self.layers):
            raise ValueError(
                "the unlike layers of a segment differ only in numbers that they declare, of which its pattern has the "
                f"largest, and they are not looped; got {self.unlike} for {self.layers}"
            )

    @property
    def depth(self) -> int:
        """The number of layers in all."""
        return self.n * len(self.layers)

    @property
    def each(self) -> tuple[Layer, ...]:
        """The layers one by one."""
        return self.unlike or self.layers * self.n

    @property
    def numbers_by_layer(self) -> dict[str, Numbers]:
        """{layer of the pattern: its `Numbers`, arrays (n,)}, where repeats differ in them."""
        return {str(j): by_layer.arrays(columns) for j, columns in enumerate(_columns(self.unlike, len(self.layers)))}

    def map(self, change: Callable[[Layer], Layer]) -> "Segment":
        """The segment with `change` applied to every layer."""
        layers, unlike = tuple(map(change, self.layers)), tuple(map(change, self.unlike))
        return replace(self, layers=layers, unlike=unlike)

    def __repr__(self) -> str:
        return "\n".join(segment_lines(self))


def fold(layers: Sequence[Layer]) -> tuple[Segment, ...]:
    """Fold a list of layers into segments, so that each scan is as long as it can be.

    At every point the pattern that covers the most layers is taken, the shortest of those: five local layers and a
    global one, 26 layers in all, fold into 4 x 6 + 2 x 1. Where that leaves more than `MANY` layers to compile, those
    that differ only in numbers (`stackjax.by_layer`) repeat each other as well.
    """
    exact = _fold(layers, layers)
    if _compiled(exact) <= MANY:
        return exact
    alike = _fold(layers, list(map(by_layer.without_numbers, layers)))
    return min(exact, alike, key=_compiled)


def _fold(layers: Sequence[Layer], kinds: Sequence[Hashable]) -> tuple[Segment, ...]:
    """Fold layers, of which those of one kind are repeats of each other."""
    indices = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    places = [indices[kind] for kind in kinds]
    segments, start = [], 0
    while start < len(places):
        rest = places[start:]
        repeats = {length: _repeats(rest, length) for length in range(1, len(rest) // 2 + 1)}
        spans = [(n * length, -length) for length, n in repeats.items() if n > 1]
        covered, length = max(spans, default=(1, -1))
        each = tuple(layers[start : start + covered])
        pattern = _pattern(each, -length)
        n = covered // -length
        segments.append(Segment(layers=pattern, n=n, unlike=() if each == pattern * n else each))
        start += covered
    return tuple(segments)


def _compiled(segments: Sequence[Segment]) -> int:
    """The number of layers that are compiled, one after another."""
    return sum(len(segment.layers) for segment in segments)


def _columns(each: Sequence[Layer], length: int) -> list[Numbers]:
    """The numbers in which repeats differ, for each layer of a pattern of some length."""
    numbers = list(map(by_layer.numbers_of, each))
    return [by_layer.unlike(numbers[j::length]) for j in range(length) if each]


def _pattern(each: Sequence[Layer], length: int) -> tuple[Layer, ...]:
    """The pattern that layers repeat, with the largest of each number."""
    columns = _columns(each, length)
    return tuple(by_layer.with_numbers(layer, by_layer.largest(c)) for layer, c in zip(each, columns, strict=False))


def _repeats(kinds: list[int], length: int) -> int:
    """The number of times that the first `length` entries are repeated at the front."""
    n = 1
    while kinds[n * length : (n + 1) * length] == kinds[:length]:
        n += 1
    return n


def prepare(
    segments: Sequence[Segment],
    shared: Params,
    side_inputs: SideInputs,
    n_tokens: int,
    d_model: int,
    cached: CachedPositions | None = None,
    edit: Edit | None = None,
) -> dict[Sublayer, Any]:
    """The values that each different sublayer of a stack prepares, once, outside the scan.

    Args:
        segments: of the stack.
        shared: the stack's shared parameters.
        side_inputs: the caller's.
        n_tokens: T of this call.
        d_model: D.
        cached: in decoding, the positions held by the cache.
        edit: what to replace in each layer.

    Raises:
        ValueError: a memory that none of them reads.
    """
    different = dict.fromkeys(one for segment in segments for layer in segment.layers for one in layer.sublayers)
    refuse_unread(side_inputs.memory, different)
    prepared = {}
    for sublayer in different:
        its_inputs = replace(side_inputs, edits=edits_of(edit, sublayer.name, None))
        prepared[sublayer] = sublayer.prepare(shared, its_inputs, n_tokens, d_model, cached)
    return prepared


def scan_body(
    segment: Segment,
    sublayers: tuple[Sublayer, ...],
    prepare_in_layer: Callable[[Sublayer, Numbers], Any] | None,
    measure: Measure | None,
    edit: Edit | None,
    remat: scan.Remat,
    inlined: bool,
    later: set[tuple[str, str]],
    inputs: Inputs,
) -> scan.Body:
    """One repeat of a segment's pattern, as the body of a scan: (stream, xs) to (stream, (loss, state, measure, lent)).

    Args:
        segment: what is repeated.
        sublayers: the stack's different ones.
        prepare_in_layer: what a sublayer prepares for a layer of such numbers; None where no layers are unlike.
        measure: what to reduce each layer's `Trace` to.
        edit: what to replace in each layer.
        remat: what the backward pass recomputes.
        inlined: as for `scan.rematerialise`.
        later: intermediates that later segments borrow.
        inputs: what all repeats read.
    """
    shared, side_inputs, values = inputs
    borrowed = later | borrowed_in([segment])
    prepared = dict(zip(sublayers, values, strict=True))

    def run(layer: Layer, stream: Any, x: Params) -> tuple[Any, tuple[Any, ...]]:
        entered = stream = pin(stream)
        if x["tap"] is not None:
            stream = scan.tap(stream, x["tap"])
        if x["perturbation"] is not None:
            stream = jax.tree.map(jnp.add, stream, x["perturbation"])
        cache, numbers = x["cache"] or {}, x["numbers"].get("sublayers", {})
        stream, aux, trace = layer.apply(
            x["params"],
            stream,
            {
                sublayer.name: replace(
                    side_inputs,
                    numbers=numbers.get(sublayer.name, {}),
                    prepared=prepare_in_layer(sublayer, numbers[sublayer.name])
                    if prepare_in_layer and sublayer.name in numbers
                    else prepared[sublayer],
                    cache=cache.get(sublayer.name),
                    edits=edits_of(edit, sublayer.name, x["layer"]),
                    borrowed=x["lent"],
                )
                for sublayer in layer.sublayers
            },
            coefficients=x["sublayer"],
            outer_coefficients=x["outer"],
            key=x["key"],
        )
        stream = jax.tree.map(lambda new, old: new.astype(old.dtype), stream, entered)
        seen = {(name, kind): x for name, kinds in trace.intermediates.items() for kind, x in kinds.items()}
        lends = {place: seen[place] for place in borrowed & seen.keys()}
        return stream, (aux.loss, aux.state, {} if measure is None else _measured(measure, trace), lends)

    def body(stream: Any, xs: Params) -> tuple[Any, tuple[Any, ...]]:
        loss: dict[str, jax.Array] = {}
        lends: Lent = {}
        states, measured = {}, {}
        params, cache = xs["params"] if shared is None else shared, xs["cache"]
        by_place = {name: x for name, x in xs.items() if name not in ("params", "cache", "numbers")}
        for j, layer in enumerate(segment.layers):
            name = str(j)
            x = {
                **jax.tree.map(lambda a, j=j: a[j], by_place),
                "params": params[name],
                "cache": None if cache is None else cache.get(name),
                "numbers": xs.get("numbers", {}).get(name, {}),
                "lent": {**side_inputs.borrowed, **lends},
            }
            one = scan.rematerialise(partial(run, layer), remat, inlined=inlined)
            stream, (losses, states[name], measured[name], more) = one(stream, x)
            loss, lends = add_losses(loss, losses), {**lends, **more}
        return stream, (loss, states, measured, {place: lends[place] for place in later & lends.keys()})

    return body


def borrowed_in(segments: Sequence[Segment]) -> set[tuple[str, str]]:
    """The intermediates of earlier layers that the layers of some segments read, see `Sublayer.borrows`.

    Raises:
        ValueError: a repeated layer that would read what the repeat before it made.
    """
    borrowed: set[tuple[str, str]] = set()
    for segment in segments:
        for j, layer in enumerate(segment.layers):
            reads = _borrows(*layer.sublayers)
            borrowed |= reads
            behind = [one for other in segment.layers[j:] for one in other.sublayers]
            late = [
                name for name, kind in reads for one in behind if one.name == name and (name, kind) not in _borrows(one)
            ]
            if late and segment.n > 1:
                raise ValueError(
                    f"in a pattern that is repeated, the layer whose {late[0]!r} is read must come before those that "
                    f"read it; got the pattern {[[one.name for one in each.sublayers] for each in segment.layers]}"
                )
    return borrowed


def _borrows(*sublayers: Sublayer) -> set[tuple[str, str]]:
    """The intermediates that sublayers, or those inside them, read."""
    return {place for sublayer in sublayers for one in innermost(sublayer) for place in one.borrows}


def by_repeat(arrays: Any, start: int, segment: Segment) -> Any:
    """Arrays over the layers (L, ...) as the scan over a segment takes them, (n, layers of the pattern, ...).

    Args:
        arrays: tree of arrays.
        start: index of the segment's first layer.
        segment: whose part is wanted.
    """
    shape = segment.n, len(segment.layers)
    return jax.tree.map(lambda a: a[start : start + segment.depth].reshape(*shape, *a.shape[1:]), arrays)


def _measured(measure: Measure, trace: Trace) -> dict[str, jax.Array]:
    """The values of a measure, checked.

    Raises:
        ValueError: it is not a dict of arrays.
    """
    name = getattr(measure, "__name__", type(measure).__name__)
    values = measure(trace)
    if not isinstance(values, dict):
        raise ValueError(f"a measure must return a dict, {{name: array}}; {name} returned {shown(values)}")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, (jax.Array, np.ndarray, np.generic, float, int)):
            raise ValueError(
                f"a measure must return a dict, {{name: array}}; {name} returned {shown(value)} under {key!r}"
            )
    return {key: jnp.asarray(value) for key, value in values.items()}


def stacked_by_layer(measures: list[tuple[int, dict[str, dict[str, jax.Array]]]]) -> dict[str, jax.Array]:
    """Measures of all segments in the order of the layers, NaN where a layer lacks a name.

    Args:
        measures: for each segment, its n and {layer of the pattern: {name: (n, ...)}}.

    Returns:
        {name: (L, ...)}

    Raises:
        ValueError: a name with arrays of different shapes.
    """
    shapes = {
        name: value.shape[1:] for _, pattern in measures for layer in pattern.values() for name, value in layer.items()
    }
    columns = {}
    for name, shape in shapes.items():
        different = {layer[name].shape[1:] for _, pattern in measures for layer in pattern.values() if name in layer}
        if len(different) > 1:
            raise ValueError(
                f"a measure must return arrays of one shape in all layers; {name!r} has {sorted(different)}: reduce "
                "it, or name it differently where it differs"
            )
        rows = [
            jnp.stack([layer.get(name, jnp.full((n, *shape), jnp.nan)) for layer in pattern.values()], 1)
            for n, pattern in measures
        ]
        columns[name] = jnp.concatenate([row.reshape(-1, *shape) for row in rows])
    return columns
