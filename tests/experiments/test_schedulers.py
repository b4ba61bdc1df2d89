"""A sweep on a real Ray cluster and a real Slurm, begun on the spot: the numbers of the local one, also after a worker
or the driver was killed; and the experiment that compares them."""

import contextlib
import copy
import csv
import dataclasses
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import schedulers
from experiments.depth_sweep import __main__ as depth_sweep
from experiments.depth_sweep import on_ray
from experiments.lab.results import Results
from tests.experiments.conftest import arguments, prepared

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


@pytest.fixture
def ray_cluster(monkeypatch):
    """A Ray cluster of one node, on free ports, which commands find by RAY_ADDRESS."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra cluster")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex())
    with contextlib.ExitStack() as held:
        # The paths of Ray's sockets must be short, so its folder is not below tmp_path.
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        with contextlib.ExitStack() as sockets:
            probed = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
            ports = [server.getsockname()[1] for server in probed]
        named = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
        command = [
            *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0"),
            *("--min-worker-port=0", "--max-worker-port=0"),
            *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
            *(f"--{name}={port}" for name, port in zip(named, ports, strict=True)),
        ]
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        held.callback(node.wait)
        held.callback(node.terminate)
        said = node.stdout
        assert said is not None and any("--block" in line for line in said), "Ray did not start"
        threading.Thread(target=said.read, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{ports[0]}")
        yield


@pytest.mark.cluster
def test_a_sweep_goes_on_after_its_driver_was_killed(ray_cluster, tmp_path, corpus):
    """On a cluster that lives on; killed between two checkpoints of a worker's."""
    longer = ("--steps", 240, *LONGER[2:])
    assert depth_sweep.main(arguments(tmp_path / "local", corpus, *GRID, *longer)) == 0
    words = arguments(tmp_path / "there", corpus, *GRID, *longer, "--scheduler", "ray")
    command = [sys.executable, "-m", "experiments.depth_sweep", *words]
    driver = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "there").glob("groups/*/checkpoint.npz")):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        driver.kill()
        driver.wait()
    assert len(list((tmp_path / "there").glob("cells/*/summary.json"))) < 4
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert numbers(tmp_path / "there") == numbers(tmp_path / "local") and len(numbers(tmp_path / "there")) == 4


def test_a_task_asks_ray_for_the_memory_of_its_group(tmp_path, corpus):
    """No more than a node with CPUs has; where there are GPUs it asks for one, and the host's memory does not count."""
    sweep = prepared(arguments(tmp_path / "out", corpus, *GRID))
    shallow, deep = sweep.jobs()
    gib = {"CPU": 4.0, "memory": 2.0**30}
    asked = [on_ray.resources(sweep, job, [gib, {"memory": 2.0**40}])["memory"] for job in (shallow, deep)]
    assert asked == [sweep.memory_estimate(job) for job in (shallow, deep)] and asked[0] < asked[1] < 2**30
    small = [{"CPU": 4.0, "memory": asked[0] + 0.5}, {"memory": 2.0**40}]
    assert on_ray.resources(sweep, deep, small) == {"num_cpus": 1, "memory": asked[0]}
    assert on_ray.resources(sweep, deep, [gib, {**gib, "GPU": 1.0}]) == {"num_gpus": 1}
    unbuildable = dataclasses.replace(deep, recipe=None)
    assert on_ray.resources(sweep, unbuildable, [gib]) == {"num_cpus": 1}


def test_without_ray_it_is_refused(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *GRID, "--scheduler", "ray")) == 2
    assert "stackjax[cluster]" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_slurm_it_is_refused(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *GRID, "--scheduler", "slurm")) == 2
    assert "no sbatch" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_slurm_that_does_not_answer_is_refused(tmp_path, corpus, monkeypatch, capsys):
    for name, code in (("sbatch", "exit 0"), ("sinfo", "echo first >&2; echo no controller >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *GRID, "--scheduler", "slurm")) == 2
    assert capsys.readouterr().err.endswith("no Slurm answers here: no controller\n")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def local(finished):
    """The numbers of a sweep, to be changed."""
    return copy.deepcopy(schedulers.recorded(Results.of(finished)))


def test_one_last_bit_is_seen(local):
    n, other = len(local), copy.deepcopy(local)
    assert schedulers.compared(other, local)["equal"] == n == schedulers.compared(other, local)["cells"]
    row = next(row for cell in other.values() for row in cell["layers"] if row["stream_rms"])
    row["stream_rms"][-1] = float(np.nextafter(row["stream_rms"][-1], 9))
    assert schedulers.compared(other, local)["equal"] == n - 1
    other.popitem()
    found = schedulers.compared(other, local)
    assert (found["cells"], found["wanted"]) == (n - 1, n) and n - 2 <= found["equal"] < n


def test_the_finding_says_which_cells_are_equal_and_what_was_left_out(tmp_path, finished, local, monkeypatch):
    other, n = copy.deepcopy(local), len(local)
    next(iter(other.values()))["train_loss"] += 1e-9
    ran = {"exit": 0, "said": "", "seconds": 1.0}
    ways = iter([(Results.of(finished), ran)] * 3 + [(None, {**ran, "exit": 2, "said": "no Slurm"})])
    numbers = iter([local, other, other])
    monkeypatch.setattr(schedulers, "swept", lambda *_: next(ways))
    monkeypatch.setattr(schedulers, "recorded", lambda _: next(numbers))
    assert schedulers.main(["--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row.get("equal") for row in result["rows"]] == [n, n - 1, n - 1, None]
    assert [prediction["verdict"] for prediction in result["predictions"]] == ["supported", "refuted"]
    assert "Left out: slurm (no Slurm)." in (tmp_path / "finding.md").read_text()
    csvs = sorted(path.parent.name for path in tmp_path.glob("*/results.csv"))
    assert csvs == ["local", "local-one-lane-at-a-time", "ray"]


def compared_by_command(out):
    """The rows of a quick run of the experiment, by way."""
    assert schedulers.main(["--quick", "--out", str(out)]) == 0
    return {row["way"]: row for row in json.loads((out / "result.json").read_text())["rows"]}


@pytest.mark.slow
def test_the_control_is_seen(tmp_path):
    rows = compared_by_command(tmp_path)
    assert rows["local"]["equal"] == rows["local"]["cells"] == 8 and rows["local"]["diverged"] == 2
    assert rows[schedulers.CONTROL]["cells"] == 8 and rows[schedulers.CONTROL]["equal"] < 8


@pytest.mark.cluster
@pytest.mark.parametrize("scheduler", ["ray", "slurm"], indirect=True)
def test_the_comparison_runs(scheduler, tmp_path):
    assert compared_by_command(tmp_path)[scheduler]["equal"] == 8
