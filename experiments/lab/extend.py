"""Learning rates that a sweep adds to its grid, so that the best one of a recipe and depth is no end of those tried.

The grid is continued on both sides in its own steps. As long as the best rate has a neighbour that was not tried, that
one is next; when it has none, the rates halfway to its neighbours are, once. Where all end alike, lower ones are
tried first.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .grid import Cell, Grid
from .results import choice

REACH = 3
"""Greatest number of steps by which the grid is continued on either side."""

FLAT = 0.01
"""Nats: where all rates end within this of each other (and above it), none is better. All may be too high, for deep
stacks more often than too low, so lower ones are tried first."""

MOST = 2 * REACH + 2
"""Greatest number of rates that are added for a recipe and depth: to both ends, and two halfway."""


def ladder(rates: Iterable[float]) -> list[float]:
    """The rates of a grid, continued on both sides; a single rate is a choice, and stays alone.

    Args:
        rates: of the grid.
    """
    grid = sorted(set(rates))
    if len(grid) < 2:
        return grid
    added = (*_beyond(grid[0], grid[1]), *_beyond(grid[-1], grid[-2]))
    return sorted({*grid, *(rate for rate in added if 0 < rate < math.inf)})


def following(rates: Iterable[float], losses: Mapping[float, float]) -> list[float]:
    """Rates to try next; none when all is done.

    Args:
        rates: of the grid.
        losses: {rate: mean loss} of every rate tried, infinite where a run diverged. Where all did, or the others are
            alike within `FLAT`, lower ones follow, as far as they go.
    """
    steps = ladder(rates)
    if len(steps) < 2:
        return []
    tried = [rate for rate in steps if rate in losses]
    best = min(tried, key=lambda rate: losses[rate])
    finite = [loss for loss in losses.values() if loss < math.inf]
    flat = losses[best] > FLAT and all(loss - losses[best] < FLAT for loss in finite)
    if flat and steps[0] not in losses:
        best = tried[0]
    at = steps.index(best)
    neighbours = steps[max(at - 1, 0) : at] + steps[at + 1 : at + 2]
    untried = [rate for rate in neighbours if rate not in losses]
    if untried or flat or losses[best] == math.inf:
        return untried
    return [rate for rate in (_rounded(math.sqrt(best * other)) for other in neighbours) if rate not in losses]


def cells(grid: Grid, ran: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """Cells to run next, of every recipe and depth of the grid whose cells have ended, none of them in a failure.

    Args:
        grid: whose rates are continued.
        ran: a row for each cell of the folder: recipe, depth, learning_rate, seed, status and losses.
    """
    rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in ran:
        if row["seed"] < grid.seeds:
            rows.setdefault((row["recipe"], row["depth"]), []).append(row)
    for depth in sorted(set(grid.depths)):
        for recipe in grid.recipes:
            for rate in _following(grid, rows.get((recipe, depth), [])):
                for seed in range(grid.seeds):
                    yield Cell(recipe=recipe, depth=depth, learning_rate=rate, seed=seed)


def _following(grid: Grid, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Rates to try next at one recipe and depth."""
    by_rate: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "failed":
            return []
        if row["status"] != "unfinished":
            by_rate.setdefault(row["learning_rate"], []).append(row)
    losses = {rate: _mean(ended) for rate, ended in by_rate.items() if len(ended) == grid.seeds}
    return following(grid.learning_rates, losses) if set(grid.learning_rates) <= set(losses) else []


def _beyond(end: float, inside: float) -> Iterator[float]:
    """Rates beyond an end of a grid, in the step with which it ends."""
    rate = end
    for _ in range(REACH):
        rate *= end / inside
        yield _rounded(rate)


def _mean(rows: Sequence[Mapping[str, Any]]) -> float:
    losses = [loss for row in rows if row["status"] == "ok" and (loss := choice(row)) is not None]
    return sum(losses) / len(rows) if len(losses) == len(rows) else math.inf


def _rounded(rate: float) -> float:
    """Three digits, so that a rate has a name that people can read."""
    return float(f"{rate:.3g}")
