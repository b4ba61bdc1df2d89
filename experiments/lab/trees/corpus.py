"""Many documents with their paths: read, split, kept on disk, and cut into batches.

A batch is a pure function of a seed and a step. A window lies within one document; its tokens keep the paths that they
have in the whole document.
"""

import hashlib
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..data.split import LEAST, MOST
from ..store import DAMAGED, replacing
from . import grammar, prefix
from .reading import DEEPEST, Reading
from .slices import by_byte, label

Unit = Literal["bytes", "leaves"]
VERSION = 1
"""Version of what a cached file holds; raised when a reading changes."""
VALID_SHARE = 0.1
SIDES = "train", "valid"
FIELDS = "tokens", "path", "label", "bounds"
ARRAYS = ("vocab", *(f"{side}_{field}" for side in SIDES for field in FIELDS))
"""Names of the arrays in a cached file."""
MASK = 0
"""The token that stands for a hidden leaf."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Documents one after another.

    Args:
        tokens: (N,) integers.
        path: (N, P) child indices, padded with -1.
        label: (N,) what each token is, see `slices`.
        bounds: (M + 1,) where documents begin and end.
    """

    tokens: np.ndarray
    path: np.ndarray
    label: np.ndarray
    bounds: np.ndarray

    def windows(self, at: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """A window of n tokens around each place.

        Args:
            at: (B,) places among all tokens. A window begins there, or earlier where its document ends too soon.
            n: tokens in a window.

        Returns:
            tokens (B, n), path (B, n, P), label (B, n) and index (B, n), which is -1 behind the end of a document
            shorter than n.
        """
        document = np.searchsorted(self.bounds, at, side="right") - 1
        first, last = self.bounds[document], self.bounds[document + 1]
        start = np.maximum(first, np.minimum(at, last - n))
        index = np.broadcast_to(np.arange(n), (len(at), n))
        inside = start[:, None] + index < last[:, None]
        place = np.minimum(start[:, None] + index, last[:, None] - 1)
        return {
            "tokens": np.where(inside, self.tokens[place], 0).astype(np.int32),
            "path": np.where(inside[..., None], self.path[place], -1).astype(np.int16),
            "label": np.where(inside, self.label[place], 0).astype(np.int32),
            "index": np.where(inside, index, -1).astype(np.int32),
        }


@dataclass(frozen=True, kw_only=True)
class TreeCorpus:
    """Documents read and split. Make one with `TreeCorpus.of`.

    Args:
        name: what they are, for people.
        train: most of the documents.
        valid: the first in the order of their hashes, about a tenth of the bytes; see `held_out`.
        vocab: V.
        sha256: of the documents and of how they were read.
    """

    name: str
    train: Split
    valid: Split
    vocab: int
    sha256: str

    @classmethod
    def of(
        cls,
        name: str,
        documents: Sequence[bytes],
        language: str,
        *,
        unit: Unit,
        causal: bool,
        n_steps: int = DEEPEST,
        vocab: int = 1024,
        cache: Path | None = None,
    ) -> "TreeCorpus":
        """Read documents, or take what an earlier call left in the cache.

        Args:
            name: what they are, for people.
            documents: their bytes. Empty ones and copies are left out.
            language: they are written in.
            unit: "bytes" makes each byte a token, V = 256; "leaves" makes tokens of the reading's leaves, where the
                most frequent have a number of their own and the rest share one for each kind.
            causal: whether paths may depend on nothing but the document so far (`prefix`), or come from the syntax
                tree of the whole (`grammar`).
            n_steps: P.
            vocab: V of leaves.
            cache: folder for the result; None keeps nothing.

        Raises:
            ValueError: documents that cannot be split, or a language that cannot be read.
        """
        unique = {hashlib.sha256(text).hexdigest(): text for text in documents if text}
        order = sorted(unique)
        valid = held_out([len(unique[key]) for key in order])
        size, total = (sum(len(unique[key]) for key in keys) for keys in (itertools.compress(order, valid), order))
        if not LEAST * total <= size <= MOST * total or not size:
            raise ValueError(
                f"{name}: {len(order)} different documents cannot be split: no choice of the first of them gives "
                f"validation {LEAST:.0%} to {MOST:.0%} of the bytes; give more documents"
            )
        how = f"{VERSION} {language} {unit} {causal} {n_steps} {vocab}"
        digest = hashlib.sha256("\n".join([how, *order]).encode()).hexdigest()
        named = hashlib.sha256(f"{digest} {valid}".encode()).hexdigest()
        cache_file = None if cache is None else Path(cache) / f"{named}.npz"
        arrays = None if cache_file is None else _load(cache_file, named)
        if arrays is None:
            arrays = _arrays([unique[key] for key in order], valid, language, unit, causal, n_steps, vocab)
            if cache_file is not None:
                _save(cache_file, {**arrays, "named": np.array(named)})
        splits = [Split(**{field: arrays[f"{side}_{field}"] for field in FIELDS}) for side in SIDES]
        return cls(name=name, train=splits[0], valid=splits[1], vocab=int(arrays["vocab"]), sha256=digest)

    def batch(self, *, seed: int, step: int, batch: int, n: int) -> dict[str, np.ndarray]:
        """Training windows, a pure function of (seed, step); see `Split.windows`."""
        raw = np.random.Philox(key=[seed, step]).random_raw(batch)
        return self.train.windows((raw % np.uint64(len(self.train.tokens))).astype(np.int64), n)

    def valid_batches(self, count: int, *, batch: int, n: int) -> list[dict[str, np.ndarray]]:
        """Windows spread evenly over the validation documents, the same for every run."""
        places = np.linspace(0, len(self.valid.tokens) - 1, count * batch).astype(np.int64)
        return [self.valid.windows(part, n) for part in places.reshape(count, batch)]


def user_cache() -> Path:
    """Folder in which corpora are kept unless one says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stackjax" / "trees"


def held_out(sizes: Sequence[int]) -> list[bool]:
    """Documents for validation: the first until a tenth of the bytes is there, without any that is too long.

    Args:
        sizes: bytes of each document, in the order of their hashes. Those that would take validation's share above
            `MOST` are passed over.
    """
    taken, total, valid = 0, sum(sizes), []
    for size in sizes:
        valid.append(taken < total * VALID_SHARE and taken + size <= total * MOST)
        taken += size * valid[-1]
    return valid


def _arrays(
    documents: list[bytes], valid: list[bool], language: str, unit: Unit, causal: bool, n_steps: int, vocab: int
) -> dict[str, np.ndarray]:
    reader = prefix.read if causal else grammar.read
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        readings = [reader(text, language, n_steps=n_steps) for text in documents]
    if caught:
        warnings.warn(f"{len(caught)} of {len(documents)} documents: {caught[0].message}", stacklevel=3)
    labels = [label(reading, language) for reading in readings]
    if unit == "bytes":
        labels = [by_byte(of, reading) for of, reading in zip(labels, readings, strict=True)]
        readings = [reading.by_byte() for reading in readings]
        tokens = [np.frombuffer(text, np.uint8) for text in documents]
        vocab = 256
    else:
        tokens = _numbered(readings, [r for r, held_out in zip(readings, valid, strict=True) if not held_out], vocab)
    arrays: dict[str, np.ndarray] = {"vocab": np.array(vocab)}
    for side, wanted in (("train", False), ("valid", True)):
        side_documents = [i for i, held_out in enumerate(valid) if held_out == wanted]
        arrays[f"{side}_tokens"] = np.concatenate([tokens[i] for i in side_documents]).astype(np.uint16)
        arrays[f"{side}_path"] = np.concatenate([readings[i].path for i in side_documents])
        arrays[f"{side}_label"] = np.concatenate([labels[i] for i in side_documents])
        arrays[f"{side}_bounds"] = np.cumsum([0, *(len(readings[i]) for i in side_documents)])
    return arrays


def _numbered(readings: list[Reading], train: list[Reading], vocab: int) -> list[np.ndarray]:
    """Leaves as numbers: 0 is the mask, then the kinds, then the most frequent (kind, text) of the training side."""
    kinds = {kind: 1 + i for i, kind in enumerate(sorted({kind for r in readings for kind in r.kinds}))}
    if len(kinds) >= vocab - 1:
        raise ValueError(f"{len(kinds)} kinds of leaves do not fit in a vocabulary of {vocab}")

    def named(reading: Reading) -> list[tuple[str, bytes]]:
        return [(reading.kinds[kind], text) for kind, text in zip(reading.kind, reading.tokens(), strict=True)]

    counts = Counter(leaf for reading in train for leaf in named(reading))
    frequent = sorted(counts, key=lambda leaf: (-counts[leaf], leaf))[: vocab - 1 - len(kinds)]
    number = {leaf: 1 + len(kinds) + i for i, leaf in enumerate(frequent)}
    return [np.array([number.get(leaf, kinds[leaf[0]]) for leaf in named(r)], np.uint16) for r in readings]


def _load(path: Path, named: str) -> dict[str, np.ndarray] | None:
    """Arrays that an earlier call saved for the same documents; None if there are none, or none whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ARRAYS} if str(file["named"]) == named else None
    except DAMAGED:
        return None


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with replacing(path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        warnings.warn(f"documents are not kept for the next time: {error}", stacklevel=2)
