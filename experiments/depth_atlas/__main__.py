"""The atlas: every recipe from 0 to 1,024 layers, each at its own best learning rate, and what it costs.

    python -m experiments.depth_atlas                    some nine hours of one core
    python -m experiments.depth_atlas --plan long --out runs/long_atlas    where depth pays: two hours of one core
    python -m experiments.depth_atlas --plan full        every rate and seed everywhere: days, or an accelerator and
        --d-model 256 --n-heads 8 --context 256 --batch 32 --steps 2000

Killed at any moment, the same command goes on; started twice, the two share the work. The cells are those of a sweep:
`depth_sweep --report-only --out` on the folder draws every curve and every layer.
"""

import functools
import json
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stackjax import recipe

from ..lab import command_line, compile_cache, data, names, progress
from ..lab.claim import Claim, holders, share
from ..lab.command_line import FAILED, INTERRUPTED, OK, UNDONE, asked_to_stop
from ..lab.device_pool import best_at_once
from ..lab.grid import Grid, Setting
from ..lab.options import Recipes
from ..lab.results import Results
from ..lab.store import Folder, Json, read, write
from ..lab.sweep import Interrupted, Sweep, run, undone
from . import atlas, kept
from .deep_check import check

CHECK_RATE = 1e-3
"""Learning rate of the checks."""

TRAINED_TO = {"attention_residuals": 32, "dense_former": 128, "dlcl": 128}
"""Recipes that read all earlier layers or sublayers, so that time grows as L², and the greatest depth at which they are
trained unless both are named."""

CHECKED_TO = {"attention_residuals": 128}
"""The greatest depth of such recipes for the few steps of a check."""

TO_1024 = ("pre_norm", "deepnorm", "keel", "rezero", "complete_p")
"""Trained to the end where time is short: those said to go deepest, and their yardsticks."""

TO_512 = (*TO_1024, "layer_scale", "skip_init", "layer_norm_scaling")
"""Trained to 512 layers where time is short."""

SEEDED = (*TO_512, "post_norm", "sandwich", "res_post_norm", "no_residual")
"""Trained with more than one seed where time is short."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan: the grids to train and the checks at great depth.

    Args:
        setting: of all cells.
        tiers: grids that together make one sweep, in this order; the checks come after the first.
        check: depth of the checks.
        check_setting: their sizes and steps.
        extend_rates: whether rates are added where the best one is an end of those tried.
    """

    setting: Setting
    tiers: tuple[Grid, ...]
    check: int
    check_setting: Setting
    extend_rates: bool = True


SMALL = Setting(steps=200, d_model=32, n_heads=2, context=32, batch=4, eval_every=25, eval_batches=20)
FEW_STEPS = replace(SMALL, steps=10, batch=2)
ALL = names.recipes(*recipe.NAMES)
RATES = (1e-3, 4e-3, 1.6e-2, 6.4e-2)
WITHOUT_LAYERS = Grid(depths=(0,), recipes=ALL, learning_rates=(*RATES, 2.56e-1), seeds=3)
"""Every recipe without layers: what the other depths are compared with. It takes seconds, so all have three seeds."""

PLANS: dict[str, Plan] = {
    "short": Plan(
        setting=SMALL,
        tiers=(
            WITHOUT_LAYERS,
            Grid(depths=(1, 2, 8, 32, 128), recipes=ALL, learning_rates=RATES[:3]),
            Grid(depths=(32, 128), recipes=names.recipes(*SEEDED), learning_rates=RATES[:3], seeds=3),
            Grid(depths=(512,), recipes=names.recipes(*TO_512), learning_rates=RATES[:3]),
            Grid(depths=(1024,), recipes=names.recipes(*TO_1024), learning_rates=RATES[:3]),
        ),
        check=1024,
        check_setting=FEW_STEPS,
    ),
    "long": Plan(
        setting=replace(SMALL, steps=1600, eval_every=400, eval_batches=200),
        tiers=(
            Grid(depths=(0, 1, 2, 8, 32), recipes=names.recipes(*SEEDED), learning_rates=RATES[:3]),
            Grid(depths=(0, 1, 8, 32), recipes=names.recipes(*SEEDED), learning_rates=RATES[:3], seeds=3),
        ),
        check=1024,
        check_setting=FEW_STEPS,
    ),
    "full": Plan(
        setting=SMALL,
        tiers=(
            WITHOUT_LAYERS,
            Grid(depths=(2, 8, 32, 128, 512, 1024), recipes=ALL, learning_rates=RATES, seeds=3),
        ),
        check=1024,
        check_setting=FEW_STEPS,
    ),
    "quick": Plan(
        setting=Setting(steps=4, d_model=8, n_heads=2, context=6, batch=2, eval_every=2, eval_batches=2),
        tiers=(
            Grid(depths=(0, 1, 2), recipes=names.recipes("pre_norm", "no_residual"), learning_rates=(1e-2, 1e30)),
            Grid(depths=(3,), recipes=names.recipes("pre_norm"), learning_rates=(1e-2,)),
        ),
        check=3,
        check_setting=Setting(steps=2, d_model=8, n_heads=2, context=6, batch=2),
        extend_rates=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train every recipe from 0 to 1,024 layers, check that the deepest compile and start, and write what came of it.

    Exit status: 0 all cells ended and all checks are made (divergence is a result), 1 some failed, 2 bad usage, 3 some
    are left undone by this worker, because others that live hold them, 130 interrupted.
    """

    out: str = "runs/depth_atlas"
    """Folder of the run; the finding is in its folder atlas/."""
    plan: Literal["short", "long", "full", "quick"] = "short"
    """Size of the plan: short asks which recipes begin to learn at a depth; long trains twelve of them eight times as
    long, where depth pays; quick only shows that it runs."""
    recipes: Recipes = field(default_factory=dict)
    """Only these, by name or dotted path (yours are run in every tier); none means all."""
    depths: tuple[int, ...] = ()
    """Only these of the plan's, its check at the greatest depth included; none means all, but for recipes whose time
    grows with the square of the depth, which are trained at great depths only where both are named."""
    data: str | None = None
    """A file, folder or glob of text; None is Python's standard library."""
    steps: int | None = None
    """Updates of a run; this and the next four are the plan's if not given."""
    d_model: int | None = None
    """Width D."""
    n_heads: int | None = None
    """Heads H."""
    context: int | None = None
    """Tokens T in a window."""
    batch: int | None = None
    """Windows B in a batch."""
    report_only: bool = False
    """Write the finding again from what is there: a run's cells, or a finding's own results.csv and result.json."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.command("experiments.depth_atlas", prepared, work, arguments)


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that the command line asks for, checked."""

    options: Options
    plan: Plan
    sweeps: list[Sweep]
    command: str


def prepared(words: Sequence[str], line: str) -> Work:
    """The options, and the plan's sweeps.

    Raises:
        ValueError: what cannot be.
    """
    options = command_line.parse(words, Options, "experiments.depth_atlas")
    command_line.check_folder(options.out)
    plan = planned(options)
    sweeps = []
    if options.report_only:
        found(options)
    else:
        sweeps = prepare(options, plan, line)
        saved_checks(options, {name for sweep in sweeps for name in sweep.grid.recipes})
    complaints = dict.fromkeys(warning for sweep in sweeps for warning in sweep.check())
    command_line.make_folder(options.out)
    for warning in complaints:
        warnings.warn(warning, stacklevel=1)
    return Work(options=options, plan=plan, sweeps=sweeps, command=line)


def work(made: Work) -> int:
    """Train, check and report; returns the exit status."""
    options, plan = made.options, made.plan
    compile_cache.enable()
    left = []
    try:
        with asked_to_stop() as stop:
            for i, sweep in enumerate(made.sweeps):
                jobs = run(replace(sweep, stop=stop), progress.Plain())
                left += [undone(sweep, jobs)] if jobs else []
                if i == 0 and plan.check in (options.depths or (plan.check,)):
                    left += checked(options, plan, sweep, stop)
    except (Interrupted, KeyboardInterrupt):
        print(f"\nInterrupted. This goes on from there:\n  {made.command}")
        return INTERRUPTED
    results, checks = found(options)
    out = results.folder.path if isinstance(results, kept.Kept) else results.folder.path / "atlas"
    print(atlas.write(results, checks, out, quick=options.plan == "quick"))
    for line in left:
        print(line)
    if left:
        return UNDONE
    return FAILED if any(row["status"] == "failed" for row in [*results.cells, *checks]) else OK


def planned(options: Options) -> Plan:
    """The plan with what the options change in it.

    Raises:
        ValueError: sizes that cannot be.
    """
    plan = PLANS[options.plan]
    given = {name: getattr(options, name) for name in ("steps", "d_model", "n_heads", "context", "batch")}
    given = {name: value for name, value in given.items() if value is not None}
    sizes = {name: value for name, value in given.items() if name != "steps"}
    return replace(
        plan,
        setting=replace(plan.setting, **given),
        check_setting=replace(plan.check_setting, **sizes),
        tiers=tuple(_only(plan.tiers, options)),
    )


def _only(tiers: Sequence[Grid], options: Options) -> Iterator[Grid]:
    """The wanted part of the tiers; recipes that no table knows are in every tier."""
    for tier in tiers:
        wanted = {n: r for n, r in options.recipes.items() if n in tier.recipes or n not in recipe.NAMES}
        depths = tuple(depth for depth in tier.depths if depth in options.depths or not options.depths)
        if depths and (wanted or not options.recipes):
            yield replace(tier, recipes=wanted or tier.recipes, depths=depths)


def prepare(options: Options, plan: Plan, command: str) -> list[Sweep]:
    """The plan's tiers as sweeps of one folder; quadratic recipes are left out at great depths that nobody named.

    Raises:
        ValueError: the data cannot be used.
    """
    if not plan.tiers:
        raise ValueError(f"plan {options.plan} has none of these depths: {' '.join(map(str, options.depths))}")
    corpus = data.load(options.data)
    folder = Folder(options.out)
    grids = [part for tier in plan.tiers for part in _affordable(tier, options.recipes if options.depths else ())]
    shared = {"setting": plan.setting, "corpus": corpus, "command": command, "extend_rates": plan.extend_rates}
    return [Sweep(folder=folder, grid=grid, at_once=best_at_once(), **shared) for grid in grids]


def _affordable(tier: Grid, named: Container[str]) -> list[Grid]:
    """A tier, cut at the depths from which on some recipe is left out that is not named."""
    parts: dict[tuple[str, ...], list[int]] = {}
    for depth in tier.depths:
        affordable = tuple(name for name in tier.recipes if name in named or depth <= TRAINED_TO.get(name, depth))
        parts.setdefault(affordable, []).append(depth)
    return [
        replace(tier, recipes={name: tier.recipes[name] for name in affordable}, depths=tuple(depths))
        for affordable, depths in parts.items()
        if affordable
    ]


def checked(options: Options, plan: Plan, sweep: Sweep, stop: Callable[[], bool]) -> list[str]:
    """Check every recipe that has not been; returns a line if some are left to other workers."""
    recipes = {name: recipe for tier in plan.tiers for name, recipe in tier.recipes.items()}

    def claim_file(name: str) -> Path:
        return checks_folder(options) / f"{name}.claim"

    def settle(name: str) -> bool:
        if stop():
            raise Interrupted
        path = claim_file(name).with_suffix(".json")
        if path.exists():
            return True
        claim = Claim.take(claim_file(name))
        if claim is None:
            return False
        try:
            depth = min(plan.check, CHECKED_TO.get(name, plan.check))
            made = check(plan.check_setting, name, recipes[name], depth, sweep.corpus, learning_rate=CHECK_RATE)
            write(path, json.dumps(made.json(), indent=1))
        finally:
            claim.release()
        print(f"{name} L={depth}: {made.message or made.status}", flush=True)
        return True

    left = share(list(recipes), path=claim_file, settle=settle, note=functools.partial(print, flush=True))
    who = holders(map(claim_file, left))
    return [f"the checks of {', '.join(left)} are left undone by this worker, with {who}"] if left else []


def checks_folder(options: Options) -> Path:
    """Folder of the checks, a file for each recipe."""
    return Path(options.out) / "checks"


def found(options: Options) -> tuple[Results, list[Json]]:
    """Contents of the folder: the sweep's results, and the checks.

    Raises:
        ValueError: there are none, or they are damaged.
    """
    if kept.there(options.out):
        return kept.load(options.out)
    results = Results.of(options.out)
    return results, saved_checks(options, results.recipes)


def saved_checks(options: Options, names: Iterable[str]) -> list[Json]:
    """The checks of these recipes that have been made.

    Raises:
        ValueError: one is damaged.
    """
    checks = (read(checks_folder(options) / f"{name}.json") for name in names)
    return [check for check in checks if check is not None]


if __name__ == "__main__":
    sys.exit(main())
