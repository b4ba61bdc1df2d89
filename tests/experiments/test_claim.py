"""Claims: a worker that lives keeps its group, one that died does not, whatever its process id says."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import jax
import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import claim, sweep
from experiments.lab.command_line import OK, UNDONE
from tests.experiments.conftest import LANES, PART, arguments, prepared
from tests.experiments.test_sweep import rows_of


@pytest.fixture
def path(tmp_path):
    (tmp_path / "group").mkdir()
    return tmp_path / "group" / "claim.json"


@pytest.fixture
def impatient(monkeypatch):
    """Wait for fractions of seconds where a worker waits for a minute."""
    monkeypatch.setattr(claim, "STALE", 1.5)
    monkeypatch.setattr(claim, "LOOK_AGAIN", 0.05)


def made_by(path, pid, **changes):
    """Write a claim of some process of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**claim._process(pid), "token": "of another worker", **changes}))


@contextlib.contextmanager
def beating(path):
    """A heart that beats on, as a worker on another machine has one."""
    stop = threading.Event()

    def beat():
        while not stop.wait(0.02):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def process():
    """A process that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def taken(path):
    """Whether a claim can be had; it is given back."""
    held = claim.Claim.take(path)
    if held is not None:
        assert held.held()
        held.release()
    return held is not None


def test_a_process_that_lives_keeps_its_claim_until_its_heart_stops(path):
    with process() as child:
        made_by(path, child.pid)
        assert not taken(path)
        old = time.time() - claim.STALE - 5
        os.utime(path, (old, old))
        assert taken(path)


def test_a_process_id_that_is_used_again_proves_nothing(path):
    with process() as child:
        made_by(path, child.pid, began="12")
        assert taken(path)
    path.parent.mkdir()
    made_by(path, os.getpid(), began="12")
    assert taken(path)
    path.parent.mkdir()
    path.write_text(json.dumps({"host": claim._process(1)["host"], "pid": os.getpid(), "token": "of the run before"}))
    assert taken(path), "one's own process id, and not one's own claim"


def test_a_process_that_ended_is_dead_before_its_parent_knows(path):
    with process() as child:
        made_by(path, child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert taken(path)


def test_process_ids_of_another_machine_or_namespace_are_not_asked_for(path):
    for changes in ({"host": "elsewhere"}, {"namespace": "pid:[1]"}):
        made_by(path, 2**22 + 1, **changes)
        assert not taken(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": 3}', "\x00"])
def test_a_claim_that_was_not_written_to_its_end_is_one_until_it_is_stale(path, text):
    path.write_text(text)
    assert not taken(path)
    assert claim.holder(path) == "another worker"
    old = time.time() - claim.STALE - 5
    os.utime(path, (old, old))
    assert taken(path)


def test_a_clock_that_was_put_back_keeps_nobody_out(path):
    made_by(path, 1, host="elsewhere")
    later = time.time() + 3600
    os.utime(path, (later, later))
    assert taken(path)


def test_a_heart_that_stopped_frees_the_claim(path):
    held = claim.Claim.take(path)
    made_by(path, 1, host="elsewhere")
    assert claim.Claim.take(path) is None
    old = time.time() - claim.STALE - 5
    os.utime(path, (old, old))
    other = claim.Claim.take(path)
    assert other is not None and other.held() and not held.held()
    held.release()
    assert other.held(), "one releases only what one holds"
    other.release()
    assert not path.parent.exists()


def test_a_heart_beats_only_for_its_own_claim(path, monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT", 0.02)
    held = claim.Claim.take(path)
    before = path.stat().st_mtime_ns
    time.sleep(0.2)
    assert path.stat().st_mtime_ns > before
    made_by(path, 1, host="elsewhere")
    time.sleep(0.05)
    before = path.stat().st_mtime_ns
    time.sleep(0.2)
    assert path.stat().st_mtime_ns == before
    held.release()


def test_a_heart_that_beats_proves_life(path):
    watch = claim.Watch()
    made_by(path, 1, host="elsewhere")
    assert not watch.proves_life(path) and not watch.proves_life(path)
    os.utime(path, (time.time() + 1, time.time() + 1))
    assert watch.proves_life(path)
    made_by(path, 1, host="elsewhere", token="of a third")
    assert not watch.proves_life(path), "the second worker's heart says nothing of the third's"
    with process() as child:
        made_by(path, child.pid)
        assert claim.Watch().proves_life(path), "nobody waits for a process that runs here"


@pytest.fixture
def command(tmp_path, corpus):
    """A sweep of two groups."""
    return arguments(tmp_path / "out", corpus, "--depths", 0, "--recipes", "pre_norm", "post_norm", *LANES)


def claim_of_the_first_group(command):
    """Where the claim of a sweep's first group is, the sweep being begun."""
    sweeping = prepared(command)
    sweeping.save([])
    return sweeping.folder.claim_file(sweeping.jobs()[0].name)


@pytest.mark.thorough
def test_a_living_worker_keeps_its_group_and_a_dead_one_does_not(tmp_path, command, capsys):
    path = claim_of_the_first_group(command)
    held = claim.Claim.take(path)
    assert held.held() and claim.Claim.take(path) is None
    assert depth_sweep.main(command) == UNDONE == 3
    said = capsys.readouterr().out
    assert f"left to process {os.getpid()}" in said
    assert said.splitlines()[-1].startswith("4 cells are left undone by this worker, with process")
    assert {row["recipe"] for row in rows_of(tmp_path / "out")} == {"post_norm"}
    with process() as child:
        made_by(path, child.pid)
    assert not held.held()
    assert depth_sweep.main(command) == OK
    assert {row["recipe"] for row in rows_of(tmp_path / "out")} == {"pre_norm", "post_norm"}


@pytest.mark.thorough
def test_a_job_that_is_requeued_at_once_takes_over_the_group_it_died_in(tmp_path, command, impatient, capsys):
    made_by(claim_of_the_first_group(command), 1, host="node-17")
    assert depth_sweep.main(command) == OK
    assert "sign of life of process 1 on node-17" in capsys.readouterr().out
    assert {row["recipe"] for row in rows_of(tmp_path / "out")} == {"pre_norm", "post_norm"}


def test_a_worker_elsewhere_whose_heart_beats_keeps_its_group(tmp_path, command, impatient, capsys):
    path = claim_of_the_first_group(command)
    made_by(path, 1, host="node-17")
    with beating(path):
        assert depth_sweep.main(command) == UNDONE
    assert "with process 1 on node-17" in capsys.readouterr().out.splitlines()[-1]
    assert {row["recipe"] for row in rows_of(tmp_path / "out")} == {"post_norm"}


@pytest.mark.thorough
def test_a_group_that_was_taken_over_is_left(tmp_path, corpus, monkeypatch, impatient, capsys):
    out = tmp_path / "out"
    command = arguments(out, corpus, "--depths", 1, "--recipes", "pre_norm", "--checkpoint-seconds", 0)
    chunk = sweep.Run.chunk
    with contextlib.ExitStack() as hearts:

        def chunk_and_lose(run):
            chunk(run)
            (path,) = out.glob("groups/*/claim.json")
            made_by(path, 1, host="elsewhere")
            hearts.enter_context(beating(path))

        monkeypatch.setattr(sweep.Run, "chunk", chunk_and_lose)
        assert depth_sweep.main(command) == UNDONE
    assert "left to process 1 on elsewhere" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_failure_after_a_group_was_taken_over_is_nobodys(tmp_path, corpus, monkeypatch, impatient):
    """A worker that was frozen, and whose files another one removed meanwhile, does not write that its cells failed."""
    out = tmp_path / "out"
    command = arguments(out, corpus, "--depths", 1, "--recipes", "pre_norm")
    with contextlib.ExitStack() as hearts:

        def lose_and_fail(run):
            (path,) = out.glob("groups/*/claim.json")
            made_by(path, 1, host="elsewhere")
            hearts.enter_context(beating(path))
            raise RuntimeError("what the other worker did")

        monkeypatch.setattr(sweep.Run, "chunk", lose_and_fail)
        assert depth_sweep.main(command) == UNDONE
    assert not list(out.glob("cells/*/summary.json")) and not list(out.glob("cells/*/error.txt"))


def test_all_who_share_a_folder_agree_on_the_order_of_lanes(tmp_path, corpus, monkeypatch):
    """A machine with a GPU and one without name the same cells alike, those of rates that follow included."""
    first = prepared(arguments(tmp_path / "out", corpus, *PART))
    first.save(first.jobs())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    second, fresh = (prepared(arguments(tmp_path / name, corpus, *PART)) for name in ("out", "new"))
    assert [job.name for job in second.jobs()] == [job.name for job in first.jobs()]
    wider = dataclasses.replace(second, grid=dataclasses.replace(second.grid, learning_rates=(1e-3,)))
    assert {job.group.mode for job in wider.jobs()} == {"loop"} and {job.group.mode for job in fresh.jobs()} == {"vmap"}
