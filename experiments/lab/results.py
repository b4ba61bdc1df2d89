"""A run's folder read back: tables as lists of dicts, for a notebook, a chart or a file."""

import collections
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import environment
from .finding import Estimate
from .store import Folder, Json, read_rows, write

COLUMNS: tuple[str, ...] = (
    "cell",
    "recipe",
    "depth",
    "learning_rate",
    "seed",
    "status",
    "message",
    "params",
    "tokens",
    "flops",
    "train_loss",
    "valid_loss",
    "choice_loss",
    "report_loss",
    "best_valid_loss",
    "best_step",
    "diverged_step",
    "compile_seconds",
    "step_seconds",
    "temp_bytes",
    "origin",
)
"""Columns of results.csv."""

SMOOTHING = 10
"""Training losses of this many steps make one point of a curve."""


@dataclass(frozen=True)
class Results:
    """Results of a run, as its folder holds them. Make one with `Results.of`.

    Args:
        folder: where it was read.
        base: what all cells share: setting, data, versions, device.
        cells: one row for each cell, with the columns of results.csv and its config's; the status of one that has not
            ended is `unfinished`.
    """

    folder: Folder
    base: Json
    cells: list[Json]

    @classmethod
    def of(cls, path: str | Path, wanted: Callable[[Json], bool] = lambda config: True) -> "Results":
        """Read a folder.

        Args:
            path: of the folder.
            wanted: tells from a cell's config whether it is read.

        Raises:
            ValueError: there is no sweep in it.
        """
        folder = Folder(path)
        base = folder.base()
        if base is None:
            raise ValueError(f"{path} holds no sweep")
        cells = []
        for config in filter(wanted, folder.configs()):
            summary = folder.summary(config["cell"]) or {"status": "unfinished", "message": ""}
            cells.append({**dict.fromkeys(COLUMNS), **config, **summary, "origin": environment.origin(config, base)})
        order = [group["lanes"][0]["recipe"] for group in base.get("groups", {}).values()]
        order = list(dict.fromkeys([*order, *(cell["recipe"] for cell in cells)]))
        cells.sort(key=lambda c: (c["depth"], order.index(c["recipe"]), c["learning_rate"], c["seed"]))
        return cls(folder, base, cells)

    @cached_property
    def recipes(self) -> list[str]:
        """Names, in the order in which they were first asked for."""
        return list(dict.fromkeys(cell["recipe"] for cell in self.cells))

    @cached_property
    def depths(self) -> list[int]:
        """Shallow first."""
        return sorted({cell["depth"] for cell in self.cells})

    def provenance(self) -> Json:
        """Origin of the numbers, for a result that is made of them; `origins` counts the cells of each."""
        commands = dict.fromkeys(entry["command"] for entry in self.base.get("commands", []))
        seeds = (cell["seed"] for cell in self.cells)
        made = environment.provenance(" && ".join(commands), seeds=seeds, recorded=self.base)
        return {**made, "origins": dict(collections.Counter(cell["origin"] for cell in self.cells))}

    def metrics(self, cell: Json) -> list[Json]:
        """The rows of metrics.jsonl."""
        return read_rows(self.folder.cell(cell["cell"]) / "metrics.jsonl")

    def layers(self, cell: Json) -> list[Json]:
        """The rows of layers.jsonl."""
        return read_rows(self.folder.cell(cell["cell"]) / "layers.jsonl")

    def best(self) -> list[Json]:
        """One row for each recipe and depth, at its best learning rate: the lowest mean over seeds of `choice`.

        A rate at which any seed diverged or failed has no mean, and one with fewer seeds than others is left out.
        Fields: recipe, depth, learning_rate, loss (the mean of `reported`; None if no rate has a mean), low and high
        (its 95 % interval over seeds; None for one seed), edge ("lowest", "highest" or None: where the best rate is the
        end of those tried), and cells.
        """
        return list(self._best)

    @cached_property
    def _best(self) -> list[Json]:
        rows = []
        for recipe in self.recipes:
            for depth in self.depths:
                cells = [c for c in self.cells if c["recipe"] == recipe and c["depth"] == depth]
                if cells:
                    rows.append({"recipe": recipe, "depth": depth, **_best_rate(cells)})
        return rows

    def curve(self, cell: Json) -> list[Json]:
        """Points of a cell's curve: step, tokens, flops, valid_loss, and train_loss as a mean of a few steps."""
        metrics = self.metrics(cell)
        steps = max((row["step"] for row in metrics), default=0) or 1
        points, recent = [], collections.deque(maxlen=SMOOTHING)
        for row in metrics:
            if row["train_loss"] is not None:
                recent.append(row["train_loss"])
            if row["step"] % SMOOTHING and row["valid_loss"] is None:
                continue
            share = row["step"] / steps
            points.append(
                {
                    "step": row["step"],
                    "tokens": share * (cell["tokens"] or 0),
                    "flops": share * (cell["flops"] or 0),
                    "train_loss": sum(recent) / len(recent) if recent else None,
                    "valid_loss": row["valid_loss"],
                }
            )
        return points

    def csv(self) -> str:
        """results.csv."""
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.cells)
        return out.getvalue()

    def save(self) -> None:
        """Write results.csv."""
        write(self.folder.path / "results.csv", self.csv())


def choice(cell: Mapping[str, Any]) -> float | None:
    """Final loss of a cell on the validation windows by which its learning rate is chosen; on all, where it is old."""
    return cell["valid_loss"] if cell.get("choice_loss") is None else cell["choice_loss"]


def reported(cell: Mapping[str, Any]) -> float:
    """Final loss of a cell on the other half of the validation windows; on all of them, where it is old."""
    return cell["valid_loss"] if cell.get("report_loss") is None else cell["report_loss"]


def table(*results: Results) -> list[Json]:
    """A row for each cell of one run or several: the columns of results.csv, every field of the setting, and the last
    value of each metric of one's own. `pandas.DataFrame` and `polars.DataFrame` take it as it is.

    Args:
        *results: of the runs, such as those of `sweep_plan.vary`.
    """
    names = {name for one in results for cell in one.cells for name in cell.get("metrics", {})}
    return [
        {
            **one.base["setting"],
            **{name: cell[name] for name in COLUMNS},
            **{name: cell.get("metrics", {}).get(name) for name in sorted(names)},
        }
        for one in results
        for cell in one.cells
    ]


def _rates_to_compare(cells: Sequence[Json]) -> list[float]:
    """The rates at which most seeds were run, lowest first: luck would choose among means of few and of many."""
    seeds = collections.Counter(cell["learning_rate"] for cell in cells)
    return sorted(rate for rate, n in seeds.items() if n == max(seeds.values()))


def _best_rate(cells: Sequence[Json]) -> Json:
    groups = {rate: [cell for cell in cells if cell["learning_rate"] == rate] for rate in _rates_to_compare(cells)}
    rates = list(groups)
    chosen = {rate: [choice(cell) for cell in same if cell["status"] == "ok"] for rate, same in groups.items()}
    means = {
        rate: float(np.mean([loss for loss in losses if loss is not None]))
        for rate, losses in chosen.items()
        if len(losses) == len(groups[rate]) and None not in losses
    }
    if not means:
        return {"learning_rate": None, "loss": None, "low": None, "high": None, "edge": None, "cells": []}
    best = min(means, key=lambda rate: means[rate])
    edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(best)
    loss = Estimate.of([reported(cell) for cell in groups[best]])
    ends = {"low": None, "high": None} if loss.n < 2 else {"low": loss.low, "high": loss.high}
    return {"learning_rate": best, "loss": loss.mean, **ends, "edge": edge, "cells": groups[best]}
