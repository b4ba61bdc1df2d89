"""The trainer: the mesh and accumulation change rounding alone, and what was stopped goes on bit for bit."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import stackjax as sj
from experiments import train
from experiments.lab import claim, command_line, data, lanes, names
from tests.experiments.conftest import SIZES

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

ALONE = ("--mesh", "data=8")
OTHERS = [
    ("--mesh", "replica=2", "data=2", "model=2", "--accumulate", "2"),
    ("--mesh", "data=4", "sequence=2"),
]


def words(out, corpus, *more, **options):
    """A command line for a tiny model."""
    sizes = SIZES | {"batch": 8, "depth": 2, "log-every": 2, "save-every": 2, "learning-rate": 0.01} | options
    given = [word for name, size in sizes.items() for word in (f"--{name.replace('_', '-')}", str(size))]
    return [*given, "--data", str(corpus), "--out", str(out), *more]


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def series(rows, name):
    return np.array([row[name] for row in rows if row.get(name) is not None])


def near(one, other):
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(series(one, name), series(other, name), rtol=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(words(out, corpus, *ALONE)) == 0
    return out


def test_a_folder_is_trained_into_by_one_job_at_a_time(tmp_path, corpus, capsys):
    out = tmp_path / "run"
    other = claim.Claim.take(out / "claims" / "job")
    assert train.main(words(out, corpus, *ALONE)) == command_line.UNDONE
    said = capsys.readouterr()
    assert f"process {os.getpid()} on {socket.gethostname()} trains into {out}" in said.out + said.err
    assert sorted(path.name for path in out.rglob("*")) == ["claims", "job"]
    other.release()
    assert not (out / "claims").exists()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, corpus):
    """The folder of a run that was asked to stop."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "asked_to_stop", lambda: contextlib.nullcontext(lambda: True))
        assert train.main(words(out, corpus, *ALONE)) == 130
    assert len(rows(out)) == 2
    return out


@pytest.mark.slow
def test_losses_are_those_of_a_cell_of_a_sweep(whole, corpus):
    setting = train.Setting(**{name.replace("-", "_"): size for name, size in SIZES.items()} | {"batch": 8})
    trainer = setting.trainer(names.recipe_named("pre_norm"), 2, 256)
    size = {"batch": 8, "context": setting.context, "eval_every": 3, "eval_batches": 2}
    fit = lanes.fit(trainer, data.load(str(corpus)), learning_rates=(0.01,), seeds=(0,), steps=6, warmup=0, **size)
    cell, seen = fit.metrics[0][1:], rows(whole)
    assert [row["step"] for row in seen] == [row["step"] for row in cell] == [1, 2, 3, 4, 5, 6]
    near(seen, cell)
    assert cell[-1]["valid_loss"] < cell[0]["train_loss"] - 0.1
    assert len(seen[-1]["stream_rms"]) == 2


@pytest.mark.slow
def test_the_model_at_the_end_is_the_one_that_was_evaluated(whole, corpus):
    model, params = sj.load(whole / "model")
    text = data.load(str(corpus))
    batches = text.valid_batches(2, batch=8, context=6).reshape(-1, 7)
    logits, _ = model.apply(params, batches[:, :-1])
    loss = sj.loss.cross_entropy(logits, batches[:, 1:])
    np.testing.assert_allclose(loss, rows(whole)[-1]["valid_loss"], rtol=1e-5)


def test_what_was_stopped_goes_on_bit_for_bit(whole, stopped, corpus, tmp_path):
    out = tmp_path / "resumed"
    shutil.copytree(stopped, out)
    assert train.main(words(out, corpus, *ALONE)) == 0
    assert rows(out) == rows(whole)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("others", OTHERS, ids=["in two parts", "tokens"])
def test_a_checkpoint_is_laid_on_another_mesh(whole, stopped, corpus, tmp_path, others):
    """Replicas, sharded width and tensors, in two parts, and split tokens: the same to rounding."""
    out = tmp_path / "moved"
    shutil.copytree(stopped, out)
    assert train.main(words(out, corpus, *others)) == 0
    near(rows(out), rows(whole))


def test_what_cannot_be_is_refused(stopped, corpus, tmp_path, capsys):
    for more, said in {
        ("--mesh", "dta=8"): "no rule uses the axis dta",
        ("--mesh", "data=16"): "needs 16 devices; there are 8",
        ("--mesh", "data=0"): "--mesh takes axes with their sizes",
        ("--mesh", "data=8", "--accumulate", "2"): "--batch 8 must divide by 16",
        ("--mesh", "data=2", "sequence=4"): "--context 6 must divide by 4",
        ("--processes", "2"): "--coordinator, --processes 2 or more and --process below it",
        ("--coordinator", "host", "--processes", "2"): "--coordinator must be host:port",
    }.items():
        assert train.main(words(tmp_path / "out", corpus, *more)) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert train.main(words(stopped, corpus, seed=1)) == 2
    assert "holds another run, with another seed:" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run(corpus, tmp_path):
    out = tmp_path / "out"
    assert train.main(words(out, corpus, *ALONE, learning_rate=1e30)) == 1
    assert len(rows(out)) < 6 and not (out / "model").exists()


LONGER = {"steps": 30, "eval-every": 10, "save-every": 4}


def begin(out, corpus, compiled, *more, devices=8):
    """A process that trains for a few seconds."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *words(out, corpus, "--mesh", "data=8", *more, **LONGER)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": flags, **cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_at_random(processes, victim, out):
    """Kill one of some processes at a random instant of the steps; whether it had not ended before."""
    n = len((out / "metrics.jsonl").read_bytes()) if (out / "metrics.jsonl").exists() else 0
    while all(process.poll() is None for process in processes):
        with contextlib.suppress(FileNotFoundError):
            if len((out / "metrics.jsonl").read_bytes()) > n:
                break
        time.sleep(0.005)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.5))
    alive = processes[victim].poll() is None
    processes[victim].send_signal(signal.SIGKILL)
    return alive


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_instants_the_numbers_are_the_same(corpus, tmp_path):
    compiled, kills = tmp_path / "compiled", 0
    undisturbed = begin(tmp_path / "whole", corpus, compiled)
    said, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, said
    for i in range(8):
        out = tmp_path / f"killed-{i // 4}"
        process = begin(out, corpus, compiled)
        kills += kill_at_random([process], 0, out)
        process.communicate()
        if process.returncode == 0 or i % 4 == 3:
            process = begin(out, corpus, compiled)
            said, _ = process.communicate()
            assert process.returncode == 0, said
            assert rows(out) == rows(tmp_path / "whole")
    assert kills > 2


def two(out, corpus, compiled):
    """Two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    by_hand = ("--coordinator", address, "--processes", "2", "--process")
    return [begin(out, corpus, compiled, *by_hand, str(i), devices=4) for i in range(2)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_one_of_them_killed(corpus, tmp_path):
    """Their numbers are those of one process to rounding; the restarted job's are those of the undisturbed one."""
    compiled = tmp_path / "compiled"
    alone = begin(tmp_path / "alone", corpus, compiled)
    said, _ = alone.communicate()
    assert alone.returncode == 0, said
    for process in two(tmp_path / "whole", corpus, compiled):
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    near(rows(tmp_path / "whole"), rows(tmp_path / "alone"))
    out, kills = tmp_path / "killed", 0
    for victim in (1, 0, 1):
        processes = two(out, corpus, compiled)
        kills += kill_at_random(processes, victim, out)
        for process in processes:  # a launcher ends the others
            process.kill()
            process.communicate()
    for process in two(out, corpus, compiled):
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    assert kills and rows(out) == rows(tmp_path / "whole")
