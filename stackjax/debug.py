"""Finding faults: the shape of every value inside a model, and the place where the first NaN or infinity is born.

>>> import jax, jax.numpy as jnp, stackjax as sj
>>> model = sj.decoder(vocab=16, d_model=16, depth=3, n_heads=2)
>>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
>>> broken = model.layer_params(params, 1)
>>> broken["feed_forward"]["down"] = jnp.full_like(broken["feed_forward"]["down"], 3e38)
>>> print(sj.debug.first_not_finite(model, model.with_layer_params(params, 1, broken), tokens))
layer 1, feed_forward/output: 0 NaN, 128 infinite
>>> print(sj.debug.shapes(model, tokens))
layers  site                 shape          dtype
0 .. 2  attention/stream     1 x 8 x 16     float32
0 .. 2  attention/input      1 x 8 x 16     float32
0 .. 2  attention/weights    1 x 2 x 8 x 8  float32
0 .. 2  attention/heads      1 x 8 x 2 x 8  float32
0 .. 2  attention/output     1 x 8 x 16     float32
0 .. 2  feed_forward/stream  1 x 8 x 16     float32
0 .. 2  feed_forward/input   1 x 8 x 16     float32
0 .. 2  feed_forward/hidden  1 x 8 x 64     float32
0 .. 2  feed_forward/output  1 x 8 x 16     float32
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.abstract_model import AbstractModel, Path
from stackjax.display import Table
from stackjax.layer import Trace
from stackjax.parameter import is_spec, path_name
from stackjax.probe import values, zero_taps
from stackjax.sublayer import Params


def shapes(model: AbstractModel, *inputs: Any, **options: Any) -> Table:
    """Shape and dtype at every site of every layer, without computing anything.

    Args:
        model: a stack, a model or an encoder-decoder.
        *inputs: what its `apply` reads: arrays, or their shapes (`jax.ShapeDtypeStruct`).
        **options: of `apply`.

    Returns:
        A `Table` with a row for each site of each run of equal layers.
    """
    traces: list[dict[str, Any]] = []
    sites = dict.fromkeys(site for stack in model.stacks().values() for site in stack.sites)
    whole = values(*sites)

    def note(trace: Trace) -> dict[str, jax.Array]:
        traces.append({site: (value.shape, value.dtype) for site, value in whole(trace).items()})
        return {}

    params = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(lambda *inputs: model.apply(*inputs, measure=note, loop=True, **options)[0], params, *inputs)
    rows: list[tuple[str, ...]] = []
    several = len(model.stacks()) > 1
    for path, stack in model.stacks().items():
        seen, traces = traces[: stack.depth], traces[stack.depth :]
        first = 0
        for last in range(stack.depth):
            if last + 1 == stack.depth or seen[last + 1] != seen[first]:
                layers = str(first) if first == last else f"{first} .. {last}"
                for site, (shape, dtype) in seen[first].items():
                    name = (_name(model, path),) if several else ()
                    rows.append((*name, layers, site, " x ".join(map(str, shape)), str(dtype)))
                first = last + 1
    header = (*(("stack",) if several else ()), "layers", "site", "shape", "dtype")
    return Table(header=header, rows=tuple(rows))


@dataclass(frozen=True, kw_only=True)
class NotFinite:
    """A place in a model where values are not finite.

    Args:
        site: the path of a parameter, a site of a sublayer, "output" or "gradient".
        stack: name of its stack in an encoder-decoder.
        layer: its index; None outside of the layers.
        nan: number of NaN there.
        inf: number of infinities there.
    """

    site: str
    stack: str = ""
    layer: int | None = None
    nan: int
    inf: int

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"layer {self.layer}, "
        return f"{self.stack and self.stack + ', '}{layer}{self.site}: {self.nan} NaN, {self.inf} infinite"


def first_not_finite(
    model: AbstractModel,
    params: Params,
    *inputs: Any,
    loss: Callable[[jax.Array], jax.Array] | None = None,
    **options: Any,
) -> NotFinite | None:
    """The place where the first NaN or infinity is born, None if there is none.

    In this order: the parameters; the forward pass, each site of each layer; the output; and the backward pass, where
    the gradient of a layer is that with respect to the stream in front of it, squared and summed.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters.
        *inputs: what its `apply` reads.
        loss: of what `apply` returns; None leaves out the backward pass.
        **options: of `apply`.
    """
    places = itertools.chain(
        _in_parameters(model, params),
        _in_forward_pass(model, params, inputs, options),
        () if loss is None else _in_backward_pass(model, params, inputs, options, loss),
    )
    return next((place for place in places if place.nan or place.inf), None)


def _in_parameters(model: AbstractModel, params: Params) -> Iterator[NotFinite]:
    declared = jax.tree.leaves(model.declaration(), is_leaf=is_spec)
    leaves = jax.tree_util.tree_leaves_with_path(model.checked(params))
    for (path, leaf), one in zip(leaves, declared, strict=True):
        layers = one.layers if one.stacked else (one.layers or (None,))[:1]
        for layer, row in zip(layers, leaf if one.stacked else [leaf], strict=True):
            yield _counted(row, site=path_name(path), layer=layer)


def _in_forward_pass(model: AbstractModel, params: Params, inputs: Any, options: Any) -> Iterator[NotFinite]:
    def count(trace: Trace) -> dict[str, jax.Array]:
        return {site: _count(value) for site, value in values(*sites)(trace).items()}

    sites = dict.fromkeys(site for stack in model.stacks().values() for site in stack.sites)
    y, result = model.apply(params, *inputs, measure=count, **options)
    for path, stack in model.stacks().items():
        measured = jax.tree.map(np.asarray, model.of_stack(result.measure, path))
        layers = [layer for segment in stack.segments for layer in segment.each]
        for index, layer in enumerate(layers):
            for site in layer.sites:
                for name in (name for name in measured if name == site or name.startswith(f"{site}/")):
                    yield _not_finite(measured[name][index], site=name, stack=_name(model, path), layer=index)
    yield _counted(y, site="output")


def _in_backward_pass(
    model: AbstractModel, params: Params, inputs: Any, options: Any, loss: Callable[[jax.Array], jax.Array]
) -> Iterator[NotFinite]:
    squares = jax.grad(lambda taps: loss(model.apply(params, *inputs, taps=taps, **options)[0]))(zero_taps(model))
    for path, stack in reversed(model.stacks().items()):
        for layer in range(stack.depth, -1, -1):
            place = layer if layer < stack.depth else None
            square = model.of_stack(squares, path)[layer]
            yield _counted(square, site="gradient", stack=_name(model, path), layer=place)


def _name(model: AbstractModel, path: Path) -> str:
    return path[0] if len(model.stacks()) > 1 else ""


def _count(value: jax.Array) -> jax.Array:
    """Count the NaN and the infinite entries, (2,)."""
    return jnp.stack((jnp.sum(jnp.isnan(value)), jnp.sum(jnp.isinf(value))))


def _counted(value: jax.Array, **place: Any) -> NotFinite:
    return _not_finite(_count(value), **place)


def _not_finite(counts: Any, **place: Any) -> NotFinite:
    return NotFinite(nan=int(counts[0]), inf=int(counts[1]), **place)
