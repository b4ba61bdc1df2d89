"""Groups of a sweep at the same time on one device: the numbers are those of one after another."""

import os

import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import device_pool, progress, sweep
from tests.experiments.conftest import GRID, PART, arguments, losses_of, prepared


def test_two_groups_take_every_chunk_at_the_same_time(finished, tmp_path, corpus, in_pairs):
    out = tmp_path / "out"
    assert depth_sweep.main(arguments(out, corpus, "--depths", 0, *GRID[3:], "--at-once", 2)) == 0
    assert len(in_pairs) == 4 and len(set.union(*in_pairs)) == 1
    whole = losses_of(finished)
    assert losses_of(out) == {name: whole[name] for name in losses_of(out)} and len(losses_of(out)) == 8


@pytest.mark.thorough
def test_rates_are_added_as_soon_as_those_before_have_ended(tmp_path, corpus):
    """What follows at a recipe and depth waits for no round of all others; no number depends on it."""
    grid = ("--depths", 0, 1, "--recipes", "pre_norm", "--learning-rates", 1e-3, 1e-2, "--seeds", 1)
    found, rounds = {}, {1: 0, 2: 0}
    for n in rounds:
        words = [word for word in arguments(tmp_path / str(n), corpus, *grid) if word != "--no-extend-rates"]

        def begin(mine, jobs, show, n=n):
            rounds[n] += 1
            return sweep.run_jobs(mine, jobs, show)

        assert not sweep.run(prepared([*words, "--at-once", str(n)]), progress.Plain(), begin)
        found[n] = losses_of(tmp_path / str(n))
    assert found[1] == found[2] and len(found[1]) > 4
    assert rounds[1] > 2 and rounds[2] == 1


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
