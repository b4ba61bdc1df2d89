"""Documents of many lengths, one to a row or packed into rows: tokens that count, per second of training.

A row of one document is padded at its end, which no token before it sees: causal attention needs no mask for it, and
the loss leaves it out. Packed documents are told apart by `segment`, each begins at index 0, and none is cut.
"""

import statistics
from typing import Any

import jax
import numpy as np

import stackjax as sj
from stackjax.sublayer import Params

from ..lab import compile_cache
from . import program
from .peers.base import Size
from .peers.in_stackjax import Stackjax
from .program import Row

SHORTEST = 16
"""Tokens in a document, at least."""


class Documents(Stackjax):
    """stackjax's peer on rows of documents: `tokens` and `weights` (B, T), and `position` where they are packed."""

    def loss(self, params: Params, batch: Any) -> jax.Array:
        logits = self.logits(params, batch["tokens"], batch.get("position"))
        return sj.loss.next_token(logits, batch["tokens"], batch["weights"])


def lengths(size: Size) -> np.ndarray:
    """Lengths of more documents than B rows hold, most of them short: log-normal around an eighth of T, at most T."""
    drawn = np.random.default_rng(0).lognormal(np.log(size.context / 8), 1, 16 * size.batch)
    return np.clip(drawn, min(SHORTEST, size.context), size.context).astype(int)


def padded(size: Size) -> dict[str, Any]:
    """The first B documents, one to a row."""
    places, ends = np.arange(size.context), lengths(size)[: size.batch, None]
    return {"tokens": program.tokens_of(size), "weights": (places < ends).astype(np.float32)}


def packed(size: Size) -> dict[str, Any]:
    """Documents in the first of B rows that has room; those that fit nowhere are left out. An index of -1 is a hole."""
    shape = (size.batch, size.context)
    index, segment, used = np.full(shape, -1, np.int32), np.zeros(shape, np.int32), np.zeros(size.batch, int)
    for i, length in enumerate(lengths(size)):
        rows = np.flatnonzero(used + length <= size.context)
        if rows.size:
            row, begin = rows[0], used[rows[0]]
            index[row, begin : begin + length], segment[row, begin : begin + length] = np.arange(length), i
            used[row] += length
    weights = (index > 0).astype(np.float32)
    return {"tokens": program.tokens_of(size), "weights": weights, "position": {"index": index, "segment": segment}}


@compile_cache.off()
def measure(size: Size, remat: str, rounds: int) -> list[Row]:
    """Median seconds of a step in either way, and the tokens a second that the loss counts."""
    rows = []
    for way, batch in (("padded", padded(size)), ("packed", packed(size))):
        made = program.prepare_jax(Documents(size, remat), batch)
        program.run([made], rounds)
        counted, seconds = float(batch["weights"][:, 1:].sum()), statistics.median(made.seconds)
        rows.append(
            {
                **{"way": way, "depth": size.depth, "remat": remat, "share": counted / batch["weights"].size},
                **{"step_seconds": seconds, "tokens_per_second": counted / seconds},
                "temp_bytes": made.facts["temp_bytes"],
            }
        )
    return rows
