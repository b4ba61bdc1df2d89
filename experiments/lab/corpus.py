"""A corpus: tokens for training and validation, and batches that are pure functions of a seed and a step.

A batch does not depend on the model, so every recipe and depth sees the same text in the same order; and since no
iterator carries state, a run resumes exactly.
"""

import collections
import dataclasses
import hashlib
import math
from typing import Any

import numpy as np

PIECE = 1 << 24
BIGRAM_VOCAB = 1024
LARGEST_VOCAB = 1 << 20
"""Four times the largest vocabulary of a published model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The files that a corpus was read from.

    Args:
        files: their names.
        documents: how many they hold; None where they do not say.
        split: how validation was held out.
        left_out: {name: reason} of the files that were found and not read.
    """

    files: tuple[str, ...] = ()
    documents: int | None = None
    split: str = ""
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def lines(self, most: int = 10) -> list[str]:
        """Account of what was read, and of everything that was not with its reason, for people; empty without files.

        Args:
            most: names of files read.
        """
        if not self.files:
            return []
        n = "" if self.documents is None else f", {self.documents:,} documents"
        more = [f"  and {len(self.files) - most:,} more"] if len(self.files) > most else []
        out = [f"  {name}: {reason}" for name, reason in self.left_out.items()]
        return [
            f"{len(self.files):,} files{n}; {self.split}",
            *(f"  {name}" for name in self.files[:most]),
            *more,
            *([f"{len(out):,} left out:", *out] if out else []),
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Tokens, split for training and validation. Make one with `Corpus.of` or a loader in `data`.

    Args:
        name: what the tokens are, for people.
        train: (N,) unsigned integers, perhaps memory-mapped.
        valid: (M,) like them.
        vocab: V; every token is below it.
        sha256: of both splits, their dtype and V.
        unigram: entropy of the validation tokens in nats.
        bigram: entropy of a validation token given the one before it, in nats; None for a large vocabulary, where
            counts say little. Both are counted on the validation data itself, and a good model goes below them.
        origin: what the tokens were read from.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    vocab: int
    sha256: str
    unigram: float
    bigram: float | None
    origin: Origin = Origin()

    @classmethod
    def of(
        cls,
        name: str,
        train: np.ndarray,
        valid: np.ndarray,
        *,
        vocab: int | None = None,
        origin: Origin = Origin(),
    ) -> "Corpus":
        """Describe two arrays of tokens, in one pass over them.

        Args:
            name: what they are.
            train: (N,) unsigned integers.
            valid: (M,)
            vocab: V; None means the largest token and one.
            origin: what they were read from.

        Raises:
            ValueError: no tokens, a token outside the vocabulary, or a vocabulary that cannot be meant: above
                `LARGEST_VOCAB`, or, where it is not given, above 65,536 and 16 times the number of tokens.
        """
        digest, top = hashlib.sha256(), 0
        for split in (train, valid):
            if not len(split):
                raise ValueError(f"{name}: no tokens")
            digest.update(f"{split.dtype.str} {len(split)}\n".encode())
            for start in range(0, len(split), PIECE):
                piece = np.ascontiguousarray(split[start : start + PIECE])
                digest.update(piece.data)
                top = max(top, int(piece.max()))
        if vocab is None:
            vocab = top + 1
            largest = min(LARGEST_VOCAB, max(1 << 16, 16 * (len(train) + len(valid))))
        else:
            largest = LARGEST_VOCAB
        if top >= vocab:
            raise ValueError(f"{name}: tokens must be below --vocab {vocab}; found {top} (a wrong --token-dtype?)")
        if vocab > largest:
            raise ValueError(
                f"{name}: a vocabulary of {vocab:,} is not plausible for {len(train) + len(valid):,} tokens (at most "
                f"{largest:,}); is --token-dtype {train.dtype.name} right?"
            )
        digest.update(f"vocab {vocab}".encode())
        unigram, bigram = entropies(valid, vocab)
        return cls(
            name=name,
            train=train,
            valid=valid,
            vocab=vocab,
            sha256=digest.hexdigest(),
            unigram=unigram,
            bigram=bigram,
            origin=origin,
        )

    def check(self, *, batch: int, context: int) -> None:
        """Refuse a split that does not hold one batch of windows.

        Raises:
            ValueError: too few tokens.
        """
        for split, tokens in (("training", self.train), ("validation", self.valid)):
            if len(tokens) < batch * (context + 1):
                raise ValueError(
                    f"{self.name}: too short: {len(tokens)} {split} tokens, and one batch needs "
                    f"{batch * (context + 1)} (--batch {batch} windows of --context {context} tokens and one)"
                )

    def batch(self, *, seed: int, step: int, batch: int, context: int) -> np.ndarray:
        """Windows of the training tokens, a pure function of (seed, step): (B, T + 1) int32."""
        raw = np.random.Philox(key=[seed, step]).random_raw(batch)
        return _windows(self.train, raw % np.uint64(len(self.train) - context), context)

    def valid_batches(self, n: int, *, batch: int, context: int) -> np.ndarray:
        """Windows spread evenly over the validation tokens, the same for every run: (n, B, T + 1) int32."""
        starts = np.linspace(0, len(self.valid) - context - 1, n * batch).astype(np.int64)
        return _windows(self.valid, starts, context).reshape(n, batch, context + 1)

    @property
    def size(self) -> str:
        """Size of the data, in words."""
        return f"{len(self.train):,} training and {len(self.valid):,} validation tokens"

    def facts(self) -> dict[str, Any]:
        """All but the tokens and the names of files, as plain JSON."""
        return {
            "name": self.name,
            "size": self.size,
            "train_tokens": len(self.train),
            "valid_tokens": len(self.valid),
            "vocab": self.vocab,
            "sha256": self.sha256,
            "unigram": self.unigram,
            "bigram": self.bigram,
            "files": len(self.origin.files),
            "documents": self.origin.documents,
            "split": self.origin.split,
            "left_out": dict(collections.Counter(self.origin.left_out.values())),
        }


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    where = starts.astype(np.int64)[:, None] + np.arange(context + 1)
    return np.asarray(tokens[where], np.int32)


def entropies(tokens: np.ndarray, vocab: int) -> tuple[float, float | None]:
    """Unigram and bigram entropy in nats, H(x_t) and H(x_t | x_{t-1}), from the tokens' own counts.

    Args:
        tokens: (M,)
        vocab: V; above `BIGRAM_VOCAB` there is no bigram entropy.
    """
    single = np.zeros(vocab, np.int64)
    pairs = np.zeros(vocab * vocab if vocab <= BIGRAM_VOCAB else 0, np.int64)
    for start in range(0, len(tokens), PIECE):
        piece = np.asarray(tokens[start : start + PIECE + 1], np.int64)
        single += np.bincount(piece[:PIECE], minlength=vocab)
        if pairs.size:
            pairs += np.bincount(piece[:-1] * vocab + piece[1:], minlength=vocab * vocab)
    if not pairs.size:
        return _entropy(single), None
    return _entropy(single), _entropy(pairs) - _entropy(pairs.reshape(vocab, vocab).sum(1))


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-np.sum(share * np.log(share))) if share.size else math.nan
