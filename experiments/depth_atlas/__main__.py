"""The atlas: every recipe from 2 to 1,024 layers, each at its own best learning rate, and what it costs.

    python -m experiments.depth_atlas                    a few hours of one core
    python -m experiments.depth_atlas --plan full        every rate and seed everywhere: days, or an accelerator and
        --d-model 256 --n-heads 8 --context 256 --batch 32 --steps 2000

Killed at any moment, the same command goes on; started twice, the two share the work. The cells are those of a sweep:
`depth_sweep --report-only --out` on the folder draws every curve and every layer.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from experiments.depth_atlas import atlas
from experiments.depth_atlas.deep_check import check
from experiments.lab import command_line, compile_cache, data, names, progress
from experiments.lab.claim import Claim
from experiments.lab.command_line import INTERRUPTED, OK, USAGE, asked_to_stop
from experiments.lab.grid import Grid, Setting
from experiments.lab.results import Results
from experiments.lab.store import Folder, read, write
from experiments.lab.sweep import Interrupted, Sweep, run

CHECK_RATE = 1e-3
"""Learning rate of the checks."""

TRAINED_TO = {"attention_residuals": 32, "dense_former": 128, "dlcl": 128}
"""Recipes that read all earlier layers or sublayers, so that time grows as L², and the greatest depth for them."""

CHECKED_TO = {"attention_residuals": 128}
"""The same for the few steps of a check."""

TO_128 = {
    *("hybrid_norm", "admin", "ds_init", "dyt", "shaped", "plain", "no_residual"),
    *("sigma_reparam", "plain_scaled_init", "manifold_hyper_connections", "block_attention_residuals"),
    "stochastic_depth",
}
"""Trained to 128 layers where time is short: those that do not learn there, the slowest, and variants of others."""

TO_1024 = ("pre_norm", "deepnorm", "keel", "rezero", "layer_scale", "complete_p")
"""Trained to the end where time is short: those said to go deepest, and their yardsticks."""

SEEDED = ("pre_norm", "post_norm", "deepnorm", "rezero", "complete_p", "no_residual")
"""Trained with more than one seed where time is short."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run.

    Args:
        setting: of all cells.
        tiers: grids that together make one sweep, in this order; the checks come after the first.
        check: depth of the checks.
        check_setting: their sizes and steps.
    """

    setting: Setting
    tiers: tuple[Grid, ...]
    check: int
    check_setting: Setting


SMALL = Setting(steps=200, d_model=32, n_heads=2, context=32, batch=4, eval_every=25, eval_batches=20)
FEW_STEPS = replace(SMALL, steps=10, batch=2)
ALL = tuple(names.RECIPES)
RATES = (1e-3, 4e-3, 1.6e-2, 6.4e-2)

PLANS: dict[str, Plan] = {
    "short": Plan(
        setting=SMALL,
        tiers=(
            Grid(depths=(2, 8, 32), recipes=ALL, learning_rates=RATES),
            Grid(depths=(128,), recipes=ALL, learning_rates=RATES[:3]),
            Grid(depths=(32,), recipes=SEEDED, learning_rates=RATES, seeds=3),
            Grid(depths=(128,), recipes=SEEDED, learning_rates=RATES[:3], seeds=3),
            Grid(depths=(512,), recipes=tuple(n for n in ALL if n not in TO_128), learning_rates=RATES[:2]),
            Grid(depths=(1024,), recipes=TO_1024, learning_rates=RATES[:2]),
        ),
        check=1024,
        check_setting=FEW_STEPS,
    ),
    "full": Plan(
        setting=SMALL,
        tiers=(Grid(depths=(2, 8, 32, 128, 512, 1024), recipes=ALL, learning_rates=RATES, seeds=3),),
        check=1024,
        check_setting=FEW_STEPS,
    ),
    "quick": Plan(
        setting=Setting(steps=4, d_model=8, n_heads=2, context=6, batch=2, eval_every=2, eval_batches=1),
        tiers=(
            Grid(depths=(1, 2), recipes=("pre_norm", "no_residual"), learning_rates=(1e-2, 1e30)),
            Grid(depths=(3,), recipes=("pre_norm",), learning_rates=(1e-2,)),
        ),
        check=3,
        check_setting=Setting(steps=2, d_model=8, n_heads=2, context=6, batch=2),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train every recipe from 2 to 1,024 layers, check that the deepest compile and start, and write what came of it.

    Exit status: 0 all cells ended (divergence and failure are results), 2 bad usage, 130 interrupted.
    """

    out: str = "runs/depth_atlas"
    """Folder of the run; the finding is in its folder atlas/."""
    plan: Literal["short", "full", "quick"] = "short"
    """How much; quick only shows that it runs."""
    recipes: tuple[str, ...] = ()
    """Only these, by name or dotted path (yours are run in every tier); none means all."""
    depths: tuple[int, ...] = ()
    """Only these of the plan's, its check at the greatest depth included; none means all."""
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
    """Write the finding again from what is there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["python", "-m", "experiments.depth_atlas", *arguments])
    try:
        options = command_line.parse(arguments, Options, "experiments.depth_atlas")
        plan = planned(options)
        if options.report_only:
            print(report(options))
            return OK
        with command_line.warnings_afterwards("depth_atlas"):
            sweeps = prepare(options, plan, command)
        for warning in dict.fromkeys(warning for sweep in sweeps for warning in sweep.check()):
            print(f"depth_atlas: warning: {warning}", file=sys.stderr)
    except ValueError as error:
        print(f"depth_atlas: {command_line.one_line(error)}", file=sys.stderr)
        return USAGE
    compile_cache.enable()
    try:
        with asked_to_stop() as stop:
            for i, sweep in enumerate(sweeps):
                run(replace(sweep, stop=stop), progress.Plain())
                if i == 0 and plan.check in (options.depths or (plan.check,)):
                    checked(options, plan, sweep, stop)
    except (Interrupted, KeyboardInterrupt):
        print(f"\nInterrupted. This goes on from there:\n  {command}")
        return INTERRUPTED
    print(report(options))
    return OK


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
    """What is wanted of the tiers; recipes that no table knows are in every tier."""
    for tier in tiers:
        recipes = [n for n in options.recipes if n in tier.recipes or n not in names.RECIPES] or tier.recipes
        depths = [depth for depth in tier.depths if depth in options.depths or not options.depths]
        if depths and (set(recipes) & set(options.recipes) or not options.recipes):
            yield replace(tier, recipes=tuple(recipes), depths=tuple(depths))


def prepare(options: Options, plan: Plan, command: str) -> list[Sweep]:
    """The plan's tiers as sweeps of one folder; quadratic recipes are left out where they are too deep.

    Raises:
        ValueError: the data cannot be used.
    """
    if not plan.tiers:
        raise ValueError(f"plan {options.plan} has none of these depths: {' '.join(map(str, options.depths))}")
    corpus = data.load(options.data)
    folder = Folder(options.out)
    grids = [part for tier in plan.tiers for part in _affordable(tier)]
    return [Sweep(folder=folder, grid=grid, setting=plan.setting, corpus=corpus, command=command) for grid in grids]


def _affordable(tier: Grid) -> list[Grid]:
    """A tier, cut at the depths from which on some recipe is left out."""
    parts: dict[tuple[str, ...], list[int]] = {}
    for depth in tier.depths:
        kept = tuple(name for name in tier.recipes if depth <= TRAINED_TO.get(name, depth))
        parts.setdefault(kept, []).append(depth)
    return [replace(tier, recipes=kept, depths=tuple(depths)) for kept, depths in parts.items() if kept]


def checked(options: Options, plan: Plan, sweep: Sweep, stop: Callable[[], bool]) -> None:
    """Check every recipe that has not been, and that no other worker is checking."""
    for name in dict.fromkeys(name for tier in plan.tiers for name in tier.recipes):
        if stop():
            raise Interrupted
        path = checks_folder(options) / f"{name}.json"
        claim = None if path.exists() else Claim.take(path.with_suffix(".claim"))
        if claim is None:
            continue
        try:
            depth = min(plan.check, CHECKED_TO.get(name, plan.check))
            found = check(plan.check_setting, name, depth, sweep.corpus, learning_rate=CHECK_RATE)
            write(path, json.dumps(found.json(), indent=1))
        finally:
            claim.release()
        print(f"{name} L={depth}: {found.message or found.status}", flush=True)


def checks_folder(options: Options) -> Path:
    """Where the checks are kept, a file for each recipe."""
    return Path(options.out) / "checks"


def report(options: Options) -> Path:
    """Write the finding; returns its page.

    Raises:
        ValueError: there is nothing in the folder.
    """
    results = Results.of(options.out)
    found = (read(checks_folder(options) / f"{name}.json") for name in results.recipes)
    checks = [check for check in found if check is not None]
    return atlas.write(results, checks, quick=options.plan == "quick")


if __name__ == "__main__":
    sys.exit(main())
