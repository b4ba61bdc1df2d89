"""Sweeps of tiny models: what they write, and that nothing stops them for good."""

import csv
import dataclasses
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

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import names, outcome, progress, results, store, sweep
from experiments.lab.grid import Setting
from stackjax import residual
from stackjax.recipe import PreNorm
from tests.experiments.conftest import GRID, LANES, PART, arguments, prepared

TIMES = {"compile_seconds", "step_seconds", "sha256"}


def numbers(out):
    """All results of a folder that must not depend on how it came about: by cell, rows and curves."""
    found = {}
    for folder in sorted((out / "cells").iterdir()):
        summary = json.loads((folder / "summary.json").read_text())
        rows = [
            (folder / name).read_text() if (folder / name).exists() else ""
            for name in ("metrics.jsonl", "layers.jsonl")
        ]
        found[folder.name] = ({name: x for name, x in summary.items() if name not in TIMES}, *rows)
    return found


def rows_of(out):
    with open(out / "results.csv") as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_what_is_promised(finished):
    assert {path.name for path in finished.iterdir()} == {
        "cells",
        "figures",
        "finding.md",
        "groups",
        "report.html",
        "result.json",
        "results.csv",
        "sweep.json",
    }
    assert not list((finished / "groups").iterdir()), "claims and checkpoints are gone"
    rows = rows_of(finished)
    assert tuple(rows[0]) == results.COLUMNS and len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        folder = finished / "cells" / row["cell"]
        config = json.loads((folder / "config.json").read_text())
        assert config["setting"]["steps"] == 6 and config["learning_rate"] == float(row["learning_rate"])
        assert row["cell"] in config["group"]["names"] and config["group"]["mode"] == "loop"
        assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()][:2] == [0, 1]
    record = json.loads((finished / "sweep.json").read_text())
    assert len(record["groups"]) == 4 and record["data"]["sha256"] and record["versions"]["jax"]
    assert "--depths 0 2" in record["commands"][0]["command"]


def test_the_finding_says_who_is_best_and_where_the_numbers_come_from(finished):
    found = json.loads((finished / "result.json").read_text())
    assert "--depths 0 2" in found["command"] and found["seeds"] == [0, 1]
    assert found["commit"] and found["clean_tree"] in (True, False, None) and found["versions"]["jax"]
    assert found["setting"]["steps"] == 6 and found["setting"]["data"]["sha256"]
    rows = {(row["recipe"], row["depth"]): row for row in found["rows"]}
    assert set(rows) == {(recipe, depth) for recipe in ("pre_norm", "post_norm") for depth in (0, 2)}
    page = (finished / "finding.md").read_text()
    for row in rows.values():
        assert row["learning_rate"] == 1e-2 and len(row["cells"]) == 2 and row["low"] < row["loss"] < row["high"]
        assert f"{row['loss']:.2f} [{row['low']:.2f}, {row['high']:.2f}] at 0.01" in page
    assert "figures/final_loss.svg" in page and (finished / "figures" / "final_loss.svg").exists()


def test_divergence_is_a_result(finished):
    rows = rows_of(finished)
    wild = [row for row in rows if float(row["learning_rate"]) == 1e30]
    assert {row["status"] for row in rows if row not in wild} == {"ok"}
    assert {row["status"] for row in wild} == {"diverged"}
    assert all(int(row["diverged_step"]) >= 1 and row["message"] for row in wild)
    calm = next(row for row in rows if row["status"] == "ok" and row["depth"] == "2")
    assert float(calm["valid_loss"]) > 0 and int(calm["tokens"]) == 6 * 2 * 6 and int(calm["flops"]) > 0


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ((5, 4, 3), None),
        ((5, 6, 4), None),
        ((5, 4, 6), 20),
        ((5, 6, 4, 6, 7), 30),
        ((5, 6, 7), 10),
        ((5, 5), None),
        ((5,), None),
    ],
)
def test_above_the_first_loss_for_good(losses, step):
    assert outcome.above_for_good({10 * i: float(loss) for i, loss in enumerate(losses)}) == step


def test_the_same_command_again_runs_nothing(copy, corpus, capsys):
    before = numbers(copy)
    assert depth_sweep.main(arguments(copy, corpus, *GRID)) == 0
    assert "16 done before" in capsys.readouterr().out
    assert numbers(copy) == before


@pytest.mark.thorough
def test_a_larger_grid_runs_only_what_is_new(copy, corpus, capsys):
    before = numbers(copy)
    more = ("--depths", 0, "--recipes", "post_norm", "--learning-rates", 1e-2, 1e-3, 1e-4, "--seeds", 2)
    assert depth_sweep.main(arguments(copy, corpus, *more)) == 0
    after = numbers(copy)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(rows_of(copy)) == len(before) + 2 * 2
    assert capsys.readouterr().out.count("compiling") == 1


@pytest.mark.thorough
@pytest.mark.parametrize(("recipe", "said"), [("Broken", "RuntimeError: no init for you"), ("Hungry", "out of memory")])
def test_a_failure_is_recorded_and_the_rest_go_on(tmp_path, corpus, capsys, recipe, said):
    name = f"tests.experiments.own:{recipe}"
    command = arguments(tmp_path / "out", corpus, "--depths", 0, 2, "--recipes", name, *LANES)
    assert depth_sweep.main([*command, "--dry-run"]) == 0
    assert depth_sweep.main(command) == 1
    assert ("cannot be built" in capsys.readouterr().err) == (recipe == "Broken")
    rows = rows_of(tmp_path / "out")
    assert [(row["depth"], row["status"]) for row in rows] == [("0", "failed")] * 4 + [("2", "ok")] * 2 + [
        ("2", "diverged")
    ] * 2
    assert said in rows[0]["message"] and "\n" not in rows[0]["message"]
    assert "Traceback" in (tmp_path / "out" / "cells" / rows[0]["cell"] / "error.txt").read_text()


@pytest.mark.thorough
def test_failed_cells_run_again_only_if_asked(tmp_path, corpus, monkeypatch, capsys):
    command = arguments(tmp_path / "out", corpus, "--depths", 0, "--recipes", "pre_norm", *LANES)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "Run", lambda *_, **__: 1 / 0)
        assert depth_sweep.main(command) == 1
    assert depth_sweep.main(command) == 1 and "4 done before" in capsys.readouterr().out
    assert depth_sweep.main([*command, "--retry-failed"]) == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok", "ok", "diverged", "diverged"]


@pytest.mark.thorough
def test_kept_parameters_give_the_final_loss(tmp_path, corpus):
    command = arguments(tmp_path / "out", corpus, "--depths", 2, "--recipes", "pre_norm", *LANES, "--keep-params")
    assert depth_sweep.main(command) == 0
    found = results.Results.of(tmp_path / "out")
    cell, text = found.cells[0], prepared(command).corpus
    setting = Setting(**cell["setting"])
    trainer = setting.trainer(names.recipe_named("pre_norm"), 2, 256)
    params = store.load_params(found.folder.cell(cell["cell"]) / "params.npz", trainer.task.model)
    evaluate = jax.jit(trainer.evaluate)
    losses = [evaluate(params, batch)[0] for batch in text.valid_batches(2, batch=2, context=6)]
    assert np.mean(losses) == pytest.approx(cell["valid_loss"], rel=1e-5)


def part_of(finished, depth=2):
    """The numbers of the cells of one depth; 2 is that of PART."""
    return {name: found for name, found in numbers(finished).items() if f"-L{depth}-" in name}


@pytest.mark.parametrize("depth", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_interrupted_between_chunks_and_resumed(finished, tmp_path, corpus, monkeypatch, capsys, depth):
    """Ctrl-C after every chunk, again and again, changes no bit."""
    out, stops = tmp_path / "out", 0
    chunk = sweep.Run.chunk

    def chunk_and_press(run):
        chunk(run)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sweep.Run, "chunk", chunk_and_press)
    while (status := depth_sweep.main(arguments(out, corpus, "--depths", depth, *GRID[3:]))) == 130:
        stops += 1
        said = capsys.readouterr().out
        assert "Interrupted" in said and f"--out {out}" in said
    assert status == 0 and stops >= 2
    assert numbers(out) == part_of(finished, depth)


@pytest.mark.thorough
def test_lanes_at_once_are_interrupted_and_resumed_too(tmp_path, corpus, monkeypatch):
    chunk, at_once = sweep.Run.chunk, (*PART, "--lanes", "vmap")
    assert depth_sweep.main(arguments(tmp_path / "whole", corpus, *at_once)) == 0
    monkeypatch.setattr(sweep.Run, "chunk", lambda run: (chunk(run), signal.raise_signal(signal.SIGINT)))
    while (status := depth_sweep.main(arguments(tmp_path / "out", corpus, *at_once))) == 130:
        pass
    assert status == 0 and numbers(tmp_path / "out") == numbers(tmp_path / "whole")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [
        (("--devices", "1"),) * 3,
        (("--devices", "2"), ("--devices", "1"), ("--devices", "2")),
        (("--at-once", "2"), ("--at-once", "1"), ("--at-once", "2")),
    ],
)
def test_killed_at_any_moment_and_resumed(finished, tmp_path, corpus, options):
    """kill -9, twice, at moments that differ from run to run, changes no bit, nor does what runs at the same time."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "experiments.depth_sweep",
        *arguments(out, corpus, *PART, "--checkpoint-seconds", 0),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": ".",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    kills = 0
    *first, last = ([*command, *more] for more in options)
    for moment, command in zip((2, 7), first, strict=True):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and _progress(out) < moment:
                time.sleep(0.01)
            time.sleep(random.random() * 0.2)
            kills += process.poll() is None
            process.kill()
    assert kills == 2
    assert subprocess.run(last, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    assert numbers(out) == part_of(finished)


@pytest.mark.thorough
def test_groups_on_several_devices_are_those_of_one_device(finished, tmp_path, corpus, in_pairs, capsys):
    """Two groups take every chunk at the same time, on two devices; the third device is said to be idle."""
    out = tmp_path / "out"
    assert depth_sweep.main(arguments(out, corpus, "--depths", 0, *GRID[3:], "--devices", 3)) == 0
    assert "2 groups for --devices 3: 1 stay idle" in capsys.readouterr().err
    assert len(in_pairs) == 4 and len(set.union(*in_pairs)) == 2
    assert numbers(out) == part_of(finished, depth=0)


def test_a_full_disk_ends_the_work_on_all_devices(tmp_path, corpus, monkeypatch, capsys):
    """What had ended is kept, and the error is said in one line."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep, "write_sealed", full)
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *PART, "--devices", 2)) == 1
    assert "stopped, and what was done is kept: [Errno 28]" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("groups/*/claim.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--devices", 0), "--devices must be 1 or more; got 0"),
        (("--devices", 9), "--devices must be 8 or less on this machine; got 9"),
        (("--devices", 2, "--scheduler", "ray"), "--scheduler ray gives each group a device of its own"),
    ],
)
def test_devices_that_are_not_there_are_refused(tmp_path, corpus, capsys, words, said):
    assert depth_sweep.main(arguments(tmp_path / "out", corpus, *PART, *words)) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.count("\n") == 1 and not (tmp_path / "out").exists()


def _progress(out):
    """Cells begun, cells ended and checkpoints made, all counted."""
    return sum(
        len(list(out.glob(pattern))) for pattern in ("cells/*/config.json", "cells/*/summary.json", "groups/*/*.npz")
    )


@pytest.mark.thorough
def test_a_torn_checkpoint_is_begun_again(tmp_path, corpus, finished, monkeypatch):
    out, chunk = tmp_path / "out", sweep.Run.chunk
    with monkeypatch.context() as patch:
        patch.setattr(sweep.Run, "chunk", lambda run: (chunk(run), signal.raise_signal(signal.SIGINT)))
        assert depth_sweep.main(arguments(out, corpus, *PART)) == 130
    (torn,) = out.glob("groups/*/checkpoint.npz")
    torn.write_bytes(torn.read_bytes()[:100])
    assert depth_sweep.main(arguments(out, corpus, *PART)) == 0
    assert numbers(out) == part_of(finished)


@pytest.mark.thorough
def test_a_notebook_sweeps_recipes_that_no_table_knows(finished, tmp_path, corpus):
    """Objects by names of one's own: the same numbers as by their names in the table, in cells with names of theirs."""
    sweeping = prepared(arguments(tmp_path / "out", corpus, "--depths", 2, "--recipes", "pre_norm", *LANES))
    mine = {"mine / usual": PreNorm(), "mine: no final norm": PreNorm(residual=residual.Pre(final=False))}
    sweeping = dataclasses.replace(sweeping, grid=dataclasses.replace(sweeping.grid, recipes=mine))
    assert sweep.run(sweeping, progress.Plain()) == []
    cells = results.Results.of(tmp_path / "out").cells
    assert {cell["recipe"] for cell in cells} == set(mine)
    assert {cell["cell"].partition("-L2")[0] for cell in cells} == {"mine---usual", "mine--no-final-norm"}
    found = {(cell["recipe"], cell["learning_rate"], cell["seed"]): cell["valid_loss"] for cell in cells}
    usual = [cell for cell in results.Results.of(finished).cells if (cell["recipe"], cell["depth"]) == ("pre_norm", 2)]
    assert len(usual) == 4
    for cell in usual:
        numbers = [found[name, cell["learning_rate"], cell["seed"]] for name in mine]
        assert numbers[0] == cell["valid_loss"] and (numbers[1] != numbers[0] or cell["status"] == "diverged")


def test_results_can_be_read_back(finished):
    found = results.Results.of(finished)
    assert found.recipes == ["pre_norm", "post_norm"] and found.depths == [0, 2]
    best = found.best()
    assert [(row["recipe"], row["depth"]) for row in best] == [
        ("pre_norm", 0),
        ("pre_norm", 2),
        ("post_norm", 0),
        ("post_norm", 2),
    ]
    for row in best:
        assert row["learning_rate"] == 1e-2 and row["edge"] == "lowest" and len(row["cells"]) == 2
        assert row["loss"] == pytest.approx(np.mean([cell["report_loss"] for cell in row["cells"]]))
    curve = found.curve(best[1]["cells"][0])
    assert [point["step"] for point in curve] == [0, 3, 6]
    assert curve[-1]["flops"] == best[1]["cells"][0]["flops"]
    with pytest.raises(ValueError, match="holds no sweep"):
        results.Results.of(finished / "cells")


def test_everything_outside_the_cells_can_be_made_again(copy, capsys):
    table, record = rows_of(copy), store.read_sealed(copy / "sweep.json")
    for path in copy.iterdir():
        if path.is_file():
            path.unlink()
    assert depth_sweep.main(["--report-only", "--out", str(copy)]) == 0
    assert sorted(map(str, rows_of(copy))) == sorted(map(str, table)) and (copy / "report.html").exists()
    assert store.read_sealed(copy / "sweep.json") == {**record, "commands": []}
    assert "trains" in capsys.readouterr().out
