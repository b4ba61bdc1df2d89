"""Curves of cells in an experiment tracker, each cell a run of its own.

A tracker is three functions: begin a run for a cell, log metrics at a step, finish. A group that goes on from its
checkpoint takes some steps again; none of them is logged twice.
"""

import contextvars
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .grid import Job
from .lanes import Run
from .outcome import failure

Name = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "stackjax"


class Tracker(NamedTuple):
    """An experiment tracker.

    Args:
        package: that is imported, and installed under the same name.
        begin: (package, folder of the sweep, name of the cell, its options) -> (run, the first step it has not logged)
        log: (run, metrics, step) -> None
        finish: (run) -> None
    """

    package: str
    begin: Callable[[Any, Path, str, dict[str, Any]], tuple[Any, int]]
    log: Callable[[Any, dict[str, float], int], None]
    finish: Callable[[Any], None]


def check(name: Name | None) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        ValueError: its package cannot be imported.
    """
    if name is not None:
        package = TRACKERS[name].package
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"--log {name}: {error}; pip install {package}") from error


@contextmanager
def logged(
    name: Name | None, folder: Path, job: Job, options: dict[str, Any], note: Callable[[str], None]
) -> Iterator[Callable[[Run], None]]:
    """A function that logs the rows that a group under way has gained; at the end, every cell's run is finished.

    A tracker that raises is noted once, and the group goes on without it.

    Args:
        name: of the tracker; None logs nothing.
        folder: of the sweep.
        job: the group.
        options: that its cells share.
        note: tells people a line.
    """
    if name is None:
        yield lambda run: None
        return
    tracker, broken = TRACKERS[name], False
    begun: list[tuple[Any, int]] = []
    rows_read = [0] * len(job.cell_names)

    def attempt(action: Callable[..., None], *arguments: Any) -> None:
        nonlocal broken
        try:
            action(*arguments)
        except Exception as error:
            if not broken:
                note(f"{job.title}: --log {name}: {failure(error)['message']}; the group goes on without it")
            broken = True

    def begin() -> None:
        package = importlib.import_module(tracker.package)
        for cell_name, cell in zip(job.cell_names, job.group.cells, strict=True):
            begun.append(tracker.begin(package, folder, cell_name, {**options, **asdict(cell)}))

    def log(run: Run) -> None:
        for lane, (tracked, first_step) in enumerate(begun):
            rows = run.metrics[lane][rows_read[lane] :]
            rows_read[lane] += len(rows)
            for row in rows:
                metrics = {key: x for key, x in row.items() if key != "step" and isinstance(x, float)}
                if row["step"] >= first_step and metrics:
                    tracker.log(tracked, metrics, row["step"])

    attempt(begin)
    try:
        yield lambda run: None if broken else attempt(log, run)
    finally:
        for tracked, _ in begun:
            attempt(tracker.finish, tracked)


def _begin_tensorboard(tensorboard: Any, folder: Path, cell: str, options: dict[str, Any]) -> tuple[Any, int]:
    """A new folder in place of the one before, so that all rows are written again."""
    path = folder / "tensorboard" / cell
    if path.exists():
        shutil.rmtree(path)
    return tensorboard.SummaryWriter(str(path)), 0


def _log_tensorboard(writer: Any, metrics: dict[str, float], step: int) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


def _begin_wandb(wandb: Any, folder: Path, cell: str, options: dict[str, Any]) -> tuple[Any, int]:
    """The run of that name, which the server counts on; offline a new one in place of the one before."""
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=str(folder),
        id=cell,
        name=cell,
        config=options,
        dir=str(folder),
        resume="allow",
        reinit="create_new",
        settings={"console": "off", "quiet": True, "x_disable_stats": True},
    )
    if run.offline:
        for before in (folder / "wandb").glob(f"offline-run-*-{cell}"):
            if not before.samefile(run.sync_dir):
                shutil.rmtree(before)
    return run, run.step


def _begin_trackio(trackio: Any, folder: Path, cell: str, options: dict[str, Any]) -> tuple[Any, int]:
    """The run of that name, in a context of its own, for `init` finishes the run before it in the same one."""
    run = contextvars.Context().run(
        trackio.init,
        project=PROJECT,
        name=cell,
        group=str(folder),
        config=options,
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return run, run._next_step


def _log_step(run: Any, metrics: dict[str, float], step: int) -> None:
    run.log(metrics, step=step)


TRACKERS: dict[Name, Tracker] = {
    "tensorboard": Tracker("tensorboardX", _begin_tensorboard, _log_tensorboard, lambda writer: writer.close()),
    "wandb": Tracker("wandb", _begin_wandb, _log_step, lambda run: run.finish()),
    "trackio": Tracker("trackio", _begin_trackio, _log_step, lambda run: run.finish()),
}
