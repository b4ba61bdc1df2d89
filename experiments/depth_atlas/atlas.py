"""The atlas in words: each recipe at each depth in one, each recipe over all depths in a sentence, and the page."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..lab import finding
from ..lab.finding import Estimate, Prediction
from ..lab.headline import bar
from ..lab.results import Results
from ..lab.store import Json
from . import chart

STUCK = 0.05
"""Nats: a loss no further than this below the unigram entropy is that of counting single bytes."""

INDIFFERENT = 0.1
"""Nats: losses that differ by less than this over all depths do not depend on depth."""

COMPILE = 1.25
"""Times the compile time of four layers that the deepest may take."""


def points(results: Results) -> list[Json]:
    """One row for each recipe and depth: `Results.best`, and `word`.

    trained: below `headline.bar` at the best rate; slow: above it; stuck: no better than counting single bytes;
    diverged: at every rate; failed: raised; unfinished: under way.
    """
    return [{**row, "word": _word(row, results)} for row in results.best()]


def _word(row: Json, results: Results) -> str:
    loss = row["loss"]
    if loss is None:
        statuses = {c["status"] for c in results.cells if (c["recipe"], c["depth"]) == (row["recipe"], row["depth"])}
        return next(word for word in ("unfinished", "failed", "diverged") if word in statuses)
    if loss < bar(results):
        return "trained"
    return "slow" if loss < results.base["data"]["unigram"] - STUCK else "stuck"


def sentence(rows: Sequence[Json]) -> str:
    """A recipe's rows of `points`, shallow first, in a sentence: how deep it trains, and what depth does to it."""
    by_word: dict[str, list[int]] = {}
    for row in rows:
        by_word.setdefault(row["word"], []).append(row["depth"])
    parts = [f"{word} at {_list(depths)}" for word, depths in by_word.items()]
    trained = [row for row in rows if row["word"] == "trained"]
    if len(trained) > 2:
        losses = {row["depth"]: row["loss"] for row in trained}
        best, last = min(losses, key=lambda depth: losses[depth]), max(losses)
        if max(losses.values()) - losses[best] < INDIFFERENT:
            parts.append("indifferent to depth")
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

    The first ones from the papers' claims and a pilot with 100 layers, paired by seed at each recipe's own best rate;
    the rest exact: one number, without an interval.
    """
    best = {(row["recipe"], row["depth"]): row["cells"] for row in results.best()}
    stated = []

    def compare(one: str, other: str, depth: int, relation: Any, threshold: float) -> None:
        a, b = best.get((one, depth), []), best.get((other, depth), [])
        seeds = {cell["seed"] for cell in a} & {cell["seed"] for cell in b}
        if seeds:
            loss = [{cell["seed"]: cell["valid_loss"] for cell in cells} for cells in (a, b)]
            difference = Estimate.of([loss[0][seed] - loss[1][seed] for seed in sorted(seeds)])
            claim = f"{one} over {other} at {depth} layers, nats"
            stated.append(Prediction(claim=claim, found=difference, relation=relation, threshold=threshold))

    compare("deepnorm", "post_norm", 32, "below", -0.1)
    compare("pre_norm", "post_norm", 32, "below", -0.1)
    compare("no_residual", "pre_norm", 32, "above", 0.3)
    compare("deepnorm", "post_norm", 128, "below", -0.1)
    compare("deepnorm", "pre_norm", 1024, "below", -0.1)
    timed = [c for c in checks if c["compile_seconds"] and c["shallow_compile_seconds"]]
    if timed:
        ratios = [c["compile_seconds"] / c["shallow_compile_seconds"] for c in timed]
        claim = f"compile time of {timed[0]['depth']:,} layers over {timed[0]['shallow']}, mean over recipes"
        stated.append(Prediction(claim=claim, found=Estimate.of(ratios), relation="below", threshold=COMPILE))
    return stated


def write(results: Results, checks: Sequence[Json], *, quick: bool = False) -> Path:
    """Write the finding, beside the sweep's own files; returns its page.

    Args:
        results: of the sweep.
        checks: `deep_check.Check.json` of each recipe.
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
        results.folder.path / "atlas",
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
    tried = [f"{n} at {depth:,}" for depth, n in Counter(row["depth"] for row in rows).items()]
    warmup = setting["steps"] // 10 if setting["warmup"] is None else setting["warmup"]
    return f"""Decoders of width {setting["d_model"]} on {data["name"]}: {setting["steps"]} steps of {setting["batch"]}
windows of {setting["context"]} bytes, {setting["optimizer"]} with {warmup} steps of warm-up; each recipe at its own
best learning rate. Recipes by layers: {", ".join(tried)}. This is a small width and a short run: it says which recipes
start to learn at a depth, not which is best after a day.

A recipe is *trained* at a depth if it ends below {bar(results):.2f} nats, *stuck* if it does no better than counting
single bytes ({data["unigram"]:.2f}), *slow* between them, *diverged* if no rate ends well. It is *indifferent to depth*
if its losses over all depths differ by less than {INDIFFERENT} nats.

{finding.table([{"recipe": name, "what it did": text} for name, text in sentences.items()])}

{_edges(rows)}

## Cost, and the deepest

{_cost(checks)}"""


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
    return (
        f"A few training steps of {depth:,} layers at a constant rate, from the same start; memory is XLA's count of "
        f"temporary bytes in them under each rematerialisation; compiled without optimisation of machine code.\n\n"
        f"{table}"
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
