"""Activations pinned to a mesh of devices: split over the batch and the tokens, at every layer's door.

Inside a layer, `stackjax.tensor_parallel` says where the stream lies in sublayers and between them.

Left alone, the partitioner may follow the parameters instead: with width split over the same devices as the batch, it
splits the width of the stream and computes attention for the whole batch on every device.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from stackjax.history import History
from stackjax.sequence import mesh_in_use
from stackjax.tensor_parallel import between, inside, place


def pin(stream: Any) -> Any:
    """The stream, each array (B, ..., T, D) split over batch and tokens if the mesh in use has axes for them.

    The axes are those of `tensor_parallel.between`. The mesh in use is that on which the arrays lie, or that of
    `jax.set_mesh` (which a program compiled from shapes alone needs). A batch or tokens that do not divide by their
    devices are not split; where neither is, as without a mesh or without a batch axis before T and D, an array stays as
    it is. The gradient is pinned alike.
    """

    def pinned(node: Any) -> Any:
        batch_axis = int(isinstance(node, History))
        return jax.tree.map(lambda x: _pinned(x, between(x, batch_axis), batch_axis), node)

    return jax.tree.map(pinned, stream, is_leaf=lambda node: isinstance(node, History))


def pin_batch(x: jax.Array, batch_axis: int) -> jax.Array:
    """An array of at least two axes behind `batch_axis`, its batch split as `pin` says, others as XLA splits them."""
    rows, _ = inside(x, batch_axis)
    if not rows:
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[batch_axis] = rows
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh_in_use(x), PartitionSpec(*spec)))


def _pinned(x: jax.Array, axes: Any, batch_axis: int) -> jax.Array:
    return place(x, axes, batch_axis) if any(axes) else x
