"""Sources of documents: the standard library, JSON on this machine, and folders of one's own."""

import ast
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.lab.trees.grammar import GRAMMARS

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
PIECE = 20_000
"""Bytes above which a JSON document is taken apart into the documents below it."""


def python_sources(limit: int) -> list[bytes]:
    """Modules of the running Python's own standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return _some((_read(path) for path in _files(root, (".py",), LEFT_OUT)), limit)


def json_documents(limit: int) -> list[bytes]:
    """JSON found on every machine that runs this, half and half.

    Half are the data files of the installed packages (schemas, bills of materials, configurations), those too long
    taken apart. Half are syntax trees of the standard library's functions and classes, written out as objects. All
    are written anew without white space.
    """
    packages = Path(sysconfig.get_paths()["purelib"])
    found = (_parsed(path) for path in _files(packages, (".json",), {"__pycache__"}))
    data = _some((text for value in found for text in _pieces(value)), limit // 2)
    trees = (_parsed_python(text) for text in python_sources(limit))
    dumped = _some((text for nodes in trees for node in nodes for text in _pieces(node)), limit // 2)
    return data + dumped


def folder(where: str | Path, language: str, limit: int) -> list[bytes]:
    """The files of a language below a folder; hidden ones, and those that cannot be read, are left out.

    Raises:
        ValueError: an unknown language, or no such file.
    """
    if language not in GRAMMARS:
        raise ValueError(f"no grammar for {language!r}; there are {', '.join(GRAMMARS)}")
    suffixes = GRAMMARS[language].suffixes
    documents = _some((_read(path) for path in _files(Path(where), suffixes, set())), limit)
    if not documents:
        raise ValueError(f"{where}: no files that end in {' or '.join(suffixes)}")
    return documents


def _files(root: Path, suffixes: tuple[str, ...], left_out: set[str]) -> Iterator[Path]:
    for where, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(where, name)


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
    except ValueError:
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
