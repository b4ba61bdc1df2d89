"""One group of a sweep as a task that another machine runs, from the command's own words.

    python -m experiments.depth_sweep.group FOLDER GROUP... -- WORDS...

runs that of the groups which SLURM_ARRAY_TASK_ID counts, as a worker in that folder would; 0 if it is done.
"""

import dataclasses
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from ..lab import command_line, progress
from ..lab.sweep import Sweep
from ..lab.sweep import run_jobs as run_here

PROGRAM = "experiments.depth_sweep"
TRIES = 4
"""Times that a group is begun whose process dies."""


def words_of(sweep: Sweep) -> list[str]:
    """Words of the command line that a sweep was made from."""
    return shlex.split(sweep.command)[len(command_line.invocation(PROGRAM)) :]


def path() -> str:
    """Folders from which this process imports, for the PYTHONPATH of another one."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)


def settle(words: Sequence[str], folder: str, group: str) -> bool:
    """Run one group in this process as a local worker does; whether it is done.

    Args:
        words: of the command line.
        folder: in which it was given.
        group: the name of the job.
    """
    os.chdir(folder)
    depth_sweep = importlib.import_module(f"{__package__}.__main__")
    for part in depth_sweep.planned(command_line.parse(words, depth_sweep.Options, PROGRAM), ""):
        if jobs := [job for job in part.jobs() if job.name == group]:
            return not run_here(dataclasses.replace(part, at_once=1), jobs, progress.Plain())
    return False


if __name__ == "__main__":
    folder, *groups = sys.argv[1 : sys.argv.index("--")]
    done = settle(sys.argv[sys.argv.index("--") + 1 :], folder, groups[int(os.environ["SLURM_ARRAY_TASK_ID"])])
    sys.exit(command_line.OK if done else command_line.UNDONE)
