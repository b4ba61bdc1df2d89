"""The files at a path, and those among them that are left out, each with its reason."""

import glob
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path


class LeftOut(UserWarning):
    """Some of the files at a path are not read."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files to read, and files to leave out.

    Args:
        files: in the order of their names.
        left_out: {name: reason} of everything else.
    """

    files: list[Path] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def find(where: str) -> Found:
    """The files that a path names: itself, everything below it if it is a folder, or what it matches as a glob.

    Hidden files, linked folders and what is no regular file are left out, unless the path names them itself. A file
    that has several names is read once.

    Raises:
        ValueError: there is nothing, or a folder that cannot be opened.
    """
    path = os.path.expanduser(where)
    named = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files: list[Path] = []
    left_out: dict[str, str] = {}
    for name in named:
        if os.path.isdir(name):
            inside = below(Path(name))
            files += inside.files
            left_out |= inside.left_out
        elif reason := _no_file(name):
            left_out[name] = reason
        else:
            files.append(Path(name))
    first_names: dict[str, Path] = {}
    for file in sorted(set(files)):
        first = first_names.setdefault(os.path.realpath(file), file)
        if first != file:
            left_out[str(file)] = "another name of a file that is read"
    if not first_names:
        what = "an empty folder" if os.path.isdir(path) else "no such file, folder or glob"
        raise ValueError(f"{where}: " + (f"nothing to read; left out: {summary(left_out)}" if left_out else what))
    return Found(files=list(first_names.values()), left_out=left_out)


def below(top: Path, unwanted: Collection[str] = ()) -> Found:
    """The files below a folder.

    Args:
        top: the folder.
        unwanted: names of folders to leave out.

    Raises:
        ValueError: a folder that cannot be opened.
    """
    files: list[Path] = []
    left_out: dict[str, str] = {}
    for folder, folders, names in os.walk(top, onerror=_refuse):
        reasons = {name: _no_folder(os.path.join(folder, name), unwanted) for name in folders}
        folders[:] = [name for name in folders if not reasons[name]]
        for name in names:
            reasons[name] = "hidden" if name.startswith(".") else _no_file(os.path.join(folder, name))
            if not reasons[name]:
                files.append(Path(folder, name))
        left_out |= {os.path.join(folder, name): reason for name, reason in reasons.items() if reason}
    return Found(files=sorted(files), left_out=left_out)


def summary(left_out: dict[str, str], most: int = 3) -> str:
    """Reasons with the names of a few files each, in one line.

    Args:
        left_out: {name: reason}.
        most: names of each reason.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{some(names, most)} ({reason})" for reason, names in by_reason.items())


def some(names: Collection[object], most: int) -> str:
    """The first few names, and how many more there are."""
    few = ", ".join(map(str, list(names)[:most]))
    return few if len(names) <= most else f"{few} and {len(names) - most} more"


def printable(text: str) -> str:
    """A text, as the name of a file, with everything that is no printable character as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _no_folder(path: str, unwanted: Collection[str]) -> str:
    """Why a folder below another is not entered; no text if it is."""
    name = os.path.basename(path)
    if name.startswith("."):
        return "hidden"
    if name in unwanted:
        return "unwanted"
    return "a link to a folder: name it by itself or by a glob to read it" if os.path.islink(path) else ""


def _no_file(path: str) -> str:
    """Why a path is not read; no text if it is a regular file."""
    if os.path.isfile(path):
        return ""
    return "neither a file nor a folder" if os.path.exists(path) else "a link to nothing"


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot be opened: {error.strerror}") from error
