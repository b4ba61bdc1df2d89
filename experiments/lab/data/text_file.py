"""A file of text or of records to its documents."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from .found import some

RECORDS = (".jsonl", ".ndjson", ".jsonlines", ".json")
"""Endings of files that hold one JSON record a line; `.gz` may follow, and case does not matter."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by their byte order mark; those of UTF-32 come first, since one of them begins like one of UTF-16."""


class NotReadable(ValueError):
    """A file that is not of a kind that is read here; what it says is the reason."""


def documents(path: Path, field: str) -> list[bytes]:
    """The documents of a file as UTF-8: its records, or the whole of it. None of them holds a zero byte.

    Args:
        path: of the file.
        field: that holds the text of a record.

    Raises:
        NotReadable: neither text nor records; a folder may hold such files.
        ValueError: a file that cannot be read, or a faulty record.
    """
    text = read(path)
    ending = path.name.lower().removesuffix(".gz")
    if ending.endswith(".json") and not _begins_with_a_record(text, field):
        raise NotReadable(f"JSON, but not one record a line with text in {field!r}")
    if ending.endswith(RECORDS):
        return list(_records(path, text, field))
    return [text.encode()]


def read(path: Path) -> str:
    """The text of a file, unpacked if its name ends in `.gz`: UTF-8, or what its byte order mark says.

    Raises:
        NotReadable: binary, or in an encoding that cannot be told.
        ValueError: a file that cannot be read or unpacked.
    """
    try:
        raw = path.read_bytes()
        if path.suffix.lower() == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    encoding = next((encoding for mark, encoding in MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        binary = encoding == "utf-8" and b"\0" in raw
        raise NotReadable(BINARY if binary else "not UTF-8: convert it, as by iconv, to read it") from None
    if "\0" in text:
        raise NotReadable(BINARY)
    return text


BINARY = "binary, not text"


def _begins_with_a_record(text: str, field: str) -> bool:
    """True if the first line is a record by itself, and not the beginning of one long JSON document."""
    first = text.lstrip().partition("\n")[0]
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and field in record


def _records(path: Path, text: str, field: str) -> Iterator[bytes]:
    for number, line in enumerate(text.encode().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{path}: line {number} is JSON that is nested too deeply") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number} is no record with a field {field!r}, only {type(record).__name__}")
        if field not in record:
            names = some(record, 10) or "no field at all"
            raise ValueError(f"{path}: line {number} has no text in {field!r}, only {names}; give --text-field")
        if not isinstance(record[field], str):
            kind = "null" if record[field] is None else type(record[field]).__name__
            raise ValueError(f"{path}: line {number} has {kind} in {field!r}, not text")
        yield record[field].replace("\0", "").encode("utf-8", errors="replace")
