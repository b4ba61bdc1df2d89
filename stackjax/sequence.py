"""Sequence parallelism: the tokens of long inputs, split over the axis `sequence` of a mesh of devices.

    mesh = sj.shard.mesh(data=2, sequence=4)

The stream (B, ..., T, D) is split over T at every layer's door (`stackjax.pin`), and all that treats each token by
itself follows. Attention keeps its queries where they are and gathers keys, values and positions of one layer at a
time, for blockwise attention in the backward pass again. Masks and encodings follow from positions alone, so that each
device is right about its own queries. Tokens that the devices do not divide are not split. Beside an axis `model` the
stream is split further between the sublayers (`stackjax.tensor_parallel`).

With 24 layers of blockwise attention, T = 16,384, on 8 devices, the keys, values and gradients of one layer that are
whole on each add 5 to 7 % to its share of the temporaries of a step of training. Not split are a recurrence
(`GatedDeltaNet`), which runs over all tokens on every device of the axis, a mixture of experts, which gathers them, and
the cache while decoding; cuDNN's kernels are not used. On virtual devices of a CPU, start Python with NPROC=32 in the
environment: with one thread for each device, two exchanges that are independent can wait for each other for ever.

Under a causal mask the last tokens look at most keys, and in blockwise attention, which passes over the others, the
last of n devices does 2 - 1/n times the mean work. Positions are data, so tokens can stand in an order in which all do
the same:

    order = sj.sequence.balanced(n_tokens, 4)
    side_inputs = sj.SideInputs(position={"index": order[None]})
    logits, _ = model.apply(params, tokens[:, order], side_inputs)
    loss = sj.loss.cross_entropy(logits, targets[:, order])

As many devices as there are, with eight tokens each:

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> n = jax.device_count()
    >>> mesh = sj.shard.mesh(sequence=n)
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> params = jax.jit(model.init, out_shardings=sj.shard.parameters(model, mesh))(jax.random.key(0))
    >>> tokens = jax.device_put(jnp.arange(8 * n)[None] % 16, sj.shard.batch(mesh))
    >>> x, _ = jax.jit(model.hidden)(params, tokens)
    >>> x.sharding.shard_shape(x.shape)
    (1, 8, 16)
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Int

AXIS = "sequence"
"""The axis of a mesh over which tokens are split."""


def balanced(n_tokens: int, n_shards: int) -> Int[np.ndarray, " T"]:
    """An order of tokens in which each device has as much to do under a causal mask: an early and a late piece.

    Args:
        n_tokens: T, a multiple of twice the devices.
        n_shards: devices over which tokens are split.

    Returns:
        (T,) the index of the token that stands at each place.

    Raises:
        ValueError: tokens that cannot be divided so.
    """
    if n_shards < 1 or n_tokens % (2 * n_shards):
        raise ValueError(f"{n_shards} devices take two pieces each of T tokens; got T={n_tokens}")
    pieces = np.arange(n_tokens, dtype=np.int32).reshape(2 * n_shards, -1)
    return np.stack((pieces[:n_shards], pieces[: n_shards - 1 : -1]), 1).reshape(-1)


def mesh_in_use(x: jax.Array) -> Any:
    """The mesh on which an array lies, or else that of `jax.set_mesh`; empty where there is neither."""
    mesh: Any = jax.typeof(x).sharding.mesh
    return jax.sharding.get_abstract_mesh() if mesh.empty else mesh


def automatic(mesh: Any, *names: str) -> tuple[str, ...]:
    """Names of the axes, out of some, that a mesh has and over which the partitioner splits arrays by itself."""
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(name for name in names if kinds.get(name) == AxisType.Auto)


def shards(x: jax.Array, axis: int | None = None) -> int:
    """The number of devices over which tokens are split.

    Args:
        x: an array on the mesh.
        axis: that of its tokens, which are not split if the devices do not divide them; None asks for the devices.
    """
    mesh = mesh_in_use(x)
    n = math.prod(mesh.shape[name] for name in automatic(mesh, AXIS))
    return 1 if axis is not None and x.shape[axis] % n else n


def by_shard(x: jax.Array, n: int, axis: int) -> jax.Array:
    """(..., T, ...) as (..., n, T / n, ...), so that what walks along tokens walks along those of each device."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], n, -1, *x.shape[axis + 1 :])


def split(x: jax.Array, axis: int) -> jax.Array:
    """An array whose tokens, along one axis, are split over the devices if `shards` says so."""
    return _pinned(x, axis, AXIS) if shards(x, axis) > 1 else x


def gathered(x: jax.Array, axis: int) -> jax.Array:
    """An array with one axis whole on each device, if there are several over which tokens are split."""
    return _pinned(x, axis, None) if x.ndim and shards(x) > 1 else x


def _pinned(x: jax.Array, axis: int, name: str | None) -> jax.Array:
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = name
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh_in_use(x), PartitionSpec(*spec)))
