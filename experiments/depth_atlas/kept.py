"""A finding of the atlas read back from its own files, when the cells of the run are gone."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from ..lab.results import Results
from ..lab.store import Folder, Json, read


@dataclass(frozen=True)
class Kept(Results):
    """Results whose cells are the rows of results.csv, and whose curves are those of result.json.

    Args:
        curves: points by cell.
    """

    curves: dict[str, list[Json]]

    def curve(self, cell: Json) -> list[Json]:
        return self.curves.get(cell["cell"], [])


def there(path: str | Path) -> bool:
    """True if a folder holds a finding, and no sweep."""
    folder = Path(path)
    return Folder(folder).base() is None and (folder / "result.json").is_file() and (folder / "results.csv").is_file()


def load(path: str | Path) -> tuple[Kept, list[Json]]:
    """The results and the checks of a finding.

    Args:
        path: its folder.

    Raises:
        ValueError: result.json is damaged.
    """
    folder = Path(path)
    result = read(folder / "result.json") or {}
    setting, dirty = dict(result["setting"]), "" if result["clean_tree"] else "-dirty"
    base = {
        "data": setting.pop("data"),
        "setting": setting,
        "versions": {**result["versions"], "commit": result["commit"] + dirty},
        "device": result["device"],
        "commands": [{"command": command} for command in result["command"].split(" && ")],
    }
    with open(folder / "results.csv") as file:
        cells = [{name: _value(name, word) for name, word in row.items()} for row in csv.DictReader(file)]
    rows = {kind: [row for row in result["rows"] if row["kind"] == kind] for kind in ("check", "curve")}
    checks = [{name: value for name, value in row.items() if name != "kind"} for row in rows["check"]]
    curves = {row["cell"]: row["points"] for row in rows["curve"]}
    return Kept(Folder(folder), base, cells, curves), checks


def _value(name: str, word: str) -> str | float | int | None:
    """The value of a column of results.csv."""
    if name in ("cell", "recipe", "status", "message", "origin"):
        return word
    return json.loads(word) if word else None
