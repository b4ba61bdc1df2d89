"""A sweep on a real Ray cluster and a real Slurm, begun on the spot: the numbers of the local one, also after a worker
was killed."""

import contextlib
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from tests.experiments.conftest import arguments

NUMBERS = ("cell", "status", "train_loss", "valid_loss", "best_step", "params", "flops")
GRID = ("--depths", 0, 1, "--recipes", "pre_norm", "--learning-rates", 1e-2, 1e30)
LONGER = ("--steps", 90, "--eval-every", 3, "--checkpoint-seconds", 0)
SLURM = all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))) and os.geteuid() == 0


@pytest.fixture
def scheduler(request, tmp_path, monkeypatch):
    """The name of a scheduler that is there."""
    if request.param == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra cluster")
    if request.param == "slurm":
        if not SLURM:
            pytest.skip("needs Debian's slurm-wlm and munge, and root, to start a Slurm")
        subprocess.run(["sh", Path(__file__).with_name("one_node_slurm.sh"), tmp_path / "slurm"], check=True)
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm" / "slurm.conf"))
    yield request.param
    if request.param == "slurm":
        subprocess.run(["scontrol", "shutdown"], check=True)


def numbers(out):
    with open(out / "results.csv") as file:
        return [{name: row[name] for name in NUMBERS} for row in csv.DictReader(file)]


@pytest.mark.cluster
@pytest.mark.parametrize("scheduler", ["ray", "slurm"], indirect=True)
def test_a_sweep_is_the_local_one(scheduler, tmp_path, corpus):
    """A worker is killed between two checkpoints, and what it left is gone on with."""
    killed = []

    def kill_one():
        deadline = time.monotonic() + 500
        while not killed and time.monotonic() < deadline:
            for checkpoint in (tmp_path / "there").glob("groups/*/checkpoint.npz"):
                with contextlib.suppress(OSError, ValueError):
                    worker = json.loads((checkpoint.parent / "claim.json").read_text())["pid"]
                    if worker != os.getpid():
                        os.kill(worker, signal.SIGKILL)
                        killed.append(checkpoint.parent.name)
                        return
            time.sleep(0.01)

    assert depth_sweep.main(arguments(tmp_path / "local", corpus, *GRID, *LONGER)) == 0
    threading.Thread(target=kill_one, daemon=True).start()
    assert depth_sweep.main(arguments(tmp_path / "there", corpus, *GRID, *LONGER, "--scheduler", scheduler)) == 0
    assert killed
    assert numbers(tmp_path / "there") == numbers(tmp_path / "local") and len(numbers(tmp_path / "there")) == 4


def test_without_ray_it_is_refused(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *GRID, "--scheduler", "ray")) == 2
    assert "stackjax[cluster]" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_slurm_it_is_refused(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *GRID, "--scheduler", "slurm")) == 2
    assert "no sbatch" in capsys.readouterr().err and not (tmp_path / "out").exists()
