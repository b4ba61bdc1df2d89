"""Progress of a sweep: a live table on a terminal, plain lines elsewhere."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.console import Group as Rows
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .grid import Cell, Job
from .lanes import Run
from .store import Json
from .sweep import Sweep

MOST_ROWS = 30
SILENCE = 30.0
"""Seconds after which a plain line tells that a group is still moving."""
STYLE = {"ok": "green", "diverged": "yellow", "failed": "red", "compiling": "cyan", "training": "cyan"}


def header(sweep: Sweep) -> str:
    """Header that says what is about to run, in two lines."""
    setting, corpus = sweep.setting, sweep.corpus
    return (
        f"{corpus.name}: {corpus.size}, "
        f"V = {corpus.vocab}, sha256 {corpus.sha256[:10]}\n"
        f"D = {setting.d_model}, H = {setting.n_heads}, T = {setting.context}, B = {setting.batch}, "
        f"{setting.steps} steps of {setting.optimizer}, on {sweep.device}"
        f"{'' if setting.mesh is None else f', mesh {setting.mesh}'}"
    )


class Plain:
    """One line for each event."""

    def __init__(self, say: Callable[[str], None] = functools.partial(print, flush=True)):
        self._write, self._n, self._total = say, 0, 0
        self._began = self._said = time.monotonic()
        self._counting = threading.Lock()

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._write(line)

    def planned(self, sweep: Sweep, jobs: list[Job]) -> None:
        """The sweep begins."""
        self._say(header(sweep))
        self._total = sum(len(job.cell_names) for job in jobs)
        self._n = sum(sweep.folder.summary(name) is not None for job in jobs for name in job.cell_names)
        self._say(f"{self._total} cells in {len(jobs)} groups, {self._n} done before, in {sweep.folder.path}")

    def added(self, sweep: Sweep, jobs: list[Job]) -> None:
        """Learning rates follow those tried."""
        with self._counting:
            self._total += sum(len(job.cell_names) for job in jobs)
        for job in jobs:
            rates = dict.fromkeys(f"{cell.learning_rate:g}" for cell in job.group.cells)
            self._say(f"{job.title}: adding learning rates {', '.join(rates)}")

    def compiling(self, job: Job) -> None:
        """A group begins."""
        n, order = len(job.group.cells), "all at once" if job.group.mode == "vmap" else "one after another"
        self._say(f"{job.title}: compiling; " + ("1 run" if n == 1 else f"{n} runs, {order}"))

    def moved(self, job: Job, run: Run) -> None:
        """A chunk is done."""
        if time.monotonic() - self._said > SILENCE:
            losses = ", ".join("-" if loss is None else f"{loss:.3f}" for loss in map(_last_valid, run.metrics))
            self._say(f"{job.title}: step {run.step}, validation {losses}")

    def ended(self, job: Job, summaries: list[Json]) -> None:
        """A group has ended."""
        with self._counting:
            for cell, summary in zip(job.group.cells, summaries, strict=True):
                self._n += 1
                self._say(
                    f"[{self._n}/{self._total} {time.monotonic() - self._began:.0f} s] {job.title} "
                    f"lr {cell.learning_rate:g} seed {cell.seed}: {outcome(summary)}"
                )

    def note(self, line: str) -> None:
        """Something to know."""
        self._say(line)

    def close(self) -> None:
        """Nothing more to say."""


def outcome(summary: Json) -> str:
    """Outcome of a cell, in a few words."""
    loss = summary.get("valid_loss")
    words = [summary["status"], "" if loss is None else f"validation {loss:.3f}", summary["message"]]
    return ", ".join(word for word in words if word)


class Screen:
    """A header, a bar and a table of cells, redrawn in place."""

    def __init__(self, console: Console):
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("layer-steps", total=None)
        self._rows: dict[Any, list[str]] = {}
        self._notes: list[str] = []
        self._header, self._steps = "", 0
        self._done: dict[str, int] = {}
        self._work: dict[str, int] = {}
        self._counting = threading.Lock()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4)

    def planned(self, sweep: Sweep, jobs: list[Job]) -> None:
        """The sweep begins."""
        self._header, self._steps = header(sweep), sweep.setting.steps
        self._done, self._work = {}, {}
        self.added(sweep, jobs)
        self._live.start()

    def added(self, sweep: Sweep, jobs: list[Job]) -> None:
        """Learning rates follow those tried."""
        for job in jobs:
            for cell, name in zip(job.group.cells, job.cell_names, strict=True):
                summary = sweep.folder.summary(name)
                self._rows[cell] = _row(cell, "waiting") if summary is None else _ended(cell, summary)
        waiting = [job for job in jobs if any(self._rows[cell][4] == "waiting" for cell in job.group.cells)]
        with self._counting:
            self._done |= {job.name: 0 for job in waiting}
            self._work |= {job.name: _work(job) for job in waiting}
            self._bar.update(self._task, total=sum(self._work.values()) * self._steps)

    def compiling(self, job: Job) -> None:
        """A group begins."""
        for cell in job.group.cells:
            self._rows[cell] = _row(cell, "compiling")

    def moved(self, job: Job, run: Run) -> None:
        """A chunk is done."""
        self._advance(job, run.step)
        for cell, metrics in zip(job.group.cells, run.metrics, strict=True):
            valid = [row["valid_loss"] for row in metrics if row["valid_loss"] is not None]
            last, best = (f"{valid[-1]:.3f}", f"{min(valid):.3f}") if valid else ("", "")
            speed = f"{1e3 * run.step_seconds[-1]:.1f}" if run.step_seconds else ""
            self._rows[cell] = _row(cell, "training", str(metrics[-1]["step"]), last, best, speed)

    def ended(self, job: Job, summaries: list[Json]) -> None:
        """A group has ended."""
        self._advance(job, self._steps)
        for cell, summary in zip(job.group.cells, summaries, strict=True):
            self._rows[cell] = _ended(cell, summary)

    def note(self, line: str) -> None:
        """Something to know."""
        self._notes.append(line)

    def close(self) -> None:
        """Leave the last picture on the terminal."""
        self._live.stop()

    def _advance(self, job: Job, step: int) -> None:
        with self._counting:
            self._done[job.name] = step
            done = sum(self._work[name] * steps for name, steps in self._done.items())
            self._bar.update(self._task, completed=done)

    def _draw(self) -> Rows:
        table = Table(box=None, pad_edge=False)
        for name in ("recipe", "depth", "learning rate", "seed", "state", "step", "valid", "best", "ms/step"):
            table.add_column(name, justify="left" if name in ("recipe", "state") else "right")
        rows = list(self._rows.values())
        active = [i for i, row in enumerate(rows) if row[4] in ("compiling", "training")]
        first = max(0, min((active[-1] if active else len(rows)) + 5, len(rows)) - MOST_ROWS)
        for row in rows[first : first + MOST_ROWS]:
            table.add_row(*row, style=STYLE.get(row[4], "dim"))
        hidden = len(rows) - MOST_ROWS
        notes = self._notes[-3:] + ([f"{hidden} more cells"] if hidden > 0 else [])
        return Rows(Text(self._header), self._bar, table, *notes)


def _last_valid(metrics: list[Json]) -> float | None:
    return next((row["valid_loss"] for row in reversed(metrics) if row["valid_loss"] is not None), None)


def _work(job: Job) -> int:
    """Layer-steps in one step of a group; the two ends of the model count as one layer."""
    return len(job.group.cells) * (job.group.depth + 1)


def _row(cell: Cell, state: str, step: str = "", valid: str = "", best: str = "", speed: str = "") -> list[str]:
    return [cell.recipe, str(cell.depth), f"{cell.learning_rate:g}", str(cell.seed), state, step, valid, best, speed]


def _ended(cell: Cell, summary: Json) -> list[str]:
    def text(name: str, form: str, factor: float = 1) -> str:
        value = summary.get(name)
        return "" if value is None else format(factor * value, form)

    return _row(
        cell,
        summary["status"],
        text("steps", "d"),
        text("valid_loss", ".3f"),
        text("best_valid_loss", ".3f"),
        text("step_seconds", ".1f", 1e3),
    )
