"""The atlas in words: each recipe at each depth in one, each recipe over all depths in a sentence, and the page."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from ..lab import finding
from ..lab.finding import Estimate, Prediction
from ..lab.headline import NO_GAIN, STUCK, bar, gain, trained, without_layers
from ..lab.results import Results, reported
from ..lab.store import Json
from . import chart

INDIFFERENT = 0.1
"""Nats: losses of trained depths that differ by less than this are not told apart."""

LONG = 800
"""Steps from which on depth is expected to pay; see `predictions`."""

COMPILE = 1.25
"""Times the compile time of four layers that the deepest may take."""


def points(results: Results) -> list[Json]:
    """One row for each recipe and depth: `Results.best`, with `word`, `seeds`, and `gain` over zero layers in nats.

    trained: below the recipe's own zero layers, see `headline.trained`; `NO_GAIN`: not so; stuck: not so either, and
    within `STUCK` below counting single bytes, or above; diverged: at every rate; failed: raised; unfinished: under
    way; no layers: at depth 0. Where no zero layers were run, trained: below `headline.bar`; slow: above it. The gain
    has an interval from two seeds on.
    """
    rows = []
    for row in results.best():
        change = gain(results, row)
        ends = {} if change is None else {"gain": change.mean, "gain_low": change.low, "gain_high": change.high}
        if change is not None and change.n < 2:
            ends |= {"gain_low": None, "gain_high": None}
        none = {"gain": None, "gain_low": None, "gain_high": None}
        rows.append({**row, "seeds": len(row["cells"]), "word": _word(row, results), **none, **ends})
    return rows


def _word(row: Json, results: Results) -> str:
    loss = row["loss"]
    if loss is None:
        statuses = {c["status"] for c in results.cells if (c["recipe"], c["depth"]) == (row["recipe"], row["depth"])}
        return next(word for word in ("unfinished", "failed", "diverged") if word in statuses)
    if row["depth"] == 0:
        return "no layers"
    if trained(results, row):
        return "trained"
    if loss >= results.base["data"]["unigram"] - STUCK:
        return "stuck"
    return "slow" if without_layers(results, row["recipe"]) is None else NO_GAIN


def sentence(rows: Sequence[Json]) -> str:
    """A recipe's rows of `points`, shallow first, in a sentence: how deep it trains, and what depth does to it."""
    by_word: dict[str, list[int]] = {}
    for row in rows:
        if row["depth"] == 0:
            continue
        by_word.setdefault(row["word"], []).append(row["depth"])
    parts = [f"{word} at {_list(depths)}" for word, depths in by_word.items()]
    trained = [row for row in rows if row["word"] == "trained"]
    if len(trained) > 2:
        losses = {row["depth"]: row["loss"] for row in trained}
        best, last = min(losses, key=lambda depth: losses[depth]), max(losses)
        if max(losses.values()) - losses[best] < INDIFFERENT:
            parts.append(f"within {INDIFFERENT:g} nats of each other there")
        elif losses[last] - losses[best] < INDIFFERENT / 2:
            parts.append(f"better with depth ({losses[min(losses)]:.2f} to {losses[last]:.2f})")
        elif best == min(losses):
            parts.append(f"worse with depth ({losses[best]:.2f} to {losses[last]:.2f})")
        else:
            parts.append(f"best at {best} ({losses[best]:.2f}; {losses[last]:.2f} at {last})")
    return ", ".join(parts)


def _list(depths: Sequence[int]) -> str:
    return ", ".join(f"{depth:,}" for depth in depths)


def predictions(results: Results, checks: Sequence[Json]) -> list[Prediction]:
    """Stated beforehand; those whose cells are not there are left out.

    The first ones from the papers' claims and a pilot with 100 layers, those about depth from a pilot of pre_norm with
    seed 0 (800 steps: 2.46, 2.11, 2.07 with 0, 1, 8 layers; 3,200: 2.44, 1.85, 1.74), paired by seed at each recipe's
    own best rate; the last exact: one number, without an interval.
    """
    best = {(row["recipe"], row["depth"]): row["cells"] for row in results.best()}
    stated = []

    def predict(one: Any, other: Any, claim: str, relation: Any, threshold: float) -> None:
        a, b = best.get(one, []), best.get(other, [])
        seeds = {cell["seed"] for cell in a} & {cell["seed"] for cell in b}
        if seeds:
            loss = [{cell["seed"]: reported(cell) for cell in cells} for cells in (a, b)]
            difference = Estimate.of([loss[0][seed] - loss[1][seed] for seed in sorted(seeds)])
            stated.append(Prediction(claim=claim, found=difference, relation=relation, threshold=threshold))

    def compare(one: str, other: str, depth: int, relation: Any, threshold: float) -> None:
        claim = f"{one} over {other} at {depth} layers, nats"
        predict((one, depth), (other, depth), claim, relation, threshold)

    def deepen(name: str, deep: int, shallow: int, relation: Any, threshold: float) -> None:
        claim = f"{name} with {deep} layers over {shallow}, nats"
        predict((name, deep), (name, shallow), claim, relation, threshold)

    compare("deepnorm", "post_norm", 32, "below", -0.1)
    compare("pre_norm", "post_norm", 32, "below", -0.1)
    compare("no_residual", "pre_norm", 32, "above", 0.3)
    compare("deepnorm", "post_norm", 128, "below", -0.1)
    compare("deepnorm", "pre_norm", 1024, "below", -0.1)
    if results.base["setting"]["steps"] >= LONG:
        for name in ("pre_norm", "deepnorm", "rezero", "complete_p"):
            deepen(name, 1, 0, "below", -0.1)
            deepen(name, 8, 1, "below", -0.02)
            deepen(name, 32, 8, "below", 0.0)
        deepen("post_norm", 32, 8, "above", 0.1)
        deepen("no_residual", 32, 1, "above", 0.1)
    if ratios := compile_ratios(checks):
        claim = f"compile time of {checks[0]['depth']:,} layers over {checks[0]['shallow']}, mean over recipes"
        stated.append(Prediction(claim=claim, found=Estimate.of(ratios), relation="below", threshold=COMPILE))
    return stated


def compile_ratios(checks: Sequence[Json]) -> list[float]:
    """Compile time of the deepest over that of the shallow, of recipes checked at the depth that most were."""
    timed = [c for c in checks if c["compile_seconds"] and c["shallow_compile_seconds"]]
    deepest = max((check["depth"] for check in timed), default=0)
    return [c["compile_seconds"] / c["shallow_compile_seconds"] for c in timed if c["depth"] == deepest]


def write(results: Results, checks: Sequence[Json], out: Path, *, quick: bool = False) -> Path:
    """Write the finding and results.csv; returns the finding's page.

    Args:
        results: of the sweep.
        checks: `deep_check.Check.json` of each recipe.
        out: folder of the finding.
        quick: whether the numbers mean nothing.
    """
    results.save()
    rows = points(results)
    figures = {
        "depths": chart.depths(rows, results.base["data"]),
        "rates": chart.rates(rows),
        "deep": chart.deep(results, rows),
        "cost": chart.cost(checks),
    }
    curves = [
        {"kind": "curve", "cell": cell["cell"], **{name: cell[name] for name in ("recipe", "depth", "learning_rate")}}
        | {"points": [point for point in results.curve(cell) if point["valid_loss"] is not None]}
        for cell in chart.deep_cells(results, rows)
    ]
    point_rows = [{"kind": "point", **{name: value for name, value in row.items() if name != "cells"}} for row in rows]
    return finding.write(
        out,
        question="Which recipe for which depth?",
        setting={**results.base["setting"], "data": results.base["data"]},
        provenance=results.provenance(),
        predictions=predictions(results, checks),
        rows=[*point_rows, *({"kind": "check", **check} for check in checks), *curves],
        figures={name: figure for name, figure in figures.items() if figure is not None},
        text=finding.QUICK * quick + _text(results, rows, checks),
    )


def _text(results: Results, rows: Sequence[Json], checks: Sequence[Json]) -> str:
    setting, data = results.base["setting"], results.base["data"]
    sentences = {name: sentence([row for row in rows if row["recipe"] == name]) for name in results.recipes}
    warmup = setting["steps"] // 10 if setting["warmup"] is None else setting["warmup"]
    floors = [row["loss"] for row in rows if row["depth"] == 0 and row["loss"] is not None]
    if floors:
        trained_means = (
            f"ends below its own stack of zero layers ({min(floors):.2f} to {max(floors):.2f} nats by recipe), with "
            "several seeds by more than the 95 % interval of the paired differences, with one seed without any "
            f"interval; *{NO_GAIN}* if it does not"
        )
    else:
        trained_means = f"ends below {bar(results):.2f} nats; *slow* if it does not"
    return f"""Decoders of width {setting["d_model"]} on {data["name"]}: {setting["steps"]} steps of {setting["batch"]}
windows of {setting["context"]} bytes ({setting["steps"] * setting["batch"] * setting["context"]:,} in all),
{setting["optimizer"]} with {warmup} steps of warm-up; each recipe at the best of the learning rates tried
({_rates(results)}), {_seeds(rows)}. This is a small width and a short run: it says which recipes start to learn at a
depth, not which is best after a day.

A recipe is *trained* at a depth if it {trained_means}. It is *stuck* if its loss is less than {STUCK:g} nats below that
of counting single bytes ({data["unigram"]:.2f}), or above it; *diverged* if it diverged at every rate. {_noise(rows)}

{finding.table(_by_depth(rows))}

The lowest loss is the best of several recipes: it is lower than that of a recipe chosen beforehand would be.

{finding.table([{"recipe": name, "what it did": text} for name, text in sentences.items()])}

{_edges(rows)}

## Cost, and the deepest

{_cost(checks)}"""


def _rates(results: Results) -> str:
    """Learning rates tried, by depth."""
    by_depth: dict[tuple[float, ...], list[int]] = {}
    for depth in results.depths:
        rates = sorted({cell["learning_rate"] for cell in results.cells if cell["depth"] == depth})
        by_depth.setdefault(tuple(rates), []).append(depth)
    return "; ".join(f"{', '.join(f'{r:g}' for r in rates)} at {_list(to)} layers" for rates, to in by_depth.items())


def _seeds(rows: Sequence[Json]) -> str:
    """Number of seeds, by depth."""
    recipes = Counter((row["seeds"], row["depth"]) for row in rows if row["seeds"] > 1)
    depths: dict[tuple[int, int], list[int]] = {}
    for (seeds, depth), count in recipes.items():
        depths.setdefault((seeds, count), []).append(depth)
    said = [f"{seeds} seeds at {_list(at)} layers for {count} recipes" for (seeds, count), at in depths.items()]
    return ", ".join([*said, "one seed elsewhere"]) if said else "one seed"


def spread(rows: Sequence[Json]) -> float | None:
    """Standard deviation over seeds of the gain over zero layers, pooled; None where no depth has several seeds.

    Args:
        rows: of `points`; those that are stuck are left out, for they end alike.
    """
    learned = [row for row in rows if row["gain_low"] is not None and row["word"] != "stuck"]
    if not learned:
        return None
    halves = [((row["gain_high"] - row["gain_low"]) / 2, row["seeds"]) for row in learned]
    deviations = [half * math.sqrt(n) / stats.t.ppf(0.975, n - 1) for half, n in halves]
    return math.sqrt(sum(deviation**2 for deviation in deviations) / len(deviations))


def _noise(rows: Sequence[Json]) -> str:
    """Sentence on how much one seed says."""
    one, deviation = [row for row in rows if row["word"] == "trained" and row["seeds"] == 1], spread(rows)
    if deviation is None or not one:
        return ""
    near = [row for row in one if row["gain"] is not None and row["gain"] > -2 * deviation]
    return (
        "The difference to zero layers has a standard deviation over seeds of "
        f"{deviation:.2f} nats (pooled over the recipes and depths with several seeds that are not stuck). Of the "
        f"{len(one)} cases of a recipe and a depth that trained with one seed, {len(near)} are less than twice that "
        "below zero layers: another seed could have put them above."
    )


def _by_depth(rows: Sequence[Json]) -> list[Json]:
    """Row for each depth: how many recipes did what, and the lowest loss."""
    words = [word for word in ("trained", "slow", NO_GAIN, "stuck", "diverged") if any(r["word"] == word for r in rows)]
    lines = []
    for depth in sorted({row["depth"] for row in rows}):
        alike = [row for row in rows if row["depth"] == depth]
        best = min((row for row in alike if row["loss"] is not None), key=lambda row: row["loss"], default=None)
        counts = Counter(row["word"] for row in alike)
        lines.append(
            {
                "layers": f"{depth:,}",
                "recipes": len(alike),
                **{word: counts[word] if depth else "" for word in words},
                "lowest loss": "" if best is None else f"{best['loss']:.2f} ({best['recipe']})",
            }
        )
    return lines


def _edges(rows: Sequence[Json]) -> str:
    """List of the cases in which the best rate is the end of those tried."""
    at_edge: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        if row["edge"]:
            at_edge.setdefault((row["depth"], row["edge"]), []).append(row["recipe"])
    if not at_edge:
        return "No best learning rate is the end of those tried."
    parts = [f"- {depth:,} layers, the {edge}: {', '.join(names)}" for (depth, edge), names in sorted(at_edge.items())]
    return "Where the best learning rate is the end of those tried, a wider grid may do better:\n\n" + "\n".join(parts)


def _cost(checks: Sequence[Json]) -> str:
    if not checks:
        return "Not checked yet."
    depth, shallow = checks[0]["depth"], checks[0]["shallow"]
    lines = []
    for check in checks:
        memory = check["temp_bytes"] or {}
        moved = f"{check['losses'][0]:.2f} to {check['losses'][-1]:.2f}" if check["losses"] else ""
        lines.append(
            {
                "recipe": check["recipe"] + ("" if check["depth"] == depth else f" ({check['depth']} layers)"),
                "first steps": check["message"] or check["status"],
                "loss": moved,
                f"compile s, {shallow} layers": _number(check["shallow_compile_seconds"], ".1f"),
                f"compile s, {depth:,}": _number(check["compile_seconds"], ".1f"),
                "step s": _number(check["step_seconds"], ".2f"),
                **{f"MiB, {remat}": _number(size / 2**20, ".1f") for remat, size in memory.items()},
            }
        )
    names = max(lines, key=len)
    table = finding.table([{name: line.get(name, "") for name in names} for line in lines])
    ratios = compile_ratios(checks)
    times = (
        f" Compile times of {len(ratios)} recipes were taken (the other programs came from a cache): {depth:,} "
        f"layers take {min(ratios):.2f} to {max(ratios):.2f} times as long as {shallow}."
        if ratios
        else ""
    )
    return (
        f"A few training steps of {depth:,} layers at a constant rate, from the same start: whether they stay finite, "
        "and the loss at the first and at the last; MiB are XLA's count of temporary memory in them under each "
        "rematerialisation; compiled without optimisation of machine code. **Times are a rough guide**: wall seconds, "
        "each taken once, with nothing to keep other work off the machine, which can make a time several times as "
        f"long. They do not rank the recipes.{times}\n\n{table}"
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
