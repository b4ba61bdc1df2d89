"""Segments: a list of layers, folded into as few scans as it allows."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from stackjax.display import Description, segment_lines
from stackjax.layer import Layer


@dataclass(frozen=True, kw_only=True)
class Segment(Description):
    """A period of layers, repeated.

    Args:
        layers: the period.
        n: how many times it is repeated.
        looped: whether all repeats share one copy of the parameters.
    """

    layers: tuple[Layer, ...]
    n: int
    looped: bool = False

    @property
    def depth(self) -> int:
        """Layers in all."""
        return self.n * len(self.layers)

    def __repr__(self) -> str:
        return "\n".join(segment_lines(self))


def fold(layers: Sequence[Layer]) -> tuple[Segment, ...]:
    """Fold a list of layers into segments, so that each scan is as long as it can be.

    At every point the period that covers the most layers is taken, the shortest of those: five local layers and a
    global one, 26 layers in all, fold into 4 x 6 + 2 x 1.
    """
    numbers = {layer: i for i, layer in enumerate(dict.fromkeys(layers))}
    kinds = [numbers[layer] for layer in layers]
    segments, start = [], 0
    while start < len(kinds):
        rest = kinds[start:]
        repeats = {period: _repeats(rest, period) for period in range(1, len(rest) // 2 + 1)}
        spans = [(n * period, -period) for period, n in repeats.items() if n > 1]
        covered, period = max(spans, default=(1, -1))
        segments.append(Segment(layers=tuple(layers[start : start - period]), n=covered // -period))
        start += covered
    return tuple(segments)


def _repeats(kinds: list[int], period: int) -> int:
    """How often the first `period` entries stand one after another at the front."""
    n = 1
    while kinds[n * period : (n + 1) * period] == kinds[:period]:
        n += 1
    return n


def by_layer(measures: list[tuple[int, dict[str, dict[str, jax.Array]]]]) -> dict[str, jax.Array]:
    """Measures of all segments in the order of the layers, NaN where a layer lacks a name.

    Args:
        measures: for each segment, its n and {layer of the period: {name: (n, ...)}}.

    Returns:
        {name: (L, ...)}
    """
    shapes = {
        name: value.shape[1:] for _, period in measures for layer in period.values() for name, value in layer.items()
    }
    columns = {}
    for name, shape in shapes.items():
        rows = [
            jnp.stack([layer.get(name, jnp.full((n, *shape), jnp.nan)) for layer in period.values()], 1)
            for n, period in measures
        ]
        columns[name] = jnp.concatenate([row.reshape(-1, *shape) for row in rows])
    return columns
