"""The committed results as pages read them."""

import csv
import functools
from collections.abc import Sequence
from typing import Any

from ..lab.committed import RESULTS, result
from ..lab.finding import Estimate
from ..lab.results import reported
from ..lab.store import Json


@functools.cache
def cells() -> tuple[Json, ...]:
    """Every run of the depth atlas."""
    with open(RESULTS / "depth_atlas" / "results.csv") as file:
        return tuple({name: _number(value) for name, value in row.items()} for row in csv.DictReader(file))


def _number(word: str) -> Any:
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        return word or None


def points(recipe: str) -> list[Json]:
    """A recipe in the depth atlas: one row for each depth, shallow first, at its best learning rate.

    Fields: those of the atlas (depth, learning_rate, loss, edge, word), `estimate` over the seeds at that rate (None if
    no rate has a mean), and `diverged`, the rates at which a run did.
    """
    found = []
    for row in result("depth_atlas")["rows"]:
        if row["kind"] == "point" and row["recipe"] == recipe:
            tried = [cell for cell in cells() if (cell["recipe"], cell["depth"]) == (recipe, row["depth"])]
            losses = [reported(cell) for cell in tried if cell["learning_rate"] == row["learning_rate"]]
            diverged = sorted({cell["learning_rate"] for cell in tried if cell["status"] == "diverged"})
            estimate = None if row["loss"] is None else Estimate.of(losses)
            found.append({**row, "estimate": estimate, "diverged": diverged})
    return sorted(found, key=lambda row: row["depth"])


def depths() -> list[int]:
    """Depths of the depth atlas, shallow first."""
    return sorted({row["depth"] for row in result("depth_atlas")["rows"] if row["kind"] == "point"})


def unigram() -> float:
    """Loss of counting single bytes, in the depth atlas."""
    return result("depth_atlas")["setting"]["data"]["unigram"]


def without_layers(recipe: str) -> float:
    """Loss of a recipe without layers, in the depth atlas."""
    return next(row["loss"] for row in points(recipe) if row["depth"] == 0)


def check(recipe: str) -> Json | None:
    """Cost of a recipe's first steps at the greatest depth, in the depth atlas; None if it was not measured."""
    rows = (row for row in result("depth_atlas")["rows"] if row["kind"] == "check" and row["recipe"] == recipe)
    return next(rows, None)


def size(recipe: str, depth: int) -> Json | None:
    """Parameters, and FLOPs of a run, of a recipe at a depth of the atlas."""
    return next((cell for cell in cells() if (cell["recipe"], cell["depth"]) == (recipe, depth)), None)


def lengths(encodings: Sequence[str]) -> list[Json]:
    """Rows of these encodings in the experiment on lengths beyond the trained one."""
    return [row for row in result("length_extrapolation")["rows"] if row["encoding"] in encodings]


def others(name: str, field: str, but: Sequence[str]) -> list[str]:
    """Experiments with rows of this recipe or encoding, other than some.

    Args:
        name: of the recipe or encoding.
        field: that holds it in the rows.
        but: experiments that are left out.
    """
    folders = sorted(path.parent.name for path in RESULTS.glob("*/result.json") if path.parent.name not in but)
    return [each for each in folders if any(row.get(field) == name for row in result(each).get("rows", []))]
