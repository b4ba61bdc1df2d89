"""Pointer chasing: where does one stand after k hops? A task that needs log2 k layers.

Sixteen tokens hold a permutation f that is one cycle, the seventeenth says k, and token i must answer f^k(i). One layer
of attention can at most double the number of hops that are known, so L layers reach k = 2^L.

Source: after Sanford et al. 2024, arXiv:2402.09268 (k hops need log k layers).
"""

from collections.abc import Sequence

import numpy as np

import stackjax as sj
from stackjax.recipe.base import Recipe

PLACES = 16
"""Places of the cycle. With the token that says k there are 17 tokens, and 289 pairs of them."""

MOST_HOPS = 8
"""The greatest k. The map can be inverted, so 9 hops are also 7 the other way round."""


def encoder(*, d_model: int, depth: int, n_heads: int, recipe: Recipe = sj.recipe.PreNorm()) -> sj.Model:
    """A model that can chase pointers: bidirectional, with learned positions.

    Args:
        d_model: D.
        depth: L.
        n_heads: H.
        recipe: the depth treatment.
    """
    position = sj.position.Learned(n_positions=PLACES + 1)
    sizes = {"d_model": d_model, "depth": depth, "n_heads": n_heads}
    return sj.encoder(vocab=PLACES + MOST_HOPS, recipe=recipe, position=position, **sizes)


def examples(n: int, *, seed: int, step: int, hops: Sequence[int] = (1, 2, 4, 8)) -> dict[str, np.ndarray]:
    """Examples, a pure function of (seed, step).

    Args:
        n: how many, B.
        seed: of the run.
        step: counted from 0.
        hops: the k that are drawn, all equally often.

    Returns:
        inputs, index and targets (B, 17), the last -1 at the token that says k; and hops (B, 1).
    """
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    cycle = random.permuted(np.tile(np.arange(PLACES), (n, 1)), axis=1)
    asked = random.choice(np.asarray(hops, np.int32), (n, 1))
    inputs, targets = np.empty((2, n, PLACES + 1), np.int32)
    np.put_along_axis(inputs, cycle, np.roll(cycle, -1, 1), 1)
    ahead = (np.arange(PLACES) + asked) % PLACES
    np.put_along_axis(targets, cycle, np.take_along_axis(cycle, ahead, 1), 1)
    inputs[:, PLACES:], targets[:, PLACES:] = PLACES + asked - 1, -1
    index = np.tile(np.arange(PLACES + 1, dtype=np.int32), (n, 1))
    return {"inputs": inputs, "targets": targets, "index": index, "hops": asked}
