"""A small sweep, its numbers undisturbed, and ways to run and hurt it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.experiments.conftest import arguments, corpus  # noqa: F401 (a fixture)
from tests.experiments.test_sweep import numbers

GRID = ("--depths", 0, 1, "--recipes", "pre_norm", "--learning-rates", 1e-2, "--seeds", 2, "--checkpoint-seconds", 0)


@dataclass(frozen=True)
class Bench:
    """Runs the sweep into a folder.

    Args:
        corpus: what it reads.
        compiled: folder of compiled programs, shared by all workers.
        expected: its numbers when nothing disturbs it.
    """

    corpus: Path
    compiled: Path
    expected: dict

    def words(self, out: Path, injury: tuple = ("none",), *more) -> list[str]:
        """The command line of a worker."""
        options = arguments(out, self.corpus, *GRID, *more)
        return [sys.executable, "-m", "tests.faults.worker", *map(str, injury), "--", *options]

    def start(self, out: Path, injury: tuple = ("none",), *more) -> subprocess.Popen:
        """A worker that has been started."""
        return subprocess.Popen(
            self.words(out, injury, *more),
            env=environment(self.compiled),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: Path, injury: tuple = ("none",), *more) -> tuple[int, str]:
        """A worker's exit status and all that it said."""
        with self.start(out, injury, *more) as process:
            said = "".join(process.communicate(timeout=300))
        return process.returncode, said

    def check(self, out: Path) -> None:
        """The same command ends with the same bits."""
        status, said = self.run(out)
        assert status == 0, said
        assert numbers(out) == self.expected


def environment(compiled: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": ".",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def bench(tmp_path_factory, corpus):  # noqa: F811
    """The sweep, run once undisturbed."""
    out, compiled = tmp_path_factory.mktemp("undisturbed") / "out", tmp_path_factory.mktemp("compiled")
    first = Bench(corpus=corpus, compiled=compiled, expected={})
    status, said = first.run(out)
    assert status == 0, said
    return Bench(corpus=corpus, compiled=compiled, expected=numbers(out))


@pytest.fixture(scope="session")
def unfinished(bench, tmp_path_factory):
    """The folder of a worker that was killed with one group ended and the other at a checkpoint; not to be changed."""
    out = tmp_path_factory.mktemp("killed") / "out"
    n = 1
    while not (list(out.glob("cells/*/summary.json")) and list(out.glob("groups/*/checkpoint.npz"))):
        shutil.rmtree(out, ignore_errors=True)
        n += 4
        bench.run(out, ("kill", "os.replace", n))
    return out


def sentence(said: str) -> None:
    """What a person reads at the end is a sentence and no traceback."""
    assert "Traceback" not in said, said
