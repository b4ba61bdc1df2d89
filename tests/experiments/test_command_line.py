"""The command line: bad usage is one line and exit status 2, before anything is written."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import command_line, data, page, store
from tests.experiments.conftest import GRID, arguments
from tests.experiments.test_bad_data import bad_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small:
    """Options of an experiment that only reads."""

    data: str | None = None
    out: str


OWN = "experiments.own_recipe:recipe"


def refused(capsys, command, out, *said):
    """Run a command that cannot be; returns its one line."""
    assert depth_sweep.main([str(word) for word in command]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("depth_sweep: ") and captured.err.count("\n") == 1, captured.err
    assert captured.err[:-1].isprintable()
    for words in said:
        assert re.search(words, captured.err), captured.err
    assert captured.out == "" and not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipes", "pre_nrom"), "did you mean pre_norm"),
        (("--recipes", "no.module:x"), "cannot be imported"),
        (("--depths", "-1"), "--depths must be 0 or more; got -1"),
        (("--depths", "deep"), "--depths"),
        (("--depths", "2.5"), "--depths"),
        (("--n-heads", "3"), "n_heads must divide d_model; got d_model=8, n_heads=3"),
        (("--learning-rates", "-1e-3"), "--learning-rates must be positive; got -0.001"),
        (("--learning-rates", "nan"), "must be positive"),
        (("--seeds", "0"), "1 or more"),
        (("--steps", "0"), "--steps must be 1 or more"),
        (("--warmup", "6"), "--warmup must be 0 or more and less than --steps 6"),
        (("--position", "rotory"), "did you mean rotary"),
        (("--schedule", "triangle"), "--schedule"),
        (("--depht", "3"), "Unrecognized options: --depht"),
        (("--context", "100000"), "too short"),
        (("--scheduler", "pbs"), "invalid choice 'pbs'"),
    ],
)
def test_bad_usage(tmp_path, corpus, capsys, words, said):
    out = tmp_path / "out"
    refused(capsys, [*arguments(out, corpus), *words], out, said)


def test_bad_data(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    out = tmp_path / "out"
    for options, said in bad_inputs(tmp_path / "data").values():
        more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name != "where"]
        refused(capsys, [*arguments(out, options["where"]), *more], out, said)


def test_a_dry_run_says_what_would_be_read(tmp_path, capsys):
    top, out = tmp_path / "top", tmp_path / "out"
    top.mkdir()
    for i in range(25):
        (top / f"{i:02}.txt").write_text(f"text number {i} " * 40)
    (top / "old\n\x1b[31m.txt").write_bytes("Größe ".encode("latin-1") * 40)
    (top / os.fsdecode(b"odd\xff.png")).write_bytes(b"\0" * 40)
    assert depth_sweep.main([*arguments(out, top, *GRID), "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "25 files, 25 documents; 2 whole documents are for validation" in captured.out
    assert "  and 15 more" in captured.out and "2 left out:" in captured.out
    assert r"/top/old\n\x1b[31m.txt: not UTF-8" in captured.out
    assert r"/top/odd\udcff.png: binary, not text" in captured.out
    assert re.fullmatch(r"depth_sweep: warning: .*: left out: .*odd\\udcff.*old \\x1b.*\n", captured.err)
    assert not out.exists()


def test_a_dry_run_of_a_made_task_speaks_of_no_files(tmp_path, capsys):
    command = ("--task", "hops", "--context", 17, "--depths", 1, "--recipes", "pre_norm", "--out", tmp_path / "out")
    assert depth_sweep.main([*map(str, command), "--dry-run"]) == 0
    assert "files" not in capsys.readouterr().out


def test_left_out_files_are_a_warning_of_every_experiment(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some text " * 300)
    (tmp_path / "b.png").write_bytes(b"\0" * 40)

    def prepare(options):
        return data.load(options.data)

    def run(corpus, command):
        return Path(corpus.name)

    small = Small(out=str(tmp_path / "out"))
    options = {"usual": small, "quick": small, "prepare": prepare, "run": run}
    assert command_line.main("experiments.small", **options, arguments=["--data", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"small: warning: .*: left out: .*b\.png \(binary, not text\)\n", captured.err)
    assert command_line.main("experiments.small", **options, arguments=["--data", str(tmp_path / "b.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_names_that_utf8_does_not_hold_reach_a_page_as_their_escapes(tmp_path):
    page_of = page.document(title="odd \udcff", under="", headline=[], body=page.environment({}, ["\udcff"]), specs={})
    store.write(tmp_path / "page.html", page_of)
    assert r"odd \udcff" in (tmp_path / "page.html").read_text("utf-8")


def test_nothing_to_report(tmp_path, capsys):
    refused(capsys, ["--report-only", "--out", tmp_path / "none"], tmp_path / "none", "holds no sweep")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "9"), "steps 6 (now 9)"),
        (("--d-model", "16", "--batch", "4"), "d-model 8 (now 16), batch 2 (now 4)"),
    ],
)
def test_a_folder_with_other_options_is_left_alone(copy, corpus, capsys, words, said):
    before = {path: path.stat().st_mtime for path in copy.rglob("*")}
    assert depth_sweep.main([*arguments(copy, corpus, *GRID), *words]) == 2
    assert said in capsys.readouterr().err
    assert {path: path.stat().st_mtime for path in copy.rglob("*")} == before


def test_a_folder_with_other_data_or_other_things_is_left_alone(copy, tmp_path, corpus, capsys):
    other = tmp_path / "other.txt"
    other.write_text("other text " * 50)
    assert depth_sweep.main(arguments(copy, other)) == 2
    assert "data" in capsys.readouterr().err
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    assert depth_sweep.main(arguments(mine, corpus)) == 2
    assert "holds files that are no sweep" in capsys.readouterr().err
    assert depth_sweep.main(arguments(other, corpus)) == 2
    assert "not a folder" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_recipe_that_changed_is_not_mixed_with_its_old_self(tmp_path, corpus, capsys, monkeypatch):
    from stackjax import recipe
    from tests.experiments import own

    command = arguments(tmp_path / "out", corpus, "--depths", 0, "--recipes", "tests.experiments.own:instance")
    assert depth_sweep.main([*command, "--learning-rates", "1e-3"]) == 0
    monkeypatch.setattr(own, "instance", recipe.PreNorm(residual=recipe.residual.Pre(final=False)))
    assert depth_sweep.main(command) == 2
    assert "has changed since" in capsys.readouterr().err


def test_other_versions_are_a_warning(copy, corpus, capsys):
    record = store.read_sealed(copy / "sweep.json")
    record["versions"]["jax"] = "0.0.1"
    store.write_sealed(copy / "sweep.json", record)
    assert depth_sweep.main(arguments(copy, corpus, *GRID)) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("depth_sweep: warning: ") and "jax 0.0.1 (now" in captured.err


def test_dry_run_writes_nothing(tmp_path, corpus, capsys, finished):
    out = tmp_path / "out"
    assert depth_sweep.main([*arguments(out, corpus, *GRID), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not out.exists()
    rows = [line.split() for line in said.splitlines() if line.startswith(("pre_norm", "post_norm"))]
    assert [row[:4] for row in rows] == [
        ["pre_norm", "0", "4", "0"],
        ["post_norm", "0", "4", "0"],
        ["pre_norm", "2", "4", "0"],
        ["post_norm", "2", "4", "0"],
    ]
    before = {path: path.stat().st_mtime for path in finished.rglob("*")}
    assert depth_sweep.main([*arguments(finished, corpus, *GRID), "--dry-run"]) == 0
    assert "0.00e+00 model FLOPs are left" in capsys.readouterr().out
    assert {path: path.stat().st_mtime for path in finished.rglob("*")} == before


@pytest.mark.thorough
def test_token_files_lanes_at_once_and_recipes_of_ones_own_sweep_too(tmp_path, capsys):
    np.random.default_rng(0).integers(0, 40, 3000).astype("<u2").tofile(tmp_path / "tokens.bin")
    command = arguments(tmp_path / "out", tmp_path / "tokens.bin", "--vocab", 50, "--lanes", "vmap")
    assert depth_sweep.main([*command, "--depths", "1", "--optimizer", "muon", "--recipes", OWN]) == 0
    said = capsys.readouterr().out
    assert "V = 50" in said and f"{OWN} L=1 lr 0.002 seed 0: " in said


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as stop:
        depth_sweep.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for words in ("--depths", "--learning-rates", "Exit status", "Number of seeds: 3 means 0, 1 and 2"):
        assert words in " ".join(said.replace("│", " ").split())
