"""The loop over a sweep's groups: claim, compile, train, save, and go on whatever happens to one of them."""

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Protocol

from .claim import Claim, holder, holders, share
from .device_pool import device_pool
from .grid import Job
from .lanes import Run
from .outcome import failure, summary
from .store import Json, save_params, save_record, write, write_sealed
from .sweep_plan import Sweep
from .tracker import logged


class Show(Protocol):
    """The protocol of whatever tells people how a sweep is getting on; with several groups at once, from threads."""

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


_recording = threading.Lock()
"""Held while sweep.json is read and written again."""


def run_jobs(sweep: Sweep, jobs: Sequence[Job], show: Show) -> list[Job]:
    """Run every job that no living worker is running, and return those that are left to others.

    Several at the same time begin with the deepest, so that none is left alone at the end; and each is followed at once
    by the learning rates that come next at its recipe and depth.
    """
    known = {job.name for job in jobs}
    several = sweep.devices * sweep.at_once > 1

    def settle(job: Job) -> bool:
        done = _settled(sweep, job, show)
        if done and several:
            _follow(sweep.at(job), known, show)
        return done

    with device_pool(sweep.devices, sweep.at_once) as map_jobs:
        left = share(
            sorted(jobs, key=lambda job: -job.group.depth) if several else jobs,
            path=lambda job: sweep.folder.claim_file(job.name),
            settle=settle,
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
    while more := _following(sweep, tried, show):
        left += begin(sweep, more, show)
        tried |= {job.name for job in more}
    return left


def _follow(sweep: Sweep, known: Iterable[str], show: Show) -> None:
    """Run the learning rates that follow those tried, as long as there are any that no other worker runs."""
    tried = set(known)
    while more := _following(sweep, tried, show):
        for job in more:
            _settled(sweep, job, show)
        tried |= {job.name for job in more}


def _following(sweep: Sweep, tried: Iterable[str], show: Show) -> list[Job]:
    """The jobs of learning rates that follow those tried, on record; none without `extend_rates`."""
    if not sweep.extend_rates:
        return []
    more = [job for job in sweep.jobs() if job.name not in tried and not sweep.done(job)]
    if more:
        with _recording:
            save_record(sweep.folder, sweep.base(), {job.name: job.group for job in more})
        show.added(sweep, more)
    return more


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
            params = run.state.params
            for lane, cell in enumerate(cells):
                save_params(folder.cell(cell) / "params.npz", params, lane)
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
        on=setting.device_mesh,
    )
    if not sweep.folder.load_checkpoint(job.name, job.cell_names, run):
        run.begin()
    with logged(sweep.log, sweep.folder.path, job, asdict(setting), show.note) as log:
        show.moved(job, run)
        log(run)
        saved = time.monotonic()
        while not run.ended:
            run.chunk()
            show.moved(job, run)
            log(run)
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
