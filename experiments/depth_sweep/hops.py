"""The other half of a sweep on text: what stacking is for, shown on a task that asks for more than one layer.

A pointer is followed three times. One layer reaches two hops whatever its learning rate, two layers reach five; see
`lab.task_hops`. Its cells are a sweep of its own, in a folder inside the other's.
"""

import dataclasses

from ..lab import names
from ..lab.grid import Grid, Setting
from ..lab.headline import interval
from ..lab.made import TASKS
from ..lab.results import Results
from ..lab.store import Folder
from ..lab.sweep import Sweep

FOLDER = "hops"
TASK = "three_hops"
SETTING = Setting(task=TASK, steps=800, context=17, batch=64, eval_every=100, eval_batches=8)
GRID = Grid(depths=(0, 1, 2), recipes=names.recipes("pre_norm"), learning_rates=(4e-3, 8e-3, 1.6e-2))


def beside(sweep: Sweep) -> Sweep:
    """The sweep of three hops that goes with another one.

    Args:
        sweep: on text; its number of seeds, its mesh and all that is no number are taken over.
    """
    return dataclasses.replace(
        sweep,
        folder=Folder(sweep.folder.path / FOLDER),
        grid=dataclasses.replace(GRID, seeds=sweep.grid.seeds),
        setting=dataclasses.replace(SETTING, mesh=sweep.setting.mesh),
        corpus=TASKS[TASK],
    )


def check(sweep: Sweep) -> list[str]:
    """The warnings of `Sweep.check` of the sweep of three hops; what it refuses can be left out.

    Raises:
        ValueError: see `Sweep.check`.
    """
    try:
        return sweep.check()
    except ValueError as error:
        raise ValueError(f"the three hops beside text: {error} (or leave them out with --no-hops)") from error


def read(results: Results) -> Results | None:
    """Results of the three hops beside those of a sweep; None if there are none."""
    path = results.folder.path / FOLDER
    return Results.of(path) if Folder(path).base() is not None else None


def sentence(hops: Results) -> str:
    """Sentence that says what each number of layers ends at."""
    ended = [row for row in hops.best() if row["loss"] is not None]
    if not ended:
        return "Three hops along pointers: nothing has ended yet."
    said = ", ".join(
        f"{row['loss']:.2f}{interval(row['low'], row['high'])} with {row['depth']} layer{'s' * (row['depth'] != 1)}"
        for row in ended
    )
    return (
        f"Three hops along pointers, which one layer cannot follow and two can: {said}, in nats an answer "
        f"(guessing: {hops.base['data']['unigram']:.2f})."
    )
