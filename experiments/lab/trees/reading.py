"""A reading of a document: its tokens, aligned byte for byte, and where each stands in the tree."""

import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

DEEPEST = 32
"""P, the steps of a path that are kept unless asked otherwise."""
WIDEST = np.iinfo(np.int16).max
"""The largest child index; children beyond share it."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Tokens of one document. They follow each other without gaps: joined, they are the text.

    Args:
        text: the document's bytes.
        end: (T,) where each token ends; it begins where the one before ends.
        path: (T, P) child indices from the root, padded with -1 behind the end; int16.
        kind: (T,) what each token is, as an index into `kinds`.
        kinds: names of the kinds.
    """

    text: bytes
    end: np.ndarray
    path: np.ndarray
    kind: np.ndarray
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.end)

    @property
    def start(self) -> np.ndarray:
        """(T,) where each token begins."""
        return np.concatenate(([0], self.end[:-1])).astype(self.end.dtype) if len(self) else self.end

    def token(self, t: int) -> bytes:
        """The bytes of one token."""
        return self.text[self.start[t] : self.end[t]]

    def tokens(self) -> list[bytes]:
        """The bytes of all tokens."""
        return [self.text[a:b] for a, b in pairwise([0, *self.end.tolist()])]

    def by_byte(self) -> "Reading":
        """Split every token into its bytes: each a child of the token that it belongs to, in order."""
        length = self.end - self.start
        path = np.repeat(self.path, length, 0)
        within = np.arange(len(self.text)) - np.repeat(self.start, length)
        depth = (path >= 0).sum(1)
        room = np.flatnonzero(depth < path.shape[1])
        path[room, depth[room]] = np.minimum(within[room], WIDEST)
        return Reading(
            text=self.text,
            end=np.arange(1, len(self.text) + 1, dtype=self.end.dtype),
            path=path,
            kind=np.repeat(self.kind, length),
            kinds=self.kinds,
        )


class Rows:
    """Tokens as they are found, to become a `Reading`."""

    def __init__(self, text: bytes, n_steps: int):
        self.text, self.n_steps = text, n_steps
        self.ends: list[int] = []
        self.paths: list[tuple[int, ...]] = []
        self.kind: list[str] = []
        self.deep = 0

    @property
    def at(self) -> int:
        """Place where the next token begins."""
        return self.ends[-1] if self.ends else 0

    def add(self, end: int, path: tuple[int, ...] | list[int], kind: str) -> None:
        """The next token; one of no bytes is left out."""
        if end > self.at:
            self.deep += len(path) > self.n_steps
            self.ends.append(end)
            self.paths.append(tuple(path[: self.n_steps]))
            self.kind.append(kind)

    def reading(self) -> Reading:
        """The reading so far; warns of tokens deeper than a path has steps, which stand at their ancestor there."""
        if self.deep:
            warnings.warn(
                f"{self.deep} of {len(self.ends)} tokens lie deeper than {self.n_steps} steps and stand where their "
                f"ancestor of depth {self.n_steps} stands",
                stacklevel=3,
            )
        path = np.full((len(self.ends), self.n_steps), -1, np.int16)
        for row, steps in zip(path, self.paths, strict=True):
            row[: len(steps)] = np.minimum(steps, WIDEST)
        names = {name: i for i, name in enumerate(dict.fromkeys(self.kind))}
        return Reading(
            text=self.text,
            end=np.array(self.ends, np.int64),
            path=path,
            kind=np.array([names[name] for name in self.kind], np.int32),
            kinds=tuple(names),
        )
