"""The groups of a sweep as an array job of Slurm, one task a group.

A task does what a local worker does, see `group.settle`. What is done is told by the sweep's own folder, and what has
ended by squeue, so that no accounting is needed. A group whose task died is submitted again and goes on from its
checkpoint; a task that Slurm requeues begins there by itself.
"""

import getpass
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from ..lab.grid import Job
from ..lab.sweep import Interrupted, Show, Sweep
from .group import TRIES, path, words_of

POLL = 2.0
"""Seconds between two looks at the queue."""


def check() -> None:
    """Refuse what cannot work without Slurm.

    Raises:
        ValueError: there is no sbatch, or no Slurm that answers.
    """
    if shutil.which("sbatch") is None:
        raise ValueError("--scheduler slurm: there is no sbatch on this machine; submit from one of the cluster")
    asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True)
    if asked.returncode:
        raise ValueError(f"--scheduler slurm: no Slurm answers here: {(asked.stderr.splitlines() or [''])[-1]}")


def run_jobs(sweep: Sweep, jobs: Sequence[Job], show: Show, *, options: Sequence[str]) -> list[Job]:
    """`lab.sweep.run_jobs` on a Slurm cluster, whose machines share the sweep's folder and its data.

    Args:
        sweep: whose command every task reads again.
        jobs: some of it.
        show: tells people how it is getting on.
        options: of sbatch, each `name=value`.

    Returns:
        Jobs that are left undone; a line for each says where its log is.

    Raises:
        Interrupted: asked to stop; the same command goes on from the last checkpoints.
        OSError: Slurm refuses the job.
    """
    left = [job for job in jobs if not sweep.done(job)]
    for _ in range(TRIES):
        if not left:
            break
        number, waiting, left = submit(sweep, left, options), dict(enumerate(left)), []
        while waiting:
            if sweep.stop():
                subprocess.run(["scancel", number], check=False)
                raise Interrupted
            time.sleep(POLL)
            running = queued(number, set(waiting))
            for i in sorted(set(waiting) - running):
                job = waiting.pop(i)
                if sweep.done(job):
                    summaries = [sweep.folder.summary(name) for name in job.cell_names]
                    show.ended(job, [summary for summary in summaries if summary is not None])
                else:
                    show.note(f"{job.title}: did not end; its log is {_logs(sweep)}/{number}_{i}.log")
                    left.append(job)
    return left


def submit(sweep: Sweep, jobs: Sequence[Job], options: Sequence[str]) -> str:
    """Submit an array job with a task for each of these; returns its number.

    Raises:
        OSError: sbatch refuses it.
    """
    os.makedirs(_logs(sweep), exist_ok=True)
    task = [sys.executable, "-m", f"{__package__}.group", os.getcwd(), *(job.name for job in jobs), "--"]
    command = [
        *("sbatch", "--parsable", "--requeue", "--job-name=depth_sweep", f"--array=0-{len(jobs) - 1}"),
        *(f"--output={_logs(sweep)}/%A_%a.log", *(f"--{option}" for option in options)),
    ]
    done = subprocess.run(
        command,
        input=f"#!/bin/sh\nexec {shlex.join([*task, *words_of(sweep)])}\n",
        env={**os.environ, "PYTHONPATH": path()},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(f"sbatch: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def queued(number: str, before: set[int]) -> set[int]:
    """Tasks of an array job that wait or run.

    Args:
        number: of the job.
        before: those that did when Slurm was last asked, which is the answer if it gives none.
    """
    done = subprocess.run(
        ["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%F %K"], capture_output=True, text=True
    )
    if done.returncode:
        return before
    rows = (line.split() for line in done.stdout.splitlines())
    return {int(task) for job, task in rows if job == number and task.isdigit()}


def _logs(sweep: Sweep) -> str:
    return os.path.abspath(sweep.folder.path / "slurm")
