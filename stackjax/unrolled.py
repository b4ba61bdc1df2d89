"""A model whose layers are not scanned: each repeat of a pattern is a segment of its own, with arrays of its own.

A scan reads the parameters and the cache of a layer as slices of stacked arrays. On a CPU, XLA copies such a slice
before a product reads it. That is little beside the arithmetic of a training step, and much in a step of decoding,
which reads every weight for one token a row. So a loop over tokens takes the layers apart, once, before it begins.
"""

from dataclasses import replace
from operator import itemgetter

import jax

from stackjax.backend import copies_slices
from stackjax.model import Model
from stackjax.segment import Segment
from stackjax.sublayer import Cache, Params

DEEPEST = 48
"""Layers up to which a stack is taken apart; each of them adds a quarter of a second to the compile time."""


def unrolled(model: Model, params: Params, cache: Cache) -> tuple[Model, Params, Cache]:
    """A model of the same layers, with its parameters and cache, that reads each layer where it lies.

    What was given, where a scan copies nothing (not on a CPU) or is deeper than `DEEPEST`. Segments whose repeats share
    their parameters, or differ in numbers, stay scans. The parameters of the others are copied.

    Args:
        model: a decoder.
        params: of the model.
        cache: of the model.

    Returns:
        The same model, parameters and cache, with a segment for each repeat of a pattern.
    """
    stack = model.stack
    if not copies_slices() or stack.depth > DEEPEST:
        return model, params, cache
    parts = [(i, segment, part) for i, _, segment in stack.placed() for part in _parts(segment)]

    def split(tree: Params) -> Params:
        return {str(k): jax.tree.map(itemgetter(part), tree[i]) for k, (i, _, part) in enumerate(parts)}

    segments = tuple(replace(segment, n=len(range(segment.n)[part])) for _, segment, part in parts)
    layers = {**params["stack"], "segments": split(params["stack"]["segments"])}
    apart = replace(model, stack=replace(stack, segments=segments))
    return apart, {**params, "stack": layers}, replace(cache, segments=split(cache.segments))


def _parts(segment: Segment) -> list[slice]:
    """Slices of a segment's repeats that become segments of their own."""
    if segment.looped or segment.unlike or segment.n < 2:
        return [slice(None)]
    return [slice(r, r + 1) for r in range(segment.n)]
