"""Documents to a training and a validation side."""

import hashlib
import itertools
from collections.abc import Sequence

FEW = 20
"""Different documents below which each gives its end to validation."""
LEAST, MOST = 0.05, 0.2
"""Validation's share of the tokens is within these."""


def sides(documents: Sequence[bytes]) -> tuple[bytes, bytes, str]:
    """The two sides, documents separated by a zero byte, and how they were split.

    Whole documents go to validation in the order of the hashes of their content, until a tenth of them is there and
    `LEAST` of the bytes; all copies of a document go together, and those that would take more than `MOST` of the bytes
    are passed over. Of few documents, or where one is so long that this is not possible, the last tenth of each goes
    to validation.

    Args:
        documents: without zero bytes.

    Returns:
        What training reads, what validation reads, and a sentence.

    Raises:
        ValueError: documents so short that neither way comes to a share from `LEAST` to `MOST`.
    """
    if len(set(documents)) >= FEW:
        train, valid = _whole(documents)
        if LEAST <= share(train, valid) <= MOST:
            n = valid.count(b"\0") + 1
            return train, valid, f"{n} whole documents are for validation"
    tails = [max(len(document) // 10, 1) for document in documents]
    train = b"\0".join(document[:-n] for document, n in zip(documents, tails, strict=True))
    valid = b"\0".join(document[-n:] for document, n in zip(documents, tails, strict=True))
    if not LEAST <= share(train, valid) <= MOST:
        raise ValueError(
            f"{len(documents)} documents of {sum(map(len, documents)):,} bytes are too short to be split: validation "
            f"would hold {share(train, valid):.0%} of the tokens, and holds {LEAST:.0%} to {MOST:.0%}"
        )
    return train, valid, "the last tenth of each document is for validation"


def share(train: Sequence, valid: Sequence) -> float:
    """Validation's share of the tokens."""
    return len(valid) / max(len(train) + len(valid), 1)


def _whole(documents: Sequence[bytes]) -> tuple[bytes, bytes]:
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document).digest())
    total = sum(len(document) + 1 for document in documents)
    train: list[bytes] = []
    valid: list[bytes] = []
    size = 0
    for document, group in itertools.groupby(ordered):
        copies = list(group)
        more = len(copies) * (len(document) + 1)
        enough = len(valid) >= len(documents) // 10 and size >= LEAST * total
        if enough or size + more > MOST * total:
            train += copies
        else:
            valid += copies
            size += more
    return b"\0".join(train), b"\0".join(valid)
