"""What one step of the scan does: the layers of a period, one after the other."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from stackjax import scan
from stackjax.layer import Layer, Trace
from stackjax.segment import Segment
from stackjax.sublayer import Given, Params, add_losses

Measure = Callable[[Trace], dict[str, jax.Array]]
"""Reduces what happened in one layer to a few arrays; the stack returns them with a leading axis L."""


def period(
    segment: Segment,
    own: Params,
    given: Given,
    tables: dict[Any, Any],
    measure: Measure | None,
    remat: scan.Remat,
    loop: bool,
) -> scan.Body:
    """One period of a segment's layers, as the body of a scan: (stream, xs) to (stream, (loss, state, measure)).

    Args:
        segment: what is repeated.
        own: its parameters, read here only where all repeats share them; else they are in `xs`.
        given: what travels beside the stream.
        tables: what each sublayer prepared outside the scan.
        measure: what to reduce each layer's `Trace` to.
        remat: what the backward pass recomputes.
        loop: whether the body is called by a Python loop.
    """

    def one(layer: Layer, stream: Any, x: Params) -> tuple[Any, tuple[Any, Any, Any]]:
        entered = stream
        if x["tap"] is not None:
            stream = scan.tap(stream, x["tap"])
        if x["probe"] is not None:
            stream = jax.tree.map(jnp.add, stream, x["probe"])
        mine = {
            sub.name: replace(given, table=tables[sub], cache=None if x["cache"] is None else x["cache"].get(sub.name))
            for sub in layer.subs
        }
        stream, out, trace = layer.apply(
            x["params"], stream, mine, scale=x["scale"], outer_scale=x["outer"], key=x["key"]
        )
        stream = jax.tree.map(lambda new, old: new.astype(old.dtype), stream, entered)
        return stream, (out.loss, out.state, {} if measure is None else measure(trace))

    def body(stream: Any, xs: Params) -> tuple[Any, tuple[Any, Any, Any]]:
        loss: dict[str, jax.Array] = {}
        states, measured = {}, {}
        for j, layer in enumerate(segment.layers):
            x = jax.tree.map(lambda a, j=j: a[j], {k: xs[k] for k in ("scale", "outer", "key", "tap", "probe")})
            x["params"] = (own if segment.looped else xs["params"])[str(j)]
            x["cache"] = None if xs["cache"] is None else xs["cache"].get(str(j))
            run = scan.rematerialise(partial(one, layer), remat, loop=loop)
            stream, (losses, states[str(j)], measured[str(j)]) = run(stream, x)
            loss = add_losses(loss, losses)
        return stream, (loss, states, measured)

    return body
