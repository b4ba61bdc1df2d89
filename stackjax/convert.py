"""Between stacked parameters and one tree per layer, for the outside world."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from stackjax.stack import Stack
from stackjax.sublayer import Params


def unstack(stack: Stack, params: Params) -> list[Params]:
    """The layers' parameters one by one, in order: a list of L trees without a layer axis."""
    params, layers = stack.checked(params), []
    for i, _, segment in stack.placed():
        segment_params = params["segments"][i]
        for r in range(segment.n):
            for j in range(len(segment.layers)):
                tree = segment_params[str(j)]
                layers.append(tree if segment.looped else jax.tree.map(lambda a, r=r: a[r], tree))
    return layers


def restack(stack: Stack, layers: Sequence[Params], params: Params) -> Params:
    """The inverse of `unstack`: `params` with its layers replaced.

    Raises:
        ValueError: the wrong number of layers, or parameters of other shapes.
    """
    if len(layers) != stack.depth:
        raise ValueError(f"the stack has {stack.depth} layers; got {len(layers)}")
    segments: Params = {}
    for i, start, segment in stack.placed():
        pattern = len(segment.layers)
        segments[i] = {}
        for j in range(pattern):
            alike = list(layers[start + j : start + segment.depth : pattern])
            if segment.looped:
                segments[i][str(j)] = alike[0]
            elif alike:
                segments[i][str(j)] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alike)
            else:
                segments[i][str(j)] = params["segments"][i][str(j)]
    return stack.checked({**params, "segments": segments})
