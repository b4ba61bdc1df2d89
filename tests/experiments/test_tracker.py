"""Curves in an experiment tracker: every row of every cell once, whatever is killed, and never at a cell's expense."""

import contextlib
import dataclasses
import json
import sqlite3
import struct
import sys
from types import SimpleNamespace

import pytest

from experiments.lab import progress, sweep, tracker
from tests.experiments.conftest import LANES, arguments, prepared
from tests.experiments.test_sweep import numbers

STEPS = 6


class Recorder:
    """A tracker whose runs live as long as itself, as those on a server do."""

    def __init__(self, broken=""):
        self.broken, self.metrics, self.options, self.open = broken, {}, {}, []
        self.tracker = tracker.Tracker("json", self.begin, self.log, self.finish)

    def begin(self, _, folder, cell, options):
        if self.broken == "begin" and self.open:
            raise RuntimeError("no route to the tracker")
        self.open.append(cell)
        self.options[cell] = options
        rows = self.metrics.setdefault(cell, [])
        return cell, rows[-1][0] + 1 if rows else 0

    def log(self, cell, metrics, step):
        if self.broken == "log" and step == 3:
            raise RuntimeError("no route to the tracker")
        self.metrics[cell].append((step, metrics))

    def finish(self, cell):
        self.open.remove(cell)
        if self.broken == "finish":
            raise RuntimeError("no route to the tracker")


@pytest.fixture
def sweeping(tmp_path, corpus):
    """A sweep of one group of four cells, logged by the tracker that a test puts in place of TensorBoard."""
    words = arguments(tmp_path / "out", corpus, "--depths", 2, "--recipes", "pre_norm", *LANES, "--log", "tensorboard")
    return prepared(words)


@pytest.fixture
def recorder(monkeypatch):
    def put(broken=""):
        recorder = Recorder(broken)
        monkeypatch.setitem(tracker.TRACKERS, "tensorboard", recorder.tracker)
        return recorder

    return put


def row(step, lane):
    """A row of a cell's curve."""
    valid = 5.0 - step - lane if step % 3 == 0 else None
    return {"step": step, "train_loss": step + lane / 8 if step else None, "valid_loss": valid, "valid_losses": [1.0]}


def expected(lane):
    """What a tracker is told of it: (step, metrics)."""
    rows = ({key: x for key, x in row(step, lane).items() if isinstance(x, float)} for step in range(STEPS + 1))
    return list(enumerate(rows))


def follow(sweeping, job, name, steps, note=None):
    """Log a group whose run was at `steps[0]` when it began or went on, and then at the others."""
    run = SimpleNamespace(metrics=[[] for _ in job.cell_names])
    with tracker.logged(name, sweeping.folder.path, job, {"context": 6}, note or pytest.fail) as log:
        for step in steps:
            for lane, rows in enumerate(run.metrics):
                rows += [row(i, lane) for i in range(len(rows), step + 1)]
            log(run)


def test_a_step_that_is_taken_again_is_not_logged_again(sweeping, recorder):
    recorded, (job,) = recorder(), sweeping.jobs()
    follow(sweeping, job, "tensorboard", (0, 3, 4))
    follow(sweeping, job, "tensorboard", (1, 5, STEPS))
    assert recorded.metrics == {cell: expected(lane) for lane, cell in enumerate(job.cell_names)}
    for cell, options in zip(job.group.cells, recorded.options.values(), strict=True):
        assert options == {"context": 6, **dataclasses.asdict(cell)}
    assert not recorded.open


def test_runs_are_finished_whatever_happens(sweeping, recorder):
    recorded, (job,) = recorder(), sweeping.jobs()
    with contextlib.suppress(sweep.Interrupted), tracker.logged("tensorboard", sweeping.folder.path, job, {}, print):
        assert recorded.open == list(job.cell_names)
        raise sweep.Interrupted
    assert not recorded.open


@pytest.mark.parametrize("broken", ["begin", "log", "finish"])
def test_a_tracker_that_fails_is_noted_once(sweeping, recorder, broken):
    recorded, notes, (job,) = recorder(broken), [], sweeping.jobs()
    follow(sweeping, job, "tensorboard", (0, 3, STEPS), notes.append)
    assert len(notes) == 1 and "--log tensorboard" in notes[0] and "no route to the tracker" in notes[0]
    assert not recorded.open


@pytest.mark.thorough
def test_a_sweep_that_goes_on_is_logged_whole_and_its_numbers_are_those_without(sweeping, recorder, finished):
    recorded, asked = recorder(), iter([False, True])
    begun = dataclasses.replace(sweeping, stop=lambda: next(asked))
    with pytest.raises(sweep.Interrupted):
        sweep.run(begun, progress.Plain(lambda _: None))
    assert {rows[-1][0] for rows in recorded.metrics.values()} >= {3} and not recorded.open
    assert not sweep.run(sweeping, progress.Plain(lambda _: None)) and not recorded.open
    for cell, logged in recorded.metrics.items():
        rows = [json.loads(line) for line in (sweeping.folder.cell(cell) / "metrics.jsonl").read_text().splitlines()]
        told = ({key: x for key, x in row.items() if key != "step" and isinstance(x, float)} for row in rows)
        assert logged == [(row["step"], metrics) for row, metrics in zip(rows, told, strict=True) if metrics]
    cells, without = numbers(sweeping.folder.path), numbers(finished)
    assert len(cells) == 4 and cells == {cell: without[cell] for cell in cells}


@pytest.mark.thorough
def test_a_failing_tracker_fails_no_cell(sweeping, recorder):
    recorder("log")
    notes = []
    assert not sweep.run(sweeping, progress.Plain(notes.append))
    (job,) = sweeping.jobs()
    summaries = [sweeping.folder.summary(name) for name in job.cell_names]
    assert {summary["status"] for summary in summaries} == {"ok", "diverged"}
    assert sum("no route to the tracker" in line for line in notes) == 1


@pytest.fixture
def two_cells(tmp_path, corpus):
    """A sweep of two cells for the real trackers, of which nothing is compiled."""
    grid = ("--depths", 2, "--recipes", "pre_norm", "--learning-rates", 1e-2, "--seeds", 2)
    return prepared(arguments(tmp_path / "out", corpus, *grid))


def again(two_cells, name):
    """Log a group that is killed and goes on; returns the names of its cells."""
    (job,) = two_cells.jobs()
    two_cells.folder.path.mkdir()
    follow(two_cells, job, name, (0, 3, 4))
    follow(two_cells, job, name, (1, 5, STEPS))
    return job.cell_names


@pytest.mark.thorough
def test_tensorboard(two_cells):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for lane, cell in enumerate(again(two_cells, "tensorboard")):
        events = reader.EventAccumulator(str(two_cells.folder.path / "tensorboard" / cell))
        events.Reload()
        for name in ("train_loss", "valid_loss"):
            logged = [(event.step, event.value) for event in events.Scalars(name)]
            assert logged == [(step, metrics[name]) for step, metrics in expected(lane) if name in metrics]


@pytest.mark.thorough
def test_wandb_offline(two_cells, monkeypatch):
    wandb = pytest.importorskip("wandb")
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    cells = again(two_cells, "wandb")
    wandb.teardown()
    for lane, cell in enumerate(cells):
        (path,) = (two_cells.folder.path / "wandb").glob(f"offline-run-*-{cell}/run-{cell}.wandb")
        logged = []
        for data in _records(path.read_bytes()):
            record = records.Record.FromString(data)
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                metrics = {key: x for key, x in items.items() if not key.startswith("_")}
                logged.append((record.history.step.num, metrics))
        assert logged == expected(lane)


def _records(file):
    """The records of a file in LevelDB's log format, each whole in one block, behind a header of seven bytes."""
    at = 7
    while at < len(file):
        _, length, kind = struct.unpack_from("<IHB", file, at)
        assert kind == 1 and at + 7 + length <= 2**15, "more than these few records"
        yield file[at + 7 : at + 7 + length]
        at += 7 + length


@pytest.mark.thorough
def test_trackio(two_cells, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    pytest.importorskip("trackio")
    for lane, cell in enumerate(again(two_cells, "trackio")):
        with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "stackjax.db")) as database:
            rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", (cell,))
            assert [(step, json.loads(metrics)) for step, metrics in rows] == expected(lane)
