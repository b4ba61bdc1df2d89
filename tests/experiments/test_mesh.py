"""A sweep on a mesh: the numbers are those of one device, and each device does and holds its share."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import stackjax as sj
from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import lanes, names, progress, results, store, sweep, train
from experiments.lab.grid import Setting
from tests.experiments.conftest import LANES, arguments, prepared
from tests.experiments.test_sweep import numbers

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

MESH = ("--mesh", "data=4", "model=2")


def on_eight(out, corpus, *more):
    """A command line for a sweep of tiny models whose batches eight devices divide."""
    return [*arguments(out, corpus, "--depths", 2, "--recipes", "pre_norm", *LANES, *more), "--batch", "8"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, corpus):
    """The folder of a sweep on one device."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert sweep.run(prepared(on_eight(out, corpus)), progress.Plain()) == []
    return out


@pytest.fixture(scope="module")
def placed(tmp_path_factory, corpus):
    """The folder of the same sweep on a mesh, and after each chunk where matrices and moments lay."""
    out, chunk, places = tmp_path_factory.mktemp("runs") / "spread", sweep.Run.chunk, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep.Run, "chunk", lambda run: (chunk(run), places.append(up_matrices(run.state))))
        assert sweep.run(prepared(on_eight(out, corpus, *MESH)), progress.Plain()) == []
    return out, places


@pytest.fixture(scope="module")
def spread(placed):
    """The folder of the sweep on the mesh."""
    return placed[0]


def up_matrices(state):
    """Where the matrices of the feed-forward network and their moments lie: their spec, and a device's share."""
    leaves = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if str(path[-1]) == "['up']"]
    return [(leaf.sharding.spec, leaf.addressable_shards[0].data.shape) for leaf in leaves]


LAYOUT = 3 * [(P(None, None, "data", "model"), (4, 2, 2, 16))]
"""Of a matrix and its two moments: lanes, layers, D / 4 and F / 2 on each device."""


def curves(out):
    """Training and validation losses of every cell, by rate and seed; and how it ended."""
    found = {}
    for cell in results.Results.of(out).cells:
        rows = store.read_rows(out / "cells" / cell["cell"] / "metrics.jsonl")
        losses = [row[name] for name in ("train_loss", "valid_loss") for row in rows if row[name] is not None]
        found[cell["learning_rate"], cell["seed"]] = (cell["status"], cell["diverged_step"], losses)
    return found


def equal_to_rounding(out, other):
    one, two = curves(out), curves(other)
    assert set(one) == set(two) and {status for status, *_ in one.values()} == {"ok", "diverged"}
    for cell, (*ended, losses) in one.items():
        *expected_end, expected = two[cell]
        assert ended == expected_end
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert ended[0] == "diverged" or len(set(losses)) == 6 + 3, "a loss of every step, and three evaluations"


def test_each_device_holds_its_share(placed):
    assert placed[1] == [LAYOUT] * 2


@pytest.mark.thorough
def test_the_numbers_are_those_of_one_device(alone, spread):
    """To rounding; and the cells have other names, for rounding is not nothing."""
    equal_to_rounding(spread, alone)
    assert not set(numbers(alone)) & set(numbers(spread))
    assert json.loads((spread / "sweep.json").read_text())["setting"]["mesh"] == "data=4 model=2"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (("data=8",), "vmap"),
        (("sequence=2", "data=2"), "vmap"),
        (("replica=2", "data=2", "model=2"), "loop"),
        (("sequence=2", "data=2", "model=2"), "loop"),
    ],
)
def test_the_numbers_of_other_meshes(alone, tmp_path, corpus, capsys, words, mode):
    assert depth_sweep.main(on_eight(tmp_path / "out", corpus, "--mesh", *words, "--lanes", mode)) == 0
    assert ("leaves 4 of 8 devices idle" in capsys.readouterr().err) == (words == ("sequence=2", "data=2"))
    equal_to_rounding(tmp_path / "out", alone)


@pytest.mark.thorough
def test_interrupted_and_resumed_on_the_mesh(spread, tmp_path, corpus, monkeypatch, capsys):
    """No bit is changed, and each device holds its share from the first step after the checkpoint on."""
    out, chunk, places = tmp_path / "out", sweep.Run.chunk, []

    def chunk_and_press(run):
        before = up_matrices(run.state)
        chunk(run)
        places.extend((before, up_matrices(run.state)))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sweep.Run, "chunk", chunk_and_press)
    assert depth_sweep.main(on_eight(out, corpus, *MESH)) == 130
    assert depth_sweep.main(on_eight(out, corpus, *MESH)) == 0
    assert numbers(out) == numbers(spread)
    assert places == [LAYOUT] * 4


@pytest.mark.slow
def test_killed_on_the_mesh_and_resumed(spread, tmp_path, corpus):
    """kill -9 at a moment that differs from run to run changes no bit."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.depth_sweep"]
    command += on_eight(out, corpus, *MESH, "--checkpoint-seconds", 0)
    environment = {
        **os.environ,
        "PYTHONPATH": ".",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(out.glob("groups/*/*.npz")):
            time.sleep(0.01)
        time.sleep(random.random() * 0.2)
        process.kill()
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    assert numbers(out) == numbers(spread)


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 4, "model": 2}])
def test_each_device_computes_its_share(sizes):
    """An eighth of the FLOPs of a chunk and of an evaluation, and of the temporaries of a chunk."""
    setting = Setting(batch=64, steps=3, eval_every=3)
    trainer = setting.trainer(names.recipe_named("pre_norm"), 2, 64)
    hyper = train.stack_hyper([setting.hyper(learning_rate=rate, seed=0) for rate in (1e-3, 1e-2)])
    batches = np.zeros((2, 3, setting.batch, setting.context + 1), np.int32)
    one, eight = (lanes.compile_lanes(trainer, hyper, batches, batches[0], on) for on in (None, sj.shard.mesh(**sizes)))
    for program in ("advance", "evaluate"):
        flops = [getattr(programs, program).cost_analysis()["flops"] for programs in (one, eight)]
        assert flops[1] < 1.15 * flops[0] / 8, program
    assert eight.temp_bytes < 1.15 * one.temp_bytes / 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mesh", "data=16"), "needs 16 devices; there are 8"),
        (("--mesh", "dta=8"), "no rule uses the axis dta"),
        (("--mesh", "data=0"), "--mesh takes axes with their sizes"),
        (("--mesh", "data=2", "data=4"), "--mesh takes axes with their sizes, each once"),
        (("--mesh",), "--mesh takes axes with their sizes"),
        (
            ("--mesh", "data=4", "model=2", "--batch", "6"),
            "--batch 6 must divide by 4: the devices of replica and data",
        ),
        (("--mesh", "sequence=4", "data=2"), "--context 6 must divide by 4, the devices of sequence"),
        (("--mesh", "data=8", "--devices", "2"), "--devices 2 trains groups side by side"),
        (("--mesh", "data=8", "--scheduler", "ray"), "--mesh takes devices of this machine, and --scheduler ray"),
        (("--mesh", "data=8", "--scheduler", "slurm"), "--mesh takes devices of this machine, and --scheduler slurm"),
        (
            ("--mesh", "sequence=2", "data=4", "--hops"),
            "--context 17 must divide by 2, the devices of sequence (or leave",
        ),
    ],
)
def test_meshes_that_cannot_be_are_refused(tmp_path, corpus, capsys, words, said):
    assert depth_sweep.main([*on_eight(tmp_path / "out", corpus), *words]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_goes_on_with_the_mesh_that_it_was_begun_with(spread, corpus, capsys):
    for words, now in ((), "None"), (("--mesh", "data=8"), "data=8"):
        assert depth_sweep.main(on_eight(spread, corpus, *words)) == 2
        assert f"holds a sweep with mesh data=4 model=2 (now {now})" in capsys.readouterr().err


def test_what_would_run_says_on_which_mesh(tmp_path, corpus, capsys):
    assert depth_sweep.main(on_eight(tmp_path / "out", corpus, *MESH, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "mesh data=4 model=2" in said and "all devices together" in said and not (tmp_path / "out").exists()
