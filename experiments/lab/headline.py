"""The result of a sweep, in sentences."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from .finding import Estimate
from .results import Results, reported
from .store import Json

TRAINED_SHARE = 0.25
"""A run counts as trained if it goes this share of the way from the unigram to the bigram entropy, or further."""
NO_GAIN = "no better than no layers"
"""Word for a depth at which a recipe learns, and its layers add nothing that can be told."""
STUCK = 0.05
"""Nats: with a loss less than this below that of counting single bytes, or above it, a recipe is stuck."""
MOST_NAMED = 4
"""Points at the end of the grid that are named one by one."""


def bar(results: Results) -> float:
    """The loss below which a run counts as trained, in nats."""
    data = results.base["data"]
    below = data["bigram"] if data["bigram"] is not None else 0.6 * data["unigram"]
    return data["unigram"] - TRAINED_SHARE * (data["unigram"] - below)


def without_layers(results: Results, recipe: str) -> Json | None:
    """The row of `Results.best` with zero layers of a recipe; None if there is none that ended."""
    rows = (row for row in results.best() if (row["recipe"], row["depth"]) == (recipe, 0))
    return next((row for row in rows if row["loss"] is not None), None)


def gain(results: Results, row: Json) -> Estimate | None:
    """Loss of a row of `Results.best` less that of the recipe's zero layers, paired by seed; None without either."""
    floor = without_layers(results, row["recipe"])
    if floor is None or row["loss"] is None or row["depth"] == 0:
        return None
    return difference(row, floor)


def difference(one: Json, other: Json) -> Estimate:
    """Loss of a row of `Results.best` less that of another, paired by seed where they have seeds in common."""
    losses = {cell["seed"]: reported(cell) for cell in other["cells"]}
    pairs = [reported(cell) - losses[cell["seed"]] for cell in one["cells"] if cell["seed"] in losses]
    return Estimate.of(pairs or [one["loss"] - other["loss"]])


def interval(low: float | None, high: float | None, form: str = ".2f") -> str:
    """An interval in brackets, behind a number; nothing where there is none."""
    return "" if low is None or high is None or not math.isfinite(high - low) else f" [{low:{form}}, {high:{form}}]"


def noise(results: Results) -> str:
    """Sentences on how far the reported losses depend on which windows they are measured on, and on the seeds."""
    errors, gains = [], []
    for row in results.best():
        floor = without_layers(results, row["recipe"])
        if floor is None or row["loss"] is None or row["depth"] == 0:
            continue
        batches = {cell["seed"]: cell.get("report_losses") or [] for cell in floor["cells"]}
        for cell in row["cells"]:
            pairs = list(zip(cell.get("report_losses") or [], batches.get(cell["seed"], []), strict=False))
            if len(pairs) > 1:
                errors.append(np.std([a - b for a, b in pairs], ddof=1) / math.sqrt(len(pairs)))
        if (change := difference(row, floor)).n > 1:
            gains.append((change.high - change.low) / 2 * math.sqrt(change.n) / stats.t.ppf(0.975, change.n - 1))
    if not errors:
        return ""
    error, setting = float(np.mean(errors)), results.base["setting"]
    windows = setting["eval_batches"] // 2 * setting["batch"]
    text = (
        f"Losses are measured on {windows} windows of validation data, and rates chosen on as many others. That there "
        f"are no more puts a standard error of {error:.3f} nats on a difference to zero layers"
    )
    if not gains:
        return f"{text}; with one seed, what another seed would change is not known."
    spread = math.sqrt(np.mean(np.square(gains)))
    return f"{text}; that of seeds is {spread:.3f}."


def trained(results: Results, row: Json) -> bool:
    """True if a row of `Results.best` counts as trained.

    Where the recipe has zero layers to compare with: below them, with several seeds by more than the 95 % interval of
    the paired differences. Elsewhere: below `bar`.
    """
    if row["loss"] is None or row["depth"] == 0:
        return False
    change = gain(results, row)
    if change is None:
        return row["loss"] < bar(results)
    return change.mean < 0 if change.n < 2 else change.high < 0


def rule(results: Results) -> str:
    """The rule by which a recipe "trains", in a sentence."""
    if all(without_layers(results, recipe) for recipe in results.recipes):
        seeds = max(len(row["cells"]) for row in results.best())
        more = " by more than the 95 % interval of seeds paired" if seeds > 1 else " (one seed: without an interval)"
        return (
            f"A recipe “trains” at a depth if it ends below its own stack of zero layers{more}. Every recipe is judged "
            "at its own best learning rate, with the same data, steps and warm-up."
        )
    return (
        f"A recipe “trains” at a depth if its best learning rate ends below {bar(results):.2f} nats, clearly better "
        f"than counting single tokens ({results.base['data']['unigram']:.2f}). Every recipe is judged at its own best "
        "learning rate, with the same data, steps and warm-up."
    )


def sentences(results: Results) -> list[str]:
    """Sentences on the best at the greatest depth, how deep each recipe trains, and what to be careful about."""
    best = results.best()
    lines = [_ranking([row for row in best if row["depth"] == results.depths[-1]])] if len(results.recipes) > 1 else []
    lines += [_recipe([row for row in best if row["recipe"] == recipe], results) for recipe in results.recipes]
    edges = [f"{row['recipe']} at depth {row['depth']} (the {row['edge']})" for row in best if row["edge"]]
    if edges:
        lines.append(
            f"The best learning rate is the end of those tried for {_listed(edges)}: a wider grid may do better there "
            "(triangles below)."
        )
    unfinished = sum(cell["status"] == "unfinished" for cell in results.cells)
    return [*lines, f"{unfinished} cells have not ended yet."] if unfinished else lines


def _listed(words: Sequence[str]) -> str:
    """The words, or the first few and how many more."""
    if len(words) > MOST_NAMED:
        return f"{', '.join(words[:MOST_NAMED])} and {len(words) - MOST_NAMED} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _ranking(rows: Sequence[Json]) -> str:
    ended = sorted((row for row in rows if row["loss"] is not None), key=lambda row: row["loss"])
    if not ended:
        return f"At depth {rows[0]['depth']} no recipe trains." if rows else "Nothing has ended yet."
    said = [f"{row['recipe']} {row['loss']:.2f}{interval(row['low'], row['high'])}" for row in ended]
    for i, change in enumerate((difference(row, ended[0]) for row in ended[1:]), 1):
        said[i] += "" if change.n < 2 else f" ({change.mean:+.2f}{interval(change.low, change.high)})"
    rest = f", then {', '.join(said[1:])}" if len(said) > 1 else ""
    return f"At the greatest depth, {ended[0]['depth']} layers, the lowest loss is {said[0]} nats{rest}."


def _recipe(rows: Sequence[Json], results: Results) -> str:
    name, floor = rows[0]["recipe"], without_layers(results, rows[0]["recipe"])
    rows = [row for row in rows if row["depth"] > 0]
    depths = ", ".join(str(row["depth"]) for row in rows)
    none = "" if floor is None else f" (zero layers: {floor['loss']:.2f})"
    well = [row for row in rows if trained(results, row)]
    if not well:
        return f"{name} trains at none of the depths tried ({depths}){none}."
    deepest, lowest = well[-1], min(well, key=lambda row: row["loss"])
    beyond = [row for row in rows if row["depth"] > deepest["depth"]]
    states = [
        f"{row['depth']} ({'no rate ends well' if row['loss'] is None else format(row['loss'], '.2f')})"
        for row in beyond
    ]
    reach = f"not at {', '.join(states)}" if beyond else "the greatest tried"
    text = f"{name} trains up to depth {deepest['depth']}, {reach}{none}"
    if len(well) > 1:
        where = "there" if lowest is deepest else f"at depth {lowest['depth']}"
        text += f"; its lowest loss, {lowest['loss']:.2f} nats, is {where}"
    return text + "."
