"""Pipeline parallelism: each stage of devices holds a share of a stack's layers, and runs one microbatch at a time.

The batch is cut into M microbatches. At tick t, stage s of S runs its L / S layers on microbatch t - s and hands the
stream on to stage s + 1. One scan over M + S - 1 ticks is the forward pass, its transpose the backward pass. At S - 1
ticks a stage has no microbatch, and what it computes is dropped: the bubble, (S - 1) / (M + S - 1) of the time.

    on = sj.shard.mesh(stage=4, data=2)
    params = jax.jit(model.init, out_shardings=sj.shard.parameters(model, on, sj.pipeline.RULES))(key)

    x = model.embed(params, tokens)
    x, result = sj.pipeline.apply(model.stack, params["stack"], x, on=on, microbatches=8, remat="layer")
    logits = model.logits(params, x)

The other axes of the mesh (`replica`, `data`, `model`) work within each stage as they do without a pipeline.

Source: Huang et al. 2019, section 2.3, arXiv:1811.06965.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from stackjax import scan, shard
from stackjax.dot_product import flat_positions
from stackjax.history import holds_history
from stackjax.parameter import is_spec
from stackjax.recipe.base import Coefficients
from stackjax.segment import Segment, by_repeat, prepare, scan_body
from stackjax.stack import Stack
from stackjax.sublayer import Params, Result, SideInputs, checked

RULES: shard.Rules = (*shard.RULES, ("layers", "stage"))
"""Rules of `stackjax.shard` by which each stage holds its own layers."""


def apply(
    stack: Stack,
    params: Params,
    x: jax.Array,
    side_inputs: SideInputs | None = None,
    *,
    on: Mesh,
    microbatches: int,
    coefficients: Coefficients | None = None,
    key: jax.Array | None = None,
    remat: scan.Remat = "none",
) -> tuple[jax.Array, Result]:
    """Run x through all layers, one microbatch behind another, each as `Stack.apply` would.

    Microbatch m is rows m, m + M, m + 2 M, .. of the batch, so that rows that are split over devices stay where they
    are. Without a key, and but for losses, the result is that of `Stack.apply` on the whole batch.

    Args:
        stack: one segment of layers, whose repeats divide by the stages.
        params: as drawn by `init`, best where `RULES` place them.
        x: (..., T, D)
        side_inputs: positions, memory and whatever else travels beside x.
        on: the mesh, with an axis `stage`.
        microbatches: M, which divides the rows of the batch.
        coefficients: the numbers of each sublayer and layer; None takes the recipe's.
        key: PRNG key, of which microbatch m takes `jax.random.fold_in(key, m)`; None means evaluation.
        remat: what the backward pass recomputes, as for `Stack.apply`.

    Returns:
        (..., T, D), and the `Result`, in which losses are means over the microbatches and nothing else is.

    Raises:
        ValueError: a mesh without stages; a batch or a stack that does not divide so; a stack that keeps a `History`
            or running statistics.
    """
    shape, n_rows = x.shape[-2:], math.prod(x.shape[:-2])
    params, side_inputs = stack.checked(params), checked(side_inputs, x.shape[:-1], stack.d_model)
    coefficients = stack.checked_coefficients(coefficients)
    segment, n_stages = _share(stack, on)
    if microbatches < 1 or n_rows % microbatches:
        raise ValueError(f"microbatches must divide the batch, of {n_rows} rows; got microbatches={microbatches}")
    if holds_history(jax.eval_shape(stack.enter, params, x)):
        raise ValueError(f"stages hand on one stream, and {type(stack.recipe).__name__} keeps those of all layers")
    prepare(stack.segments, params["shared"], side_inputs, shape[0], shape[1])  # refuses positions, known here alone
    ticks = jnp.arange(microbatches + n_stages - 1)

    def split(a: jax.Array) -> jax.Array:
        """Rows (n, ...) as (M, n / M, ...); a single row, which serves all, as (1, 1, ...)."""
        n = microbatches if len(a) > 1 else 1
        return a.reshape(len(a) // n, n, *a.shape[1:]).swapaxes(0, 1)

    def run(stream: Any, m: jax.Array, stored: Params, by_layer: Params, read: Any) -> tuple[Any, Params]:
        """One stage's layers on microbatch m: the stream, and the losses."""
        shared, side_inputs, key = read
        side_inputs = jax.tree.map(lambda a: a[jnp.minimum(m, len(a) - 1)], side_inputs)
        xs = {**by_layer, "params": stored, **dict.fromkeys(("key", "cache", "tap", "perturbation"))}
        if key is not None:
            draw = partial(jax.random.fold_in, jax.random.fold_in(key, m))
            xs["key"] = jax.vmap(jax.vmap(draw))(by_layer["layer"])
        prepared = prepare(stack.segments, shared, side_inputs, shape[0], shape[1])
        inputs = None, side_inputs, list(prepared.values())
        body = scan_body(segment, tuple(prepared), None, None, None, remat, False, set(), inputs)
        stream, ys = scan.run(body, stream, xs, segment.n, nested=remat == "nested")
        return stream, jax.tree.map(jnp.sum, ys[0])

    def stage(index: jax.Array, streams: Any, *own: Any) -> Any:
        """The streams and losses that one stage ends all ticks with, (1, ticks, ...)."""
        (s,) = index

        def tick(stream: Any, at: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            m, entering = at[0] - s, at[1]
            stream = jax.tree.map(partial(jnp.where, s == 0), entering, stream)
            stream, losses = run(stream, jnp.clip(m, 0, microbatches - 1), *own)
            losses = jax.tree.map(lambda loss: jnp.where((m >= 0) & (m < microbatches), loss, 0), losses)
            onward = [(i, i + 1) for i in range(n_stages - 1)]
            return jax.tree.map(lambda a: jax.lax.ppermute(a, "stage", onward), stream), (stream, losses)

        entering = jax.tree.map(lambda a: a[jnp.minimum(ticks, microbatches - 1)], streams)
        _, ended = jax.lax.scan(tick, jax.tree.map(lambda a: a[0], streams), (ticks, entering))
        return jax.tree.map(lambda a: a[None], ended)

    whole, cut = PartitionSpec(), PartitionSpec("stage")
    specs = {"in_specs": (cut, whole, cut, cut, whole), "out_specs": cut}
    stages = jax.jit(jax.shard_map(stage, mesh=on, **specs, axis_names={"stage"}, check_vma=False))
    by_layer = {"sublayer": coefficients["sublayer"], "outer": coefficients.get("outer", {})}
    by_layer = by_repeat({**by_layer, "layer": jnp.arange(stack.depth)}, 0, stack.segments[0])
    read = params["shared"], jax.tree.map(split, _rows(side_inputs)), key
    streams = jax.vmap(partial(stack.enter, params))(split(x.reshape(n_rows, *shape)))
    streams, losses = stages(jnp.arange(n_stages), streams, params["segments"]["0"], by_layer, read)
    y = jax.vmap(partial(stack.leave, params))(jax.tree.map(lambda a: a[-1, n_stages - 1 :], streams))
    losses = jax.tree.map(lambda loss: jnp.sum(loss) / microbatches, losses)
    return y.swapaxes(0, 1).reshape(x.shape), Result(loss=losses, state={}, measure={})


def _share(stack: Stack, on: Mesh) -> tuple[Segment, int]:
    """The share of a stack that one of equal stages runs, and the number of stages.

    Raises:
        ValueError: there are no stages, or they cannot be equal.
    """
    if "stage" not in on.shape:
        raise ValueError(f"a pipeline needs a mesh with an axis 'stage'; got {dict(on.shape)}")
    n_stages, (segment, *others) = on.shape["stage"], stack.segments
    if others or segment.looped or segment.unlike or segment.n % n_stages or not segment.n:
        raise ValueError(
            f"{n_stages} stages need one segment of equal layers, not looped, repeated a multiple of {n_stages} times; "
            f"got {stack!r}"
        )
    if any(declared.spec.role == "statistic" for declared in jax.tree.leaves(stack.declaration(), is_leaf=is_spec)):
        raise ValueError("a stage sees one microbatch, and running statistics are those of a batch; use other layers")
    return replace(segment, n=segment.n // n_stages), n_stages


def _rows(side_inputs: SideInputs) -> SideInputs:
    """The side inputs with all leading axes as one."""
    sides = side_inputs.position, side_inputs.memory_position
    position, memory_position = (side if side is None else flat_positions(side, 0) for side in sides)
    memory = side_inputs.memory
    memory = memory if memory is None else memory.reshape(-1, *memory.shape[-2:])
    return SideInputs(position=position, memory=memory, memory_position=memory_position)
