"""The loop over a sweep's groups: claim, compile, train, save, and go on whatever happens to one of them."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import jax

from stackjax.recipe import Recipe

from . import cost, environment, extend, names
from .claim import Claim, holder, holders, share
from .corpus import Corpus
from .device_pool import device_pool
from .grid import SCHEMA, Grid, Job, Setting, plan
from .lanes import Mode, Run
from .made import Made
from .outcome import failure, summary
from .results import Results
from .store import Folder, Json, save_params, save_record, write, write_sealed


class Show(Protocol):
    """The protocol of whatever tells people how a sweep is getting on; with several devices, from several threads."""

    def planned(self, sweep: "Sweep", jobs: list[Job]) -> None: ...
    def added(self, sweep: "Sweep", jobs: list[Job]) -> None: ...
    def compiling(self, job: Job) -> None: ...
    def moved(self, job: Job, run: Run) -> None: ...
    def ended(self, job: Job, summaries: list[Json]) -> None: ...
    def note(self, line: str) -> None: ...


RunJobs = Callable[["Sweep", Sequence[Job], Show], list[Job]]
"""`run_jobs`, or what does the same elsewhere."""


class Interrupted(Exception):
    """Asked to stop; what was done is saved."""


class TakenOver(Exception):
    """Another worker took this group."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep, checked and ready to run.

    Args:
        folder: where everything is kept.
        grid: what is compared.
        setting: what all cells share.
        corpus: what they read.
        mode: how lanes of new groups are run.
        extend_rates: whether learning rates are added where the best one is an end of those tried, see `extend`.
        command: the line that started it.
        checkpoint_seconds: time between checkpoints, which are made between chunks.
        keep_params: whether trained parameters are kept.
        devices: how many of this machine's devices run groups at the same time, one group each.
        stop: asked between chunks whether to stop.
        versions: of what may change a number.
        device: where it is computed.
    """

    folder: Folder
    grid: Grid
    setting: Setting
    corpus: Corpus | Made
    mode: Mode = "vmap"
    extend_rates: bool = False
    command: str = ""
    checkpoint_seconds: float = 15.0
    keep_params: bool = False
    devices: int = 1
    stop: Callable[[], bool] = lambda: False
    versions: dict[str, str] = field(default_factory=environment.versions)
    device: str = field(default_factory=environment.device)

    @property
    def common(self) -> Json:
        """Facts that every cell's name hashes beside its own options."""
        return {"setting": asdict(self.setting), "data": self.corpus.sha256}

    def check(self) -> list[str]:
        """Refuse what cannot work before anything is written.

        Returns:
            Warnings.

        Raises:
            ValueError: unknown names, sizes that do not fit, too little data, too few devices, a folder that holds
                something else.
        """
        if self.devices > jax.local_device_count():
            raise ValueError(
                f"--devices must be {jax.local_device_count()} or less on this machine; got {self.devices}"
            )
        self.corpus.check(batch=self.setting.batch, context=self.setting.context)
        self.setting.check(self.corpus.vocab)
        return [*self._check_models(), *self._check_folder()]

    def _check_models(self) -> list[str]:
        warnings = []
        for name, recipe in self.grid.recipes.items():
            for depth in self.grid.depths:
                try:
                    self.setting.trainer(recipe, depth, self.corpus.vocab)
                except ValueError:
                    raise
                except Exception as error:
                    warnings.append(f"{name} at depth {depth} cannot be built: {failure(error)['message']}")
        return warnings

    def _check_folder(self) -> list[str]:
        path = self.folder.path
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is not a folder; choose another --out")
        before = self.folder.base()
        if before is None:
            if path.exists() and any(not inside.name.startswith(".") for inside in path.iterdir()):
                raise ValueError(f"{path} holds files that are no sweep; choose another --out")
            return []
        setting = {**asdict(self.setting), "data": self.corpus.sha256[:10]}
        theirs = {**before["setting"], "data": before["data"]["sha256"][:10]}
        changed = [name for name in setting if setting[name] != theirs.get(name)]
        if before["schema"] != SCHEMA:
            raise ValueError(f"{path} was written by another version of this program; choose another --out")
        if changed:
            differences = ", ".join(
                f"{name.replace('_', '-')} {theirs.get(name)} (now {setting[name]})" for name in changed
            )
            raise ValueError(f"{path} holds a sweep with {differences}; choose another --out, or its options")
        self.folder.groups()
        for config in self.folder.configs():
            name = config["recipe"]
            self.folder.summary(config["cell"])
            if name in self.grid.recipes and config["description"] != names.describe(self.grid.recipes[name]):
                raise ValueError(f"recipe {name} has changed since {path} was begun; choose another --out")
        now = {**self.versions, "device": self.device}
        then = {**before["versions"], "device": before["device"]}
        moved = [f"{name} {then.get(name)} (now {now[name]})" for name in now if now[name] != then.get(name)]
        return [f"{path} was begun with {', '.join(moved)}; last digits may differ"] if moved else []

    def jobs(self) -> list[Job]:
        """The groups of the grid's cells, those already begun as they were begun; and of the rates that follow."""
        more = extend.cells(self.grid, Results.of(self.folder.path).cells) if self._begun and self.extend_rates else ()
        return plan(self.grid, list(self.folder.groups().values()), self.mode, self.common, more)

    @property
    def _begun(self) -> bool:
        return self.folder.base() is not None

    def done(self, job: Job) -> bool:
        """True if all cells of a job have ended."""
        return all(self.folder.summary(name) is not None for name in job.cell_names)

    def configs(self, job: Job) -> list[Json]:
        """The config.json of each cell of a job."""
        shared = {
            "description": names.describe(job.recipe),
            "group": {
                "name": job.name,
                "mode": job.group.mode,
                "cells": [asdict(cell) for cell in job.group.cells],
                "names": list(job.cell_names),
            },
            **self.base(),
        }
        cells = zip(job.cell_names, job.group.cells, strict=True)
        return [{"cell": name, **asdict(cell), **shared} for name, cell in cells]

    def flops_per_step(self, recipe: Recipe, depth: int) -> int:
        """Model FLOPs of one training step of one cell."""
        task = self.setting.learned(recipe, depth, self.corpus.vocab, fused=False)
        first = self.corpus.batch(seed=0, step=0, batch=self.setting.batch, context=self.setting.context)
        return cost.step_flops(task, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), first))

    def base(self) -> Json:
        """Facts that all cells share, for the record."""
        return {
            "schema": SCHEMA,
            "setting": asdict(self.setting),
            "data": self.corpus.facts(),
            "versions": self.versions,
            "device": self.device,
        }

    def save(self, jobs: Sequence[Job]) -> None:
        """Write sweep.json: what all cells share, the groups, and every command so far."""
        command = {
            "command": self.command,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": self.versions,
            "device": self.device,
        }
        groups = {job.name: job.group for job in jobs}
        save_record(self.folder, self.folder.base() or self.base(), groups, command)


def run_jobs(sweep: Sweep, jobs: Sequence[Job], show: Show) -> list[Job]:
    """Run every job that no living worker is running, and return those that are left to others."""
    with device_pool(sweep.devices) as map_jobs:
        left = share(
            jobs,
            path=lambda job: sweep.folder.claim_file(job.name),
            settle=lambda job: _settled(sweep, job, show),
            note=show.note,
            map=map_jobs,
        )
    for job in left:
        show.note(f"{job.title}: left to {holder(sweep.folder.claim_file(job.name))}")
    return left


def run(sweep: Sweep, show: Show, begin: RunJobs = run_jobs) -> list[Job]:
    """Run every group that no living worker is running, those included whose worker died.

    Args:
        sweep: what is run.
        show: tells people how it is getting on.
        begin: runs a few of its jobs, here or elsewhere.

    Returns:
        Jobs that are left undone, because other workers hold them, which live.

    Raises:
        Interrupted: `stop` said so; the same command goes on from there.
    """
    jobs = sweep.jobs()
    sweep.save(jobs)
    show.planned(sweep, jobs)
    left, tried = begin(sweep, jobs, show), {job.name for job in jobs}
    while sweep.extend_rates and (more := [job for job in sweep.jobs() if job.name not in tried]):
        save_record(sweep.folder, sweep.base(), {job.name: job.group for job in more})
        show.added(sweep, more)
        left += begin(sweep, more, show)
        tried |= {job.name for job in more}
    return left


def undone(sweep: Sweep, left: Sequence[Job]) -> str:
    """Line that says what `run` left to others."""
    cells = sum(sweep.folder.summary(name) is None for job in left for name in job.cell_names)
    who = holders(sweep.folder.claim_file(job.name) for job in left)
    return f"{cells} cells are left undone by this worker, with {who}; the same command does what they leave."


def _settled(sweep: Sweep, job: Job, show: Show) -> bool:
    """Run a job if nobody else holds it; True if it is done."""
    if sweep.stop():
        raise Interrupted
    if sweep.done(job):
        return True
    claim = Claim.take(sweep.folder.claim_file(job.name))
    if claim is None:
        return False
    try:
        if not sweep.done(job):
            _run_group(sweep, job, claim, show)
    except TakenOver:
        return False
    finally:
        claim.release()
    return True


def _run_group(sweep: Sweep, job: Job, claim: Claim, show: Show) -> None:
    folder, cells = sweep.folder, job.cell_names
    folder.clean(job.name, cells)
    for cell, config in zip(cells, sweep.configs(job), strict=True):
        write_sealed(folder.cell(cell) / "config.json", config)
    show.compiling(job)
    try:
        run = _trained(sweep, job, claim, show)
        flops = sweep.flops_per_step(job.recipe, job.group.depth)
        summaries = [summary(sweep.setting, run, lane, flops) for lane in range(len(cells))]
        folder.save_rows(cells, run)
        if sweep.keep_params:
            for lane, cell in enumerate(cells):
                save_params(folder.cell(cell) / "params.npz", run.state.params, lane)
    except (Interrupted, TakenOver):
        raise
    except Exception as error:
        if not claim.held():
            raise TakenOver from error
        if isinstance(error, OSError):
            raise
        summaries = [failure(error)] * len(cells)
        for cell in cells:
            write(folder.cell(cell) / "error.txt", traceback.format_exc())
    for cell, ended in zip(cells, summaries, strict=True):
        folder.save_summary(cell, ended)
    folder.drop_checkpoint(job.name)
    show.ended(job, summaries)


def _trained(sweep: Sweep, job: Job, claim: Claim, show: Show) -> Run:
    """A job's group at its end, from its last checkpoint if it has one."""
    setting, corpus = sweep.setting, sweep.corpus
    size = {"batch": setting.batch, "context": setting.context}
    run = Run(
        setting.trainer(job.recipe, job.group.depth, corpus.vocab),
        [setting.hyper(learning_rate=cell.learning_rate, seed=cell.seed) for cell in job.group.cells],
        lambda seed, step: corpus.batch(seed=seed, step=step, **size),
        corpus.valid_batches(setting.eval_batches, **size),
        eval_every=min(setting.eval_every, setting.steps),
        mode=job.group.mode,
    )
    if not sweep.folder.load_checkpoint(job.name, job.cell_names, run):
        run.begin()
    show.moved(job, run)
    saved = time.monotonic()
    while not run.ended:
        run.chunk()
        show.moved(job, run)
        if run.ended:
            break
        stopping = sweep.stop()
        if stopping or time.monotonic() - saved >= sweep.checkpoint_seconds:
            if not claim.held():
                raise TakenOver
            sweep.folder.save_checkpoint(job.name, job.cell_names, run)
            saved = time.monotonic()
        if stopping:
            raise Interrupted
    return run
