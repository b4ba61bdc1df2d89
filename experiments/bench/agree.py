"""Check that the peers are the same model under the same optimiser: equal losses from equal weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import peers
from .peers.base import JaxPeer, Size, Weights
from .program import Row, tokens_of

STEPS = 3


def draw(size: Size) -> Weights:
    """Weights far from any init, norms included."""
    random = np.random.default_rng(1)
    width, hidden, layers = size.d_model, size.d_hidden, size.depth
    shapes = {
        "token": (size.vocab, width),
        "position": (size.context, width),
        "unembed": (width, size.vocab),
        "up": (layers, width, hidden),
        "down": (layers, hidden, width),
        **{name: (layers, width, width) for name in ("query", "key", "value", "out")},
    }
    weights = {name: 0.05 * random.standard_normal(shape) for name, shape in shapes.items()}
    for name in ("attention", "feed_forward", "final"):
        shape = (width,) if name == "final" else (layers, width)
        weights[f"{name}_norm_scale"] = 1 + 0.1 * random.standard_normal(shape)
        weights[f"{name}_norm_bias"] = 0.1 * random.standard_normal(shape)
    return {name: weight.astype(np.float32) for name, weight in weights.items()}


def losses(name: str, size: Size) -> Row:
    """The loss before each of a few steps from the same weights, and the number of parameters."""
    peer, tokens, values = peers.load(name)(size), tokens_of(size), []
    if isinstance(peer, JaxPeer):
        params = jax.tree.map(jnp.asarray, peer.load(draw(size)))
        n_params = sum(leaf.size for leaf in jax.tree.leaves(params))
        state: Any = peer.start(params)
        step = jax.jit(peer.step)
        for _ in range(STEPS):
            state, loss = step(state, tokens)
            values.append(float(loss))
    else:
        peer.load(draw(size))
        n_params = sum(weight.numel() for weight in peer.model.parameters())
        values = [peer.step(peer.tokens(tokens)) for _ in range(STEPS)]
    return {"peer": name, "n_params": n_params, "losses": values}


def largest_difference(rows: list[Row]) -> float:
    """Largest relative difference of any loss from the first peer's."""
    reference = np.asarray(rows[0]["losses"])
    return float(max(np.abs(np.asarray(row["losses"]) / reference - 1).max() for row in rows))
