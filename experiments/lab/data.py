"""Text and token files to a `Corpus`.

Text is tokenised as its UTF-8 bytes, so V is 256 and nothing has to be shipped. What belongs together (a file, a
record) is a document; documents are separated by a zero byte, which text does not hold, and are split for training
and validation by the hash of their content, so that copies of a document fall on one side.
"""

import glob
import gzip
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.lab.corpus import Corpus

FEW = 20
LIBRARY_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "__pycache__",
}


def standard_library() -> Corpus:
    """The sources of the running Python's own standard library, read in place.

    Raises:
        ValueError: this Python has no sources on disk.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = (path for path in _walk(root, LIBRARY_LEFT_OUT) if path.suffix == ".py")
    documents = [text for path in sources if (text := _text(path)) is not None]
    if not documents:
        raise ValueError(f"this Python keeps no sources of its standard library in {root}; give --data PATH")
    return _of_documents(f"the standard library of Python {platform.python_version()}", documents)


def load(
    where: str | None = None, *, text_field: str = "text", token_dtype: str = "uint16", vocab: int | None = None
) -> Corpus:
    """The corpus at a path.

    Args:
        where: a file, a folder (everything below it but hidden files) or a glob. `.bin` files hold tokens and nothing
            else, as nanoGPT writes them, and are memory-mapped: one file, whose last tenth is for validation, or a
            `train.bin` and a `val.bin`. `.jsonl` and `.jsonl.gz` hold a record a line; anything else is text.
            None means `standard_library`.
        text_field: of the records of `.jsonl` files.
        token_dtype: of the tokens in `.bin` files: uint8, uint16 or uint32.
        vocab: V of `.bin` files; None means the largest token and one.

    Raises:
        ValueError: nothing there, not readable, binary, malformed, empty.
    """
    if where is None:
        return standard_library()
    paths = _paths(where)
    if all(path.suffix == ".bin" for path in paths):
        return _of_bins(where, paths, np.dtype(token_dtype).newbyteorder("<"), vocab)
    documents = []
    for path in (path for path in paths if path.suffix != ".bin"):
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            documents += _records(path, text_field)
        elif (text := _text(path)) is not None:
            documents.append(text)
        elif len(paths) == 1:
            raise ValueError(f"{path}: binary, not text (token files must end in .bin)")
    if not any(documents):
        raise ValueError(f"{where}: no text in it")
    return _of_documents(where, documents)


def _walk(root: Path, left_out: set[str]) -> list[Path]:
    """Files below a folder, hidden ones and folders of these names left out, in order."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _paths(where: str) -> list[Path]:
    root = Path(where).expanduser()
    if root.is_dir():
        paths = _walk(root, set())
    else:
        paths = [root] if root.exists() else sorted(Path(p) for p in glob.glob(str(root), recursive=True))
        paths = [path for path in paths if path.is_file()]
    if not paths:
        raise ValueError(f"{where}: {'an empty folder' if root.is_dir() else 'no such file, folder or glob'}")
    return paths


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _text(path: Path) -> bytes | None:
    """A file as UTF-8, faulty bytes replaced; None if it is binary (a zero byte, or one fault in ten characters)."""
    raw = _read(path)
    text = raw.decode("utf-8", errors="replace")
    if "\0" in text or text.count("\ufffd") > len(text) // 10:
        return None
    return text.encode()


def _records(path: Path, field: str) -> Iterator[bytes]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            there = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{path}: line {number} has no text in {field!r}, only {there}; give --text-field")
        yield record[field].replace("\0", "").encode("utf-8", errors="replace")


def _of_documents(name: str, documents: list[bytes]) -> Corpus:
    """Split documents: a tenth of them by hash, or where there are few the last tenth of each, is for validation."""
    if len(documents) >= FEW:
        ordered = sorted(documents, key=lambda document: hashlib.sha256(document).digest())
        n_valid = len(documents) // 10
        valid = b"\0".join(ordered[:n_valid])
        train = b"\0".join(ordered[n_valid:])
    else:
        train = b"\0".join(document[: -max(len(document) // 10, 1)] for document in documents)
        valid = b"\0".join(document[-max(len(document) // 10, 1) :] for document in documents)
    return Corpus.of(name, np.frombuffer(train, np.uint8), np.frombuffer(valid, np.uint8), vocab=256)


def _of_bins(name: str, paths: list[Path], dtype: np.dtype, vocab: int | None) -> Corpus:
    arrays = {path.name: _mapped(path, dtype) for path in paths}
    if len(arrays) == 1:
        (tokens,) = arrays.values()
        cut = len(tokens) - len(tokens) // 10
        return Corpus.of(name, tokens[:cut], tokens[cut:], vocab=vocab)
    if set(arrays) == {"train.bin", "val.bin"}:
        return Corpus.of(name, arrays["train.bin"], arrays["val.bin"], vocab=vocab)
    raise ValueError(f"{name}: token files must be one .bin, or train.bin and val.bin; got {', '.join(arrays)}")


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        size = os.path.getsize(path)
        if not size or size % dtype.itemsize:
            raise ValueError(f"{path}: {size} bytes are no whole number of {dtype.name} tokens")
        return np.memmap(path, dtype, mode="r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
