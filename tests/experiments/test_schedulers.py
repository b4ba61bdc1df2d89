"""A sweep on a real Ray cluster, begun on the spot: the numbers of the local one, also after a worker was killed."""

import contextlib
import csv
import importlib.util
import json
import os
import signal
import sys
import threading
import time

import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from tests.experiments.conftest import arguments

NUMBERS = ("cell", "status", "train_loss", "valid_loss", "best_step", "params", "flops")
GRID = ("--depths", 0, 1, "--recipes", "pre_norm", "--learning-rates", 1e-2, 1e30)
LONGER = ("--steps", 90, "--eval-every", 3, "--checkpoint-seconds", 0)


def numbers(out):
    with open(out / "results.csv") as file:
        return [{name: row[name] for name in NUMBERS} for row in csv.DictReader(file)]


@pytest.mark.cluster
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra cluster")
def test_a_sweep_on_ray_is_the_local_one(tmp_path, corpus):
    """A worker is killed between two checkpoints, and what it left is gone on with."""
    killed = []

    def kill_one():
        deadline = time.monotonic() + 500
        while not killed and time.monotonic() < deadline:
            for checkpoint in (tmp_path / "ray").glob("groups/*/checkpoint.npz"):
                with contextlib.suppress(OSError, ValueError):
                    worker = json.loads((checkpoint.parent / "claim.json").read_text())["pid"]
                    if worker != os.getpid():
                        os.kill(worker, signal.SIGKILL)
                        killed.append(checkpoint.parent.name)
                        return
            time.sleep(0.01)

    assert depth_sweep.main(arguments(tmp_path / "local", corpus, *GRID, *LONGER)) == 0
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert depth_sweep.main(arguments(tmp_path / "ray", corpus, *GRID, *LONGER, "--scheduler", "ray")) == 0
    assert killed
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "local") and len(numbers(tmp_path / "ray")) == 4


def test_without_ray_it_is_refused(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *GRID, "--scheduler", "ray")) == 2
    assert "stackjax[cluster]" in capsys.readouterr().err and not (tmp_path / "out").exists()
