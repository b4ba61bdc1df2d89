"""Files that hold tokens and nothing else, memory-mapped, and signs that one of them holds something else."""

import filecmp
import itertools
import os
import string
from pathlib import Path

import numpy as np

from .found import some

TRAIN, VALID = "train.bin", "val.bin"
BEGINNINGS = {
    (20240520).to_bytes(4, "little"): "a header of 1,024 bytes, as llm.c writes it; cut it off (tail -c +1025)",
    (20240801).to_bytes(4, "little"): "a header of 1,024 bytes, as llm.c writes it; cut it off (tail -c +1025)",
    b"\x93NUMPY": "the header of a .npy file; save its array with tofile",
    b"\x1f\x8b\x08": "the header of gzip; unpack it",
    b"PK\x03\x04": "the header of a zip archive, as torch.save writes it",
}
"""Bytes that no token file begins with."""
BEGINNING = 4096
"""Bytes of a file that are looked at for text and headers."""
LOOKED_AT = 1 << 20
"""Tokens from the beginning of a file whose plausibility is checked."""
WORTH_A_LOOK = 64
"""Tokens below which a file says too little to be implausible."""


def splits(where: str, paths: list[Path], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, str]:
    """Tokens for training and validation, and how they were split.

    One file is memory-mapped; several are read into memory.

    Args:
        where: what the user asked for.
        paths: of `.bin` files: `train.bin` and `val.bin` of one or more folders, several called `train.bin`, or a
            single one of any name.
        dtype: of the tokens.

    Raises:
        ValueError: files whose part is not clear, copies of each other on both sides, or no plausible tokens.
    """
    names = {path.name.lower() for path in paths}
    mapped = {path: _mapped(path, dtype) for path in paths}
    if len(paths) == 1 or names == {TRAIN}:
        heads = [tokens[: len(tokens) - len(tokens) // 10] for tokens in mapped.values()]
        tails = [tokens[len(tokens) - len(tokens) // 10 :] for tokens in mapped.values()]
        return _joined(heads), _joined(tails), "the last tenth of each file is for validation"
    if names != {TRAIN, VALID}:
        raise ValueError(
            f"{where}: token files must be one .bin, or {TRAIN} and {VALID}, also of several folders; got "
            f"{some(paths, 5)}: name one of them, or rename them"
        )
    train = [path for path in paths if path.name.lower() == TRAIN]
    valid = [path for path in paths if path.name.lower() == VALID]
    for one, other in itertools.product(train, valid):
        if filecmp.cmp(one, other, shallow=False):
            raise ValueError(f"{one} and {other} hold the same tokens: validation would be on what was trained on")
    training, validation = (_joined([mapped[path] for path in side]) for side in (train, valid))
    return training, validation, f"{VALID} is for validation"


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        size = os.path.getsize(path)
        if not size or size % dtype.itemsize:
            raise ValueError(f"{path}: {size} bytes are no whole number of {dtype.name} tokens")
        tokens = np.memmap(path, dtype, mode="r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    reason = implausible(tokens)
    if reason:
        raise ValueError(f"{path}: no plausible {dtype.name} tokens: {reason}")
    return tokens


def implausible(tokens: np.ndarray) -> str:
    """Why numbers are not the tokens that they are taken for; no text if they may be.

    Refused are known headers; text (printable ASCII alone, for tokens of two or more bytes); and tokens twice as
    wide. Of these every second number is an upper half: 0 without exception where the true V is at most 2^bits of the
    dtype; else below V / 2^bits, so below 16 for V up to 2^20 at 16 bits, beside lower halves that use the whole range.
    """
    raw = tokens[:LOOKED_AT]
    beginning = raw[: BEGINNING // tokens.itemsize].tobytes()
    for mark, what in BEGINNINGS.items():
        if beginning.startswith(mark):
            return f"it begins with {what}"
    if len(raw) < WORTH_A_LOOK:
        return ""
    if tokens.itemsize > 1 and not beginning.strip(string.printable.encode()):
        return "it is text; let its name end in .txt to read it as text"
    lower, upper = int(raw[::2].max()), int(raw[1::2].max())
    half = 1 << (8 * tokens.itemsize - 1)
    if upper == 0 < lower or (upper < 16 and lower >= half):
        return (
            f"every second one is {f'below {upper + 1}' if upper else '0'}, as if each token had "
            f"{2 * tokens.itemsize} bytes; give --token-dtype"
        )
    return ""
