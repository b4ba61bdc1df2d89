"""Groups of a sweep at the same time on one device: the numbers are those of one after another."""

import os
import threading

import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import device_pool, progress, sweep
from experiments.lab.results import Results
from tests.experiments.conftest import GRID, PART, arguments, prepared


def losses_of(out):
    return {cell["cell"]: cell["valid_loss"] for cell in Results.of(out).cells}


def test_two_groups_take_every_chunk_at_the_same_time(finished, tmp_path, corpus, monkeypatch):
    out, chunk, devices, both = tmp_path / "out", sweep.Run.chunk, set(), threading.Barrier(2, timeout=300)

    def chunk_together(run):
        both.wait()
        chunk(run)
        devices.update(run.state.step.devices())

    monkeypatch.setattr(sweep.Run, "chunk", chunk_together)
    assert depth_sweep.main(arguments(out, corpus, "--depths", 0, *GRID[3:], "--at-once", 2)) == 0
    assert len(devices) == 1
    whole = losses_of(finished)
    assert losses_of(out) == {name: whole[name] for name in losses_of(out)} and len(losses_of(out)) == 8


def lines_of(text, word):
    return [line.split(": ")[0] for line in text.splitlines() if word in line]


@pytest.mark.thorough
def test_rates_are_added_as_soon_as_those_before_have_ended(tmp_path, corpus, capsys):
    """What follows at a recipe and depth does not wait for the others; no number depends on it."""
    grid = ("--depths", 0, 1, "--recipes", "pre_norm", "--learning-rates", 1e-3, 1e-2, "--seeds", 1)
    found = {}
    for n in (1, 2):
        words = [word for word in arguments(tmp_path / str(n), corpus, *grid) if word != "--no-extend-rates"]
        assert depth_sweep.main([*words, "--at-once", str(n)]) == 0
        printed, found[n] = capsys.readouterr().out, losses_of(tmp_path / str(n))
        assert set(lines_of(printed, "adding")) == {"pre_norm L=0", "pre_norm L=1"}
    assert found[1] == found[2] and len(found[1]) > 4
    assert depth_sweep.main([*words, "--at-once", "2"]) == 0
    assert "compiling" not in capsys.readouterr().out, "nothing is left, and nothing is done twice"


@pytest.mark.parametrize(("n", "order"), [(1, [0, 0, 2, 2]), (2, [2, 2, 0, 0])])
def test_the_deepest_begin_where_several_run(tmp_path, corpus, monkeypatch, n, order):
    begun, mine = [], prepared(arguments(tmp_path / "out", corpus, *GRID, "--at-once", n))
    monkeypatch.setattr(sweep, "share", lambda jobs, **_: [begun.append(job.group.depth) for job in jobs][:0])
    sweep.run_jobs(mine, mine.jobs(), progress.Plain())
    assert begun == order


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--at-once", 0), "--at-once must be 1 or more; got 0"),
        (
            ("--at-once", 2, "--mesh", "data=2"),
            "--at-once 2 trains groups side by side, and --mesh one group on several",
        ),
        (("--at-once", 2, "--scheduler", "ray"), "--at-once takes devices of this machine"),
    ],
)
def test_what_cannot_be_at_once_is_refused(tmp_path, corpus, capsys, words, said):
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *PART, *words)) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_group_for_each_core_unless_there_are_devices(tmp_path, corpus, monkeypatch, capsys):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [word for word in arguments(tmp_path / "out", corpus, *PART) if word not in ("--at-once", "1")]
    n = min(cores, device_pool.MOST_AT_ONCE)
    assert prepared(words).at_once == device_pool.best_at_once() == n
    assert prepared([*words, "--devices", "2"]).at_once == 1
    assert prepared([*words, "--mesh", "data=2"]).at_once == 1
    monkeypatch.setattr(device_pool.jax, "default_backend", lambda: "gpu")
    assert prepared(words).at_once == 1
    assert depth_sweep.main([*words, "--at-once", "3", "--dry-run"]) == 0
    assert "3 groups run at the same time." in capsys.readouterr().out
