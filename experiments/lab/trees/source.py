"""Sources of documents: the standard library, JSON on this machine, and folders of one's own."""

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..data.found import LeftOut, below, find, summary
from .grammar import GRAMMARS

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
PIECE = 20_000
"""Bytes above which a JSON document is taken apart into the documents below it."""


def python_sources(limit: int) -> list[bytes]:
    """Modules of the running Python's own standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return _some((_read(path) for path in _files(root, ".py", LEFT_OUT)), limit)


def json_documents(limit: int) -> list[bytes]:
    """JSON found on every machine that runs this, half and half.

    Half are the data files of the installed packages (schemas, bills of materials, configurations), those too long
    taken apart. Half are syntax trees of the standard library's functions and classes, written out as objects. All
    are written anew without white space.
    """
    packages = Path(sysconfig.get_paths()["purelib"])
    values = (_parsed(path) for path in _files(packages, ".json", {"__pycache__"}))
    data = _some((text for value in values for text in _pieces(value)), limit // 2)
    trees = (_parsed_python(text) for text in python_sources(limit))
    dumped = _some((text for nodes in trees for node in nodes for text in _pieces(node)), limit // 2)
    return data + dumped


def folder(where: str, language: str, limit: int) -> list[bytes]:
    """The files of a language at a path, up to so many bytes; warns of the others.

    Args:
        where: a file, a folder or a glob.
        language: that the files are written in, which their endings tell.
        limit: bytes.

    Raises:
        ValueError: an unknown language, no such file, or one that cannot be read.
    """
    if language not in GRAMMARS:
        raise ValueError(f"no grammar for {language!r}; there are {', '.join(GRAMMARS)}")
    suffixes = GRAMMARS[language].suffixes
    listing = find(where)
    files = [path for path in listing.files if path.name.lower().endswith(suffixes)]
    other = {str(path): f"no {language}, by its ending" for path in listing.files if path not in set(files)}
    left_out = listing.left_out | other
    if not files:
        raise ValueError(f"{where}: no files that end in {' or '.join(suffixes)}")
    try:
        different = {path.read_bytes() for path in files} - {b""}
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}") from error
    documents = _some(different, limit)
    if not documents:
        raise ValueError(f"{where}: no file that is not empty and has at most {limit:,} bytes (--limit)")
    if left_out:
        warnings.warn(f"{where}: left out: {summary(left_out)}", LeftOut, stacklevel=2)
    if len(documents) < len(different):
        message = f"{len(documents)} of {len(different)} different documents are within {limit:,} bytes (--limit)"
        warnings.warn(f"{where}: {message}", LeftOut, stacklevel=2)
    return documents


def _files(root: Path, suffix: str, unwanted: set[str]) -> list[Path]:
    return [path for path in below(root, unwanted).files if path.name.lower().endswith(suffix)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _some(documents: Iterable[bytes], limit: int) -> list[bytes]:
    """Documents in the order of their hashes, up to so many bytes; the same ones whatever they are called."""
    chosen, size = [], 0
    for text in sorted(set(documents), key=lambda text: hashlib.sha256(text).digest()):
        if text and size + len(text) <= limit:
            chosen.append(text)
            size += len(text)
    return chosen


def _pieces(value: Any) -> Iterator[bytes]:
    """A JSON value as a document, or the values below it as several if it is too long."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= PIECE:
        if isinstance(value, dict | list) and value:
            yield text
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _pieces(below)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError):
        return None


def _parsed_python(text: bytes) -> list[Any]:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return []
    wanted = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [_plain(node) for node in body if isinstance(node, wanted)]


def _plain(node: Any) -> Any:
    """A syntax tree as JSON: objects with a `node`, and their fields that say something."""
    if isinstance(node, ast.AST):
        fields = {name: _plain(value) for name, value in ast.iter_fields(node)}
        return {"node": type(node).__name__} | {k: v for k, v in fields.items() if v not in (None, [])}
    if isinstance(node, list):
        return [_plain(below) for below in node]
    return node if isinstance(node, bool | int | float | str | None) else repr(node)
