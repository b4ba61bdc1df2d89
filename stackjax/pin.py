"""Activations pinned to a mesh of devices: split over the batch, at every layer's door.

Left alone, the partitioner may follow the parameters instead: with width split over the same devices as the batch, it
splits the width of the stream and computes attention for the whole batch on every device.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from stackjax.history import History

BATCH_AXES = ("replica", "data")
"""Axes of a mesh over which the batch is split, those of them that the mesh has."""


def pin(stream: Any) -> Any:
    """The stream, each array (B, ..., T, D) split over the batch if the mesh in use has an axis for it.

    The mesh in use is that on which the arrays lie, or that of `jax.set_mesh` (which a program compiled from shapes
    alone needs). Without one, without a batch axis before T and D, or
    with a batch that does not divide by the devices, an array stays as it is. The gradient is pinned alike.
    """

    def place(node: Any) -> Any:
        if isinstance(node, History):
            return History(slots=pin_batch(node.slots, 1))
        return pin_batch(node, 0)

    return jax.tree.map(place, stream, is_leaf=lambda node: isinstance(node, History))


def pin_batch(x: jax.Array, batch_axis: int) -> jax.Array:
    """An array of at least two axes behind `batch_axis`, split over the batch as `pin` says."""
    mesh: Any = jax.typeof(x).sharding.mesh
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    if mesh.empty or x.ndim < batch_axis + 3:
        return x
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name in BATCH_AXES if kinds.get(name) == AxisType.Auto)
    if not axes or x.shape[batch_axis] % math.prod(mesh.shape[name] for name in axes):
        return x
    split: list[Any] = [None] * x.ndim
    split[batch_axis] = axes
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*split)))
