"""The three hops beside a sweep on text: run with it, drawn beside it, and left out where nobody wants them."""

import dataclasses
import json

import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.depth_sweep import hops, loss_chart
from experiments.lab import command_line, names
from experiments.lab.grid import Grid, Setting
from experiments.lab.results import Results
from experiments.lab.task_hops import reach
from tests.experiments.conftest import arguments

TINY = {"steps": 2, "d_model": 8, "n_heads": 2, "batch": 2, "eval_every": 2, "eval_batches": 2}


def words(out, corpus):
    plain = arguments(out, corpus, "--depths", 0, "--recipes", "pre_norm", "--learning-rates", 1e-2)
    return [word for word in plain if word != "--no-hops"]


@pytest.fixture
def tiny(monkeypatch):
    """Three hops that are over at once."""
    monkeypatch.setattr(hops, "SETTING", dataclasses.replace(hops.SETTING, **TINY))
    monkeypatch.setattr(hops, "GRID", Grid(depths=(0,), recipes=names.recipes("pre_norm"), learning_rates=(1e-2,)))


def test_one_layer_cannot_and_two_can():
    assert Setting(task=hops.TASK, steps=800, context=17, batch=64, eval_every=100, eval_batches=8) == hops.SETTING
    assert reach(1) < 3 <= reach(2) and hops.GRID.depths == (0, 1, 2)


@pytest.mark.thorough
def test_they_are_run_drawn_and_said_beside_the_text(tmp_path, corpus, tiny, capsys):
    out = tmp_path / "out"
    assert depth_sweep.main(words(out, corpus)) == 0
    text, beside = Results.of(out), Results.of(out / hops.FOLDER)
    assert text.base["setting"]["task"] == "text" and beside.base["setting"]["task"] == hops.TASK
    assert (out / hops.FOLDER / "results.csv").exists() and len(text.cells) == len(beside.cells) == 1
    drawn = loss_chart.final_loss(text).to_dict(validate=False)
    assert len(drawn["hconcat"]) == 2
    said = hops.sentence(beside)
    assert said in capsys.readouterr().out and said in (out / "finding.md").read_text()
    assert f"{beside.cells[0]['report_loss']:.2f} with 0 layers" in said
    rows = json.loads((out / "result.json").read_text())["rows"]
    assert [row.get("task") for row in rows] == [None, hops.TASK]
    assert depth_sweep.main(words(out, corpus)) == 0
    assert "compiling" not in capsys.readouterr().out, "all was done before"


def test_they_can_be_left_out(tmp_path, corpus, tiny):
    out = tmp_path / "out"
    assert depth_sweep.main([*words(out, corpus), "--no-hops"]) == 0
    assert not (out / hops.FOLDER).exists() and hops.read(Results.of(out)) is None
    assert "hconcat" not in loss_chart.final_loss(Results.of(out)).to_dict(validate=False)


def test_no_task_but_text_has_them_beside_it(tmp_path):
    options = ["--task", "hops", "--context", "17", "--batch", "2"]
    line = [*options, "--out", str(tmp_path / "out"), "--dry-run"]
    _, sweeps = depth_sweep.prepared(line, "")
    assert [sweep.setting.task for sweep in sweeps] == ["hops"]
    assert command_line.parse(line, depth_sweep.Options, "experiments.depth_sweep").hops
