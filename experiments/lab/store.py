"""A run's folder.

    cells/<cell>/   config.json, metrics.jsonl, layers.jsonl, summary.json, error.txt, params.npz if kept
    groups/<group>/ claim and checkpoint of a group under way; gone when it has ended
    sweep.json, results.csv, report.html, figures/    made from the cells at any time

Every write replaces a whole file at once, so no reader and no killed writer ever sees half of one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from stackjax.model import Model
from stackjax.parameter import path_name
from stackjax.sublayer import Params

from .grid import Cell, Group
from .lanes import Run

Json = dict[str, Any]

ROWS = ("metrics.jsonl", "layers.jsonl")
"""Files of a cell that hold a row for each step that was measured."""

DAMAGED = (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""Errors that reading an npz file raises where it is not whole."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of another one at once, when all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write(path: Path, content: str | bytes) -> None:
    """Replace a file at once; what UTF-8 does not hold, as in the name of a file, is written as its escape."""
    with replacing(path) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Replace an npz file at once."""
    with replacing(path) as file:
        np.savez(file, **arrays)


def read(path: Path) -> Json | None:
    """A JSON file; None if it is not there.

    Raises:
        ValueError: it is damaged.
    """
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove {path} to have it made again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged (no JSON object); remove {path} to have it made again")
    return record


def digest(value: Any) -> str:
    """Fingerprint of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_sealed(path: Path, record: Json) -> None:
    """Replace a JSON file at once, with its fingerprint in it."""
    write(path, json.dumps({**record, "sha256": digest(record)}, indent=1))


def read_sealed(path: Path) -> Json | None:
    """A file of `write_sealed`, without its fingerprint; None if it is not there.

    Raises:
        ValueError: it is damaged.
    """
    record = read(path)
    if record is not None and record.pop("sha256", None) != digest(record):
        raise ValueError(f"{path} is damaged (it is not what was written); remove {path} to have it made again")
    return record


def read_rows(path: Path) -> list[Json]:
    """The rows of a JSONL file; none if it is not there.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove {path.parent} to have it made again") from error


class Folder:
    """A run's folder and what is in it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.sweep_file = self.path / "sweep.json"

    def cell(self, name: str) -> Path:
        """A cell's own folder."""
        return self.path / "cells" / name

    def claim_file(self, group: str) -> Path:
        """File that says which worker is at work on a group."""
        return self.path / "groups" / group / "claim.json"

    def configs(self) -> list[Json]:
        """config.json of every cell that was begun, in the order of their names.

        Raises:
            ValueError: one is damaged, or another cell's.
        """
        configs = []
        for path in sorted((self.path / "cells").glob("*/config.json")):
            config = read_sealed(path)
            if config is None:
                continue
            if config.get("cell") != path.parent.name:
                raise ValueError(f"{path} is that of {config.get('cell')}; remove {path.parent} to have it made again")
            configs.append(config)
        return configs

    def summary(self, name: str) -> Json | None:
        """Outcome of a cell; None if it has not ended.

        Raises:
            ValueError: it is damaged or another cell's, or the cell's rows are not those that it ended with.
        """
        folder = self.cell(name)
        record = read_sealed(folder / "summary.json")
        if record is None:
            return None
        if record.pop("cell") != name:
            raise ValueError(f"{folder}/summary.json is another cell's; remove {folder} to have it made again")
        if record.pop("rows") != self._rows(name):
            raise ValueError(f"{folder} is damaged (its rows are not those it ended with); remove {folder}")
        return record

    def save_summary(self, name: str, summary: Json) -> None:
        """Write how a cell ended, with the fingerprints of its rows."""
        record = {**summary, "cell": name, "rows": self._rows(name)}
        write_sealed(self.cell(name) / "summary.json", record)

    def _rows(self, name: str) -> Json:
        return {file: digest(read_rows(self.cell(name) / file)) for file in ROWS}

    def groups(self) -> dict[str, Group]:
        """Every group that was begun, by name.

        Raises:
            ValueError: what a cell's config.json says of its group is no group.
        """
        groups = {}
        for config in self.configs():
            try:
                name, mode, cells = (config["group"][key] for key in ("name", "mode", "cells"))
                first, *others = (Cell(**cell) for cell in cells)
                groups[name] = Group(cells=(first, *others), mode=mode)
            except (KeyError, TypeError, ValueError) as error:
                folder = self.cell(config["cell"])
                raise ValueError(f"{folder}/config.json names no group ({error}); remove {folder}") from error
        return groups

    def clean(self, group: str, names: tuple[str, ...]) -> None:
        """Remove what killed writers left half-written."""
        for folder in (self.claim_file(group).parent, *map(self.cell, names)):
            for part in folder.glob(".*"):
                part.unlink(missing_ok=True)

    def base(self) -> Json | None:
        """Facts that all cells share (schema, setting, data, versions, device), from sweep.json or else from any cell.

        Raises:
            ValueError: sweep.json is damaged.
        """
        record = read_sealed(self.sweep_file)
        if record is None:
            return next(iter(self.configs()), None)
        if missing := {"schema", "setting", "data", "versions", "device", "groups", "commands"} - set(record):
            raise ValueError(f"{self.sweep_file} has no {min(missing)}; remove {self.sweep_file} to have it made again")
        return record

    def remove(self, name: str) -> None:
        """Forget a cell."""
        shutil.rmtree(self.cell(name), ignore_errors=True)

    def save_rows(self, names: tuple[str, ...], run: Run) -> None:
        """Write the curves and the layers of every lane."""
        for name, metrics, layers in zip(names, run.metrics, run.layers, strict=True):
            write(self.cell(name) / "metrics.jsonl", _lines(metrics))
            write(self.cell(name) / "layers.jsonl", _lines(layers))

    def save_checkpoint(self, group: str, names: tuple[str, ...], run: Run) -> None:
        """Write all that a run needs to go on; the rows first, so that none is ever missing."""
        self.save_rows(names, run)
        arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(run.state))}
        seal = digest([run.metrics, run.layers])
        write_arrays(self._checkpoint(group), {"step": run.step, "rows": seal, **arrays})

    def load_checkpoint(self, group: str, names: tuple[str, ...], run: Run) -> bool:
        """Bring a run to its last checkpoint; False if there is none that is whole."""
        leaves, tree = jax.tree.flatten(run.shapes)
        try:
            with np.load(self._checkpoint(group)) as saved:
                step, seal = int(saved["step"]), str(saved["rows"])
                arrays = [saved[f"leaf_{i}"] for i in range(len(leaves))]
        except DAMAGED:
            return False
        if any(a.shape != leaf.shape or a.dtype != leaf.dtype for a, leaf in zip(arrays, leaves, strict=True)):
            return False
        try:
            metrics, layers = (
                [[row for row in read_rows(self.cell(name) / file) if row["step"] <= step] for name in names]
                for file in ROWS
            )
        except (ValueError, KeyError, TypeError):
            return False
        if digest([metrics, layers]) != seal:
            return False
        run.resume(jax.tree.unflatten(tree, arrays), metrics, layers)
        return True

    def drop_checkpoint(self, group: str) -> None:
        """Forget a group's checkpoint."""
        self._checkpoint(group).unlink(missing_ok=True)

    def _checkpoint(self, group: str) -> Path:
        return self.path / "groups" / group / "checkpoint.npz"


def _lines(rows: list[Json]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def save_record(folder: Folder, base: Json, groups: dict[str, Group], *commands: Json) -> None:
    """Write sweep.json, what was in it before included.

    Args:
        folder: where.
        base: what all cells share.
        groups: to be added, by name.
        *commands: to be added.
    """
    before = read_sealed(folder.sweep_file) or {"groups": {}, "commands": []}
    lanes = {
        name: {"mode": group.mode, "lanes": [asdict(cell) for cell in group.cells]} for name, group in groups.items()
    }
    record = {
        **{name: base[name] for name in ("schema", "setting", "data", "versions", "device")},
        "groups": before["groups"] | lanes,
        "commands": [*before["commands"], *commands],
    }
    write_sealed(folder.sweep_file, record)


def save_params(path: Path, params: Params, lane: int) -> None:
    """Write one lane's parameters as an npz, each under its path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    write_arrays(path, {path_name(key): np.asarray(leaf[lane]) for key, leaf in leaves})


def load_params(path: Path, model: Model) -> Params:
    """The parameters of a cell that was run with `--keep-params`.

    Raises:
        ValueError: the file is damaged, or another model's.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    try:
        with np.load(path) as saved:
            params = jax.tree_util.tree_map_with_path(lambda key, _: saved[path_name(key)], shapes)
            more = set(saved.files) - {path_name(key) for key, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged, or another model's: {error}") from error
    if more:
        raise ValueError(f"{path} is another model's: it has {min(more)} besides")
    given, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (params, shapes))
    for (key, array), (_, leaf) in zip(given, wanted, strict=True):
        if array.shape != leaf.shape:
            raise ValueError(f"{path} is another model's: {path_name(key)} is {array.shape}, and must be {leaf.shape}")
    return params
