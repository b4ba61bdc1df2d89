"""Copying: random tokens that repeat with a period of their own in every example.

To say what comes next one must find the place one period back, which no token knows by itself: one layer finds which
token stands before each, a second one where the present token stood last.

Source: after Olsson et al. 2022, arXiv:2209.11895 (induction heads).
"""

import numpy as np

VOCAB = 16


def examples(n: int, *, seed: int, step: int, context: int) -> dict[str, np.ndarray]:
    """Examples, a pure function of (seed, step).

    Args:
        n: how many, B.
        seed: of the run.
        step: counted from 0.
        context: T, 4 or more; the period is between a quarter and a half of it.

    Returns:
        inputs, index and targets (B, T): the next token, -1 as long as nothing has been repeated.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    drawn = random.integers(0, VOCAB, (n, context + 1), np.int32)
    period = random.integers(max(context // 4, 1), context // 2 + 1, (n, 1))
    index = np.arange(context + 1, dtype=np.int32)
    tokens = np.take_along_axis(drawn, index % period, 1)
    targets = np.where(index[1:] > period, tokens[:, 1:], -1)
    return {"inputs": tokens[:, :-1], "targets": targets, "index": np.tile(index[:-1], (n, 1))}
