"""Tensor parallelism: where the stream lies on devices that share heads and hidden features, in and between sublayers.

    mesh = sj.shard.mesh(data=2, model=4)

The products of a sublayer are split over the axis `model` by heads and hidden features, and each device needs all
tokens of the stream for its part. All else (norms, residual sums, dropout, what a scan keeps of each layer) treats each
token by itself and would be done and kept by every device of the axis. So the tokens are split over them there, and a
sublayer begins with one all-gather of its normed input and ends with one reduce-scatter of its output, which together
exchange as many bytes as the all-reduce whose place they take; the backward pass gathers the input again, which is not
kept. Rows of the batch are split where `model` divides what each device has of them, since gathering the first axis of
an array moves nothing within a device; else tokens of each row, where it divides those; else nothing, as in a step of
decoding, which has a single token. The cache is split by heads, too.

A stack does this by itself (`stackjax.pin`, `stackjax.layer`). A form sees the stream between sublayers, a sublayer all
tokens. With 8 layers on `mesh(model=8)` a device keeps 1.11 of an eighth of the temporaries of a step of training,
before 2.19 (`python -m experiments.scale`). On a CPU XLA leaves an all-reduce and a slice in the place of a
reduce-scatter; joining the two is a pass of its compilers for GPUs and TPUs, whose results were not measured here.

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> n = jax.device_count()
    >>> mesh = sj.shard.mesh(model=n)
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> params = jax.jit(model.init, out_shardings=sj.shard.parameters(model, mesh))(jax.random.key(0))
    >>> x, _ = jax.jit(model.hidden)(params, jnp.arange(8 * n)[None] % 16)
    >>> x.sharding.shard_shape(x.shape)
    (1, 8, 16)

Source: Shoeybi et al. 2019, section 3, arXiv:1909.08053 (products split by heads and hidden features); Korthikanti et
al. 2022, section 4.2, arXiv:2205.05198 (tokens split between them).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from stackjax import sequence

BATCH_AXES = ("replica", "data")
"""Axes of a mesh over which the batch is split, those of them that the mesh has."""

AXIS = "model"
"""The axis of a mesh over which heads and hidden features are split, and between sublayers the stream."""

Axes = tuple[tuple[str, ...], tuple[str, ...]]
"""Axes of the mesh over which the batch and the tokens of a stream (B, ..., T, D) are split."""


def inside(x: jax.Array, batch_axis: int = 0) -> Axes:
    """The axes over which a stream is split in the products of a sublayer; none that does not divide.

    Args:
        x: (B, ..., T, D); of an array without rows in front of T and D nothing is split.
        batch_axis: that of the batch, B.
    """
    if x.ndim < batch_axis + 3:
        return (), ()
    return _fitting(x, batch_axis, *BATCH_AXES), _fitting(x, -2, sequence.AXIS)


def between(x: jax.Array, batch_axis: int = 0) -> Axes:
    """The axes over which a stream is split between sublayers; the arguments are those of `inside`."""
    rows, tokens = inside(x, batch_axis)
    if x.ndim < batch_axis + 3 or x.shape[-2] == 1:
        return rows, tokens
    if AXIS in (more := _fitting(x, batch_axis, *rows, AXIS)):
        return more, tokens
    return rows, _fitting(x, -2, *tokens, AXIS) or tokens


def _fitting(x: jax.Array, axis: int, *names: str) -> tuple[str, ...]:
    """The axes of the mesh, out of some, if the devices of all of them divide one axis of an array; else none."""
    mesh = sequence.mesh_in_use(x)
    axes = tuple(name for name in sequence.automatic(mesh, *names) if mesh.shape[name] > 1)
    return () if x.shape[axis] % math.prod(mesh.shape[name] for name in axes) else axes


def place(x: jax.Array, axes: Axes, batch_axis: int = 0) -> jax.Array:
    """An array (B, ..., T, D) with batch and tokens split over axes of the mesh in use, the rest whole.

    Args:
        x: the array.
        axes: as `inside` or `between` gives them.
        batch_axis: that of the batch, B.
    """
    spec: list[Any] = [None] * x.ndim
    spec[batch_axis], spec[-2] = (names or None for names in axes)
    return jax.lax.with_sharding_constraint(x, NamedSharding(sequence.mesh_in_use(x), PartitionSpec(*spec)))


def gather_tokens(x: jax.Array) -> jax.Array:
    """A stream (B, ..., T, D) as products take it, each device with the tokens of all along `AXIS`.

    In the backward pass the gradients of all of them are added up, and each keeps those of its own tokens.
    """
    return x if between(x) == inside(x) else place(place(x, between(x)), inside(x))


def scatter_tokens(x: jax.Array) -> jax.Array:
    """A stream that products made, added up, each device with its own tokens: the transpose of `gather_tokens`."""
    return x if between(x) == inside(x) else place(place(x, inside(x)), between(x))


def on_all_tokens(function: Callable[..., Any], x: jax.Array, **options: Any) -> Any:
    """function(x, **options), the tokens of x gathered for it, and for its backward pass again.

    What the backward pass keeps of x is each device's own tokens.

    Args:
        function: takes a stream.
        x: (B, ..., T, D)
        **options: passed on.
    """
    if between(x) == inside(x):
        return function(x, **options)
    run = jax.checkpoint(lambda x: function(gather_tokens(x), **options), policy=_saves)
    return run(place(x, between(x)))


def _saves(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of rematerialisation: keep all but what only lies elsewhere or has another shape than it had."""
    return primitive.name not in ("sharding_constraint", "reshape")


def by_replica(x: jax.Array) -> jax.Array:
    """Vectors (B, ..., T, D) looked up in a table, as they first lie where the batch has two axes of the mesh.

    Split over replicas alone, since parts of D are split over `data`; XLA can exchange those for rows of the batch, but
    goes from a table to both axes at once by replicating everything.
    """
    rows = _fitting(x, 0, *BATCH_AXES) if x.ndim > 2 else ()
    if len(rows) < 2:
        return x
    spec = PartitionSpec(rows[0], *[None] * (x.ndim - 2), PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(x, NamedSharding(sequence.mesh_in_use(x), spec))
