"""The groups of a sweep as tasks of a Ray cluster: the one that `RAY_ADDRESS` names, or one begun on this machine.

A task reads the command's own words again, on whatever machine it runs, and does what a local worker does: it claims
its group in the shared folder, goes on from its checkpoint, and saves. Ray begins a task again if its process was
killed. If the driver, which is the process of the command itself, was killed, the same command goes on.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..lab import command_line
from ..lab.grid import Job
from ..lab.sweep import Interrupted, Show, Sweep
from .group import TRIES, path, settle, words_of


def check() -> None:
    """Refuse what cannot work without Ray.

    Raises:
        ValueError: it is not installed.
    """
    try:
        importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f'--scheduler ray: {error}; pip install "stackjax[cluster]"') from error


def run_jobs(sweep: Sweep, jobs: Sequence[Job], show: Show) -> list[Job]:
    """`lab.sweep.run_jobs` on a Ray cluster, whose machines share the sweep's folder and its data.

    Args:
        sweep: whose command every task reads again.
        jobs: some of it.
        show: tells people how it is getting on.

    Returns:
        Jobs that are left undone.

    Raises:
        Interrupted: asked to stop; the same command goes on from the last checkpoints.
    """
    ray = importlib.import_module("ray")
    words, left = words_of(sweep), []
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    ray.init(
        address=address, runtime_env={"env_vars": {"PYTHONPATH": path()}}, log_to_driver=False, logging_level="error"
    )
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        task = ray.remote(max_retries=TRIES - 1)(settle)
        begun = {task.options(**resources(sweep, job, nodes)).remote(words, os.getcwd(), job.name): job for job in jobs}
        while begun:
            ended, _ = ray.wait(list(begun), timeout=1.0)
            for reference in ended:
                job = begun.pop(reference)
                try:
                    done = ray.get(reference)
                except ray.exceptions.RayError as error:
                    show.note(f"{job.title}: {command_line.one_line(str(error).splitlines()[-1])}")
                    done = False
                if done:
                    summaries = [sweep.folder.summary(name) for name in job.cell_names]
                    show.ended(job, [summary for summary in summaries if summary is not None])
                else:
                    left.append(job)
            if sweep.stop():
                raise Interrupted
    finally:
        ray.shutdown()
    return left


def resources(sweep: Sweep, job: Job, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The resources of a job's task, as options of Ray: a GPU where there is one; else a CPU and the group's memory.

    Memory is an estimate, so a group that needs more than every node has gets all of the largest, instead of waiting
    for ever. One that cannot be built asks for none: its task records why.

    Args:
        sweep: that the job belongs to.
        job: one group.
        nodes: the resources of each node of the cluster that is alive.
    """
    if any(node.get("GPU") for node in nodes):
        return {"num_gpus": 1}
    largest = max((node.get("memory", 0) for node in nodes if node.get("CPU")), default=0)
    try:
        return {"num_cpus": 1, "memory": min(sweep.memory_estimate(job), int(largest))}
    except Exception:
        return {"num_cpus": 1}
