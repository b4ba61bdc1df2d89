"""Is it the learned gains of norms on the skip path that keep deep stacks from learning?

    python -m experiments.norm_gains

Post-norm, DeepNorm and KEEL have a norm on the skip path of every sublayer, each with a scale and a bias that are
learned: with 128 layers, 256 of them lie between the embedding and the head. Each recipe is trained as published, and
with norms that learn nothing; so is pre-norm, as the control, whose skip path has no norm. Every one at the best of
learning rates that are added until the best is no end of those tried. Killed, the same command goes on.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import altair as alt

import stackjax as sj
from stackjax.recipe import Recipe

from .lab import chart, command_line, data, finding, names, progress
from .lab.device_pool import best_at_once
from .lab.finding import Estimate, Prediction
from .lab.grid import Grid, Setting
from .lab.headline import difference
from .lab.options import Finding, Recipes, Sizes, at_least, one_or_more, plain
from .lab.results import Results, reported
from .lab.store import Folder, Json
from .lab.sweep import Sweep, undone
from .lab.sweep import run as run_sweep

FIXED = "_without_gains"
"""Ending of the name of a recipe whose norms learn nothing."""

MATTERS = 0.10
"""Nats that the gains cost at least, where they are said to matter."""

SAME = 0.05
"""Nats within which it is the same with gains and without."""


@dataclass(frozen=True, kw_only=True)
class Options(Finding, Sizes):
    """Train recipes with norms that learn a scale and a bias, and with norms that learn nothing.

    Exit status: 0 done, whatever the verdicts; 2 bad usage; 3 some cells are left undone by this worker, because others
    that live hold them; 130 interrupted.
    """

    data: str | None = None
    """A file, folder or glob of text; None is Python's standard library."""
    recipes: Recipes = field(default_factory=lambda: names.recipes("pre_norm", "post_norm", "deepnorm", "keel"))
    """Names, or dotted paths of your own; the residual form of each has a norm."""
    depths: tuple[int, int] = (8, 128)
    """Layers of the shallow and of the deep stacks; stacks of none are what both are compared with."""
    steps: int = 200
    """Updates of a run."""
    seeds: int = 3
    """Runs of each, which differ in init and in the order of the data."""
    learning_rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2)
    """Peaks that are tried first; others are added until the best is no end of those tried."""
    eval_batches: int = 80
    """Batches of validation windows: one half chooses the learning rate, the other half is reported."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "depths", "steps")
        at_least(2, self, "seeds")
        if not self.recipes:
            raise ValueError("--recipes needs at least one value")
        if self.depths[0] >= self.depths[1]:
            raise ValueError(f"--depths are a shallow and a deeper one; got {self.depths[0]} {self.depths[1]}")


USUAL = Options(out="runs/norm_gains", d_model=32, n_heads=2, batch=4)
QUICK = replace(
    USUAL,
    quick=True,
    recipes=names.recipes("keel"),
    depths=(1, 2),
    steps=4,
    seeds=2,
    learning_rates=(1e-2,),
    d_model=8,
    context=6,
    batch=2,
    eval_batches=2,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.main(
        "experiments.norm_gains",
        usual=USUAL,
        quick=QUICK,
        prepare=prepare,
        run=lambda work, command: run(*work, command),
        arguments=arguments,
    )


def prepare(options: Options) -> tuple[Options, Sweep]:
    """The options, and the sweep that they ask for, checked.

    Raises:
        ValueError: what does not fit.
    """
    sizes = {name: getattr(options, name) for name in ("steps", "d_model", "n_heads", "context", "batch")}
    sweep = Sweep(
        folder=Folder(Path(options.out) / "sweep"),
        grid=Grid(
            depths=(0, *options.depths),
            recipes=both(options.recipes),
            learning_rates=options.learning_rates,
            seeds=options.seeds,
        ),
        setting=Setting(eval_every=max(1, options.steps // 2), eval_batches=options.eval_batches, **sizes),
        corpus=data.load(options.data),
        extend_rates=True,
        at_once=best_at_once(),
    )
    sweep.check()
    return options, sweep


def both(recipes: Recipes) -> dict[str, Recipe]:
    """Each recipe as it is, and with norms that learn nothing.

    Raises:
        ValueError: a recipe whose residual form has no layer norm.
    """
    pairs: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        norm = getattr(recipe.residual, "norm", None)
        if not isinstance(norm, sj.LayerNorm):
            raise ValueError(
                f"--recipes must have a residual form with a LayerNorm, whose gains are fixed; {name} has none"
            )
        fixed = replace(norm, scale=False, bias=False)
        pairs[name] = recipe
        pairs[name + FIXED] = replace(recipe, residual=replace(recipe.residual, norm=fixed))
    return pairs


def run(options: Options, sweep: Sweep, command: str) -> Path:
    """Run the cells that have not been, and report."""
    if left := run_sweep(replace(sweep, command=command), progress.Plain()):
        raise command_line.Undone(undone(sweep, left))
    return report(Results.of(sweep.folder.path), options, sweep.corpus.facts())


def predictions(best: dict[tuple[str, int], Json], options: Options) -> list[Prediction]:
    """Stated before the run, from runs of KEEL and DeepNorm at 128 and 512 layers with one seed (seed 0)."""
    shallow, deep = options.depths
    stated: list[Prediction] = []

    def predict(
        claim: str, one: tuple[str, int], other: tuple[str, int], relation: Literal["below", "above"], threshold: float
    ) -> None:
        if one in best and other in best:
            found = difference(best[one], best[other])
            stated.append(Prediction(claim=claim, found=found, relation=relation, threshold=threshold))

    for name in ("deepnorm", "keel"):
        predict(
            f"{name}, {deep} layers: without gains less with, nats",
            (name + FIXED, deep),
            (name, deep),
            "below",
            -MATTERS,
        )
    for name, depth in (("pre_norm", deep), ("post_norm", shallow)):
        claim = f"{name}, {depth} layers, the control: without gains less with, nats"
        predict(claim, (name + FIXED, depth), (name, depth), "above", -SAME)
    for name in ("deepnorm", "keel"):
        fixed = name + FIXED
        predict(f"{name} without gains, {deep} layers less none, nats", (fixed, deep), (fixed, 0), "below", 0.0)
        claim = f"{name} without gains less pre_norm as published, {deep} layers, nats"
        predict(claim, (fixed, deep), ("pre_norm", deep), "below", 0.0)
    return stated


def figure(rows: Sequence[Json]) -> alt.TopLevelMixin:
    """Chart of the loss of each recipe with and without gains, at both depths, beside its loss without layers."""
    losses = [{**row, "y": row["loss"]} for row in rows if row["loss"] is not None and row["depth"]]
    floor = [row for row in rows if row["loss"] is not None and not row["depth"] and row["gains"] == "learned"]
    color = alt.Color("gains:N", title="scale and bias", scale=alt.Scale(range=list(chart.PALETTE[:2])))
    x = alt.X("depth:O", title="layers", axis=alt.Axis(labelAngle=0))
    base = alt.Chart().encode(x=x, xOffset="gains:N", color=color).transform_filter("datum.depth > 0")
    line = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title="validation loss (nats)"), y2="high:Q")
    y = alt.Y("loss:Q", scale=alt.Scale(zero=False))
    point = base.mark_point(filled=True, size=70).encode(
        y=y, tooltip=["recipe:N", "gains:N", "loss:Q", "learning_rate:Q"]
    )
    none = alt.Chart().transform_filter("datum.depth == 0").mark_rule(strokeDash=[4, 4], color="#888").encode(y=y)
    return (
        alt.layer(none, line, point, data=alt.Data(values=[*losses, *floor]))
        .properties(width=130, height=260)
        .facet(column=alt.Column("recipe:N", title=None, sort=list(dict.fromkeys(row["recipe"] for row in rows))))
    )


def report(results: Results, options: Options, text_facts: Json) -> Path:
    """Write the finding; returns its page."""
    best = {(row["recipe"], row["depth"]): row for row in results.best() if row["loss"] is not None}
    lines, rows = [], []
    for name in options.recipes:
        for depth in (0, *options.depths):
            for full, gains in ((name, "learned"), (name + FIXED, "none")):
                row = best.get((full, depth), {"loss": None, "cells": []})
                losses = [reported(cell) for cell in row["cells"]]
                rows.append(
                    {
                        "recipe": name,
                        "gains": gains,
                        "depth": depth,
                        **{key: row.get(key) for key in ("loss", "low", "high", "learning_rate", "edge")},
                        "losses": losses,
                    }
                )
            pair = [best.get((full, depth)) for full in (name, name + FIXED)]
            lines.append(
                {
                    "": name,
                    "layers": depth,
                    "gains learned": _loss(pair[0]),
                    "no gains": _loss(pair[1]),
                    "no gains less learned": str(difference(pair[1], pair[0])) if pair[0] and pair[1] else "",
                }
            )
    stated = predictions(best, options)
    for claim in stated:
        print(f"{claim.verdict:<13}{claim.claim}: {claim.found} (must be {claim.relation} {claim.threshold:g})")
    setting = results.base["setting"]
    text = (
        f"D = {options.d_model}, {options.steps} steps of B = {options.batch} windows of {options.context} bytes, "
        f"{options.seeds} seeds, of which seed 0 had been seen in a pilot of KEEL and DeepNorm at 128 layers. "
        "*Gains learned*: norms with a learned scale and bias, as published; *no gains*: the same norms without. "
        "Each recipe, depth and kind of norm at its best learning rate, in brackets behind the loss; rates "
        "were added until the best was no end of those tried, or three steps beyond the grid. Losses in nats on "
        f"{setting['eval_batches'] // 2 * setting['batch']} validation windows, others than those that chose the rate; "
        f"95 % intervals over seeds, those of differences over paired ones. Dashed in the figure: the same recipe "
        f"without layers. Text: {text_facts['name']}."
    )
    results.save()
    return finding.write(
        options.out,
        question="Do learned gains of norms on the skip path keep deep stacks from learning?",
        setting={**plain(options), "data": text_facts},
        provenance=results.provenance(),
        predictions=stated,
        rows=rows,
        figures={"gains": figure(rows)},
        text=finding.QUICK * options.quick + text + "\n\n" + finding.table(lines),
    )


def _loss(row: Json | None) -> str:
    if row is None:
        return "diverged"
    edge = f", the {row['edge']} tried" if row["edge"] else ""
    return f"{Estimate.of([reported(cell) for cell in row['cells']])} ({row['learning_rate']:g}{edge})"


if __name__ == "__main__":
    sys.exit(main())
