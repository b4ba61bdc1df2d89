"""Kinds of tokens that should gain from knowing the tree: labels for breaking a loss down."""

import keyword

import numpy as np

from .prefix import CLOSE, INDENT, NEWLINE, SPACE, STRING, WORD
from .reading import Reading

SLICES = ("other", "closing bracket", "dedent", "repeated key", "identifier bound near", "identifier bound far")
OTHER, CLOSING, DEDENT, REPEATED_KEY, BOUND_NEAR, BOUND_FAR = range(len(SLICES))
FAR = 4
"""Steps from an identifier's statement or element up to where its last occurrence is in sight, from which it is far."""

_CLOSING = {CLOSE, ")", "]", "}"}
_WORDS = {WORD, "identifier"}
_STRINGS = {STRING, "string_content"}
_BLANK = {SPACE, INDENT, NEWLINE, "gap"}


def label(reading: Reading, language: str) -> np.ndarray:
    """The slice of each token of a reading by `grammar` or `prefix`, before `by_byte`.

    closing bracket: ) ] } that close a group.
    dedent: the first token of a line that stands higher in the tree than the line before; among the leaves of
    `grammar`, the white space in front of it, which is what decides.
    repeated key: a key of an object that was a key at the same depth before (JSON).
    identifier bound near, far: a name that occurred before in the document, by how many steps above its own statement
    or element the two meet in the tree (Python).

    Returns:
        (T,) indices into `SLICES`.
    """
    labels = np.zeros(len(reading), np.uint8)
    depth = (reading.path >= 0).sum(1)
    tokens, kinds = reading.tokens(), [reading.kinds[k] for k in reading.kind]
    seen: dict[object, int] = {}
    line_depth, line_begins, blank = 0, True, 0
    for t, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind in _BLANK:
            line_begins |= b"\n" in token
            blank = t
            continue
        if language == "python" and line_begins:
            if depth[t] < line_depth:
                labels[blank if kinds[blank] == "gap" else t] = DEDENT
            line_depth, line_begins = depth[t], False
        if kind in _CLOSING:
            labels[t] = CLOSING
        elif language == "json" and kind in _STRINGS and _is_key(reading, t, kind):
            labels[t] = REPEATED_KEY if (token, depth[t]) in seen else OTHER
            seen[token, depth[t]] = t
        elif language == "python" and kind in _WORDS and _is_name(token):
            if token in seen and labels[t] == OTHER:
                labels[t] = _bound(reading.path[t], reading.path[seen[token]], depth[t])
            seen[token] = t
    return labels


def by_byte(labels: np.ndarray, reading: Reading) -> np.ndarray:
    """Labels of a reading's tokens for each of their bytes; a dedent is decided at the first."""
    length = reading.end - reading.start
    repeated = np.repeat(labels, length)
    later = np.arange(len(repeated)) > np.repeat(reading.start, length)
    return np.where(later & (repeated == DEDENT), OTHER, repeated)


def _is_key(reading: Reading, t: int, kind: str) -> bool:
    steps = reading.path[t][reading.path[t] >= 0]
    if kind == STRING:
        return steps[-1] == 0 and reading.text[reading.end[t] : reading.end[t] + 1] == b":"
    return len(steps) > 1 and steps[-2] == 0


def _is_name(token: bytes) -> bool:
    return not token[:1].isdigit() and token.decode("utf-8", "replace") not in keyword.kwlist


def _bound(path: np.ndarray, before: np.ndarray, depth: int) -> int:
    apart = np.flatnonzero(path != before)
    common = min(int(apart[0]) if len(apart) else len(path), depth)
    return BOUND_FAR if depth - 1 - common >= FAR else BOUND_NEAR
