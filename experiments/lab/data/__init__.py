"""Text and token files to a `Corpus`.

Text is tokenised as its UTF-8 bytes, so V is 256 and nothing has to be shipped. What belongs together (a file, a
record) is a document; documents are separated by a zero byte, which text does not hold.

Reading order: `found` (which files), `text_file` and `token_file` (what is in them), `split` (training and
validation).
"""

import platform
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..corpus import Corpus, Origin
from . import split, text_file, token_file
from .found import LeftOut, below, find, printable, some, summary

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
BINS = ".bin"


def standard_library() -> Corpus:
    """The sources of the running Python's own standard library, read in place.

    Raises:
        ValueError: this Python has no sources on disk.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = [path for path in below(root, LIBRARY_LEFT_OUT).files if path.suffix == ".py"]
    if not sources:
        raise ValueError(f"this Python keeps no sources of its standard library in {root}; give --data PATH")
    return _of_text(f"the standard library of Python {platform.python_version()}", sources, {}, "text")


def load(
    where: str | None = None, *, text_field: str = "text", token_dtype: str = "uint16", vocab: int | None = None
) -> Corpus:
    """The corpus at a path. Warns of files that are left out; `Corpus.origin` has them all, with their reasons.

    Args:
        where: a file, a folder (everything below it but hidden files) or a glob; None means `standard_library`.
            `.bin` files hold tokens and nothing else, as nanoGPT writes them: one file, whose last tenth is for
            validation, or `train.bin` and `val.bin` of one or more folders, where other files beside a `train.bin` are
            left out. `.jsonl`, `.ndjson` and `.json` hold a record a line; anything else is text, in UTF-8 or with a
            byte order mark. All but `.bin` may be packed with gzip.
        text_field: of records.
        token_dtype: of the tokens in `.bin` files: uint8, uint16 or uint32.
        vocab: V of `.bin` files; None means the largest token and one.

    Raises:
        ValueError: nothing there, not readable, binary, malformed, empty, ambiguous or implausible.
    """
    if where is None:
        return standard_library()
    files = find(where)
    bins = [path for path in files.files if path.suffix.lower() == BINS]
    others = [path for path in files.files if path not in set(bins)]
    if not bins:
        if vocab is not None:
            raise ValueError(f"{where}: text is read as bytes, V = 256; --vocab {vocab} is for token files (.bin)")
        corpus = _of_text(printable(where), others, files.left_out, text_field)
    else:
        left_out = files.left_out | _beside_tokens(where, bins, others)
        train, valid, how = token_file.splits(where, bins, np.dtype(token_dtype).newbyteorder("<"))
        origin = Origin(files=_names(bins), split=how, left_out=left_out)
        corpus = Corpus.of(printable(where), train, valid, vocab=vocab, origin=origin)
    if corpus.origin.left_out:
        warnings.warn(f"{where}: left out: {summary(corpus.origin.left_out)}", LeftOut, stacklevel=2)
    return corpus


def _of_text(name: str, files: Sequence[Path], left_out: dict[str, str], field: str) -> Corpus:
    documents: list[bytes] = []
    read: list[Path] = []
    left_out = dict(left_out)
    for path in files:
        try:
            documents += text_file.documents(path, field)
            read.append(path)
        except text_file.NotReadable as reason:
            left_out[str(path)] = str(reason)
    if not any(documents):
        raise ValueError(f"{name}: no text in it" + (f"; left out: {summary(left_out)}" if left_out else ""))
    try:
        train, valid, how = split.sides(documents)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    origin = Origin(files=_names(read), documents=len(documents), split=how, left_out=left_out)
    return Corpus.of(name, np.frombuffer(train, np.uint8), np.frombuffer(valid, np.uint8), vocab=256, origin=origin)


def _beside_tokens(where: str, bins: Sequence[Path], others: Sequence[Path]) -> dict[str, str]:
    """Files in the folder of a train.bin, which are how its tokens were made and not data.

    Raises:
        ValueError: files elsewhere, which may well be data.
    """
    folders = {path.parent for path in bins if path.name.lower() == token_file.TRAIN}
    unclear = [path for path in others if path.parent not in folders]
    if unclear:
        raise ValueError(
            f"{where} holds token files ({some(bins, 3)}) and others ({some(unclear, 3)}): name one kind, by a file, "
            "or by a glob that ends in *.bin or *.txt"
        )
    return {str(path): f"beside a {token_file.TRAIN}" for path in others}


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(map(str, paths))
