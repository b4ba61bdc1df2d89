"""Activations pinned to a mesh of devices: split over the batch and the tokens, at every layer's door.

Left alone, the partitioner may follow the parameters instead: with width split over the same devices as the batch, it
splits the width of the stream and computes attention for the whole batch on every device.
"""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from stackjax import sequence
from stackjax.history import History

BATCH_AXES = ("replica", "data")
"""Axes of a mesh over which the batch is split, those of them that the mesh has."""


def pin(stream: Any) -> Any:
    """The stream, each array (B, ..., T, D) split over batch and tokens if the mesh in use has axes for them.

    The mesh in use is that on which the arrays lie, or that of `jax.set_mesh` (which a program compiled from shapes
    alone needs). A batch or tokens that do not divide by their devices are not split; where neither is, as without a
    mesh or without a batch axis before T and D, an array stays as it is. The gradient is pinned alike.
    """

    def place(node: Any) -> Any:
        if isinstance(node, History):
            return History(slots=_pin(node.slots, 1, split_tokens=True))
        return _pin(node, 0, split_tokens=True)

    return jax.tree.map(place, stream, is_leaf=lambda node: isinstance(node, History))


def pin_batch(x: jax.Array, batch_axis: int) -> jax.Array:
    """An array of at least two axes behind `batch_axis`, split over the batch alone as `pin` says."""
    return _pin(x, batch_axis, split_tokens=False)


def _pin(x: jax.Array, batch_axis: int, *, split_tokens: bool) -> jax.Array:
    mesh = sequence.mesh_in_use(x)
    if mesh.empty or x.ndim < batch_axis + 3:
        return x
    split: list[Any] = [None] * x.ndim
    rows = sequence.automatic(mesh, *BATCH_AXES)
    if rows and x.shape[batch_axis] % math.prod(mesh.shape[name] for name in rows) == 0:
        split[batch_axis] = rows
    if split_tokens and sequence.shards(x, -2) > 1:
        split[-2] = sequence.AXIS
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*split))) if any(split) else x
