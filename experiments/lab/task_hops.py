"""Pointer chasing: where does one stand after k hops? A task whose answer takes a number of layers that grows as log k.

Sixteen tokens hold a permutation f that is one cycle, the seventeenth says k, and token i must answer f^k(i).

How far L layers reach: suppose every token i knows f^m(i) for -a <= m <= b; before the first layer it knows i and f(i),
so a = 0 and b = 1. Attention goes to tokens j of which something known equals something known of i, f^p(i) = f^q(j), so
j = f^(p - q)(i), and brings one thing that is known of j. Then i knows from -(2a + b) to a + 2b: each layer makes three
of what was known, and k is at most 2, 5, 14 for one, two and three layers, (3^L + 1) / 2. (Where tokens look only
forward, each layer doubles, and it is 2^L.)

Source: after Sanford et al. 2024, arXiv:2402.09268 (k hops need log k layers); the bound for both directions is ours.
"""

from collections.abc import Sequence

import numpy as np

import stackjax as sj
from stackjax.recipe.base import Recipe

PLACES = 16
"""Places of the cycle. With the token that says k there are 17 tokens, and 289 pairs of them."""

MOST_HOPS = 8
"""The greatest k that can be asked. On a cycle of 16, 9 hops are 7 the other way round."""


def reach(depth: int) -> int:
    """The greatest k that so many layers can answer, (3^L + 1) / 2."""
    return (3**depth + 1) // 2


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
