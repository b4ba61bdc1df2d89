"""The atlas runs, goes on where it was, and says what it saw."""

import csv
import json
import shutil
from pathlib import Path

import altair as alt
import pytest

from experiments.depth_atlas import __main__ as depth_atlas
from experiments.depth_atlas import atlas, deep_check
from experiments.lab import names, sweep
from experiments.lab.headline import NO_GAIN
from experiments.lab.results import Results
from experiments.lab.store import Folder
from stackjax import recipe
from tests.experiments.conftest import SIZES
from tests.experiments.own import Broken


def command(out, corpus, *more):
    return ["--plan", "quick", "--out", str(out), "--data", str(corpus), *map(str, more)]


@pytest.fixture(scope="module")
def done(tmp_path_factory, corpus):
    out = tmp_path_factory.mktemp("atlas") / "out"
    assert depth_atlas.main(command(out, corpus)) == 0
    return out


@pytest.mark.thorough
def test_what_is_written(done):
    found = json.loads((done / "atlas" / "result.json").read_text())
    points = {(row["recipe"], row["depth"]): row for row in found["rows"] if row["kind"] == "point"}
    assert set(points) == {(name, depth) for name in ("pre_norm", "no_residual") for depth in (0, 1, 2)} | {
        ("pre_norm", 3)
    }
    assert {row["learning_rate"] for row in points.values()} <= {1e-2, None}, "1e30 diverges"
    assert points["pre_norm", 3]["loss"] > 1
    checks = [row for row in found["rows"] if row["kind"] == "check"]
    assert [(row["recipe"], row["depth"], row["status"]) for row in checks] == [
        ("pre_norm", 3, "finite"),
        ("no_residual", 3, "finite"),
    ]
    assert sorted(path.name for path in (done / "checks").iterdir()) == ["no_residual.json", "pre_norm.json"]
    for row in checks:
        assert len(row["losses"]) == 2 and set(row["temp_bytes"]) == set(deep_check.REMATS)
        assert 5 < row["losses"][0] < 7, "about ln 256 before any step"
    for name in ("depths", "rates", "deep", "cost"):
        assert (done / "atlas" / "figures" / f"{name}.png").stat().st_size > 1000
    page = (done / "atlas" / "finding.md").read_text()
    assert "python -m experiments.depth_atlas --plan quick" in page and "quick run" in page
    with open(done / "results.csv") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 2 + 1


@pytest.mark.thorough
def test_the_same_command_again_runs_nothing(done, corpus, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "Run", None)
    monkeypatch.setattr(deep_check, "_check", None)
    assert depth_atlas.main(command(done, corpus)) == 0
    assert depth_atlas.main(command(done, corpus, "--report-only")) == 0
    assert capsys.readouterr().out.count("finding.md") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipes", "pre_nrom"), "did you mean pre_norm"),
        (("--d-model", 9), "n_heads must divide d_model"),
        (("--steps", 0), "--steps must be 1 or more"),
        (("--context", 10**6), "too short"),
        (("--report-only",), "holds no sweep"),
        (("--plan", "longest"), "--plan"),
        (("--depths", 5), "has none of these depths: 5"),
    ],
)
def test_bad_usage(tmp_path, corpus, capsys, words, said):
    out = tmp_path / "out"
    assert depth_atlas.main(command(out, corpus, *words)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("depth_atlas: ") and captured.err.count("\n") == 1 and said in captured.err
    assert not out.exists()


@pytest.mark.thorough
def test_what_another_worker_is_checking_is_left_to_it(done, corpus, monkeypatch, capsys):
    (done / "checks" / "pre_norm.json").unlink()
    monkeypatch.setattr(deep_check, "_check", None)
    claim = depth_atlas.Claim.take(done / "checks" / "pre_norm.claim")
    assert claim is not None
    assert depth_atlas.main(command(done, corpus)) == depth_atlas.UNDONE
    claim.release()
    assert not (done / "checks" / "pre_norm.json").exists()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("the checks of pre_norm are left undone by this worker, with process")


def test_own_recipes_are_in_every_tier_and_quadratic_ones_not_too_deep():
    own = "tests.experiments.own:instance"
    plan = depth_atlas.planned(depth_atlas.Options(recipes=names.recipes(own, "attention_residuals"), plan="full"))
    without_layers, deeper = plan.tiers
    assert without_layers.depths == (0,) and tuple(without_layers.recipes) == (own, "attention_residuals")
    parts = depth_atlas._affordable(deeper, ())
    assert [(part.depths, tuple(part.recipes)) for part in parts] == [
        ((2, 8, 32), (own, "attention_residuals")),
        ((128, 512, 1024), (own,)),
    ]
    (part,) = depth_atlas._affordable(deeper, {"attention_residuals"})
    assert part == deeper
    tiers = depth_atlas.planned(depth_atlas.Options(recipes=names.recipes(own), plan="short")).tiers
    assert [tuple(tier.recipes) for tier in tiers] == [(own,)] * len(depth_atlas.PLANS["short"].tiers)
    assert {name for tier in depth_atlas.PLANS["short"].tiers for name in tier.recipes} == set(recipe.NAMES)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({2: 2.4, 8: 2.42, 32: 2.45}, "trained at 2, 8, 32, within 0.1 nats of each other there"),
        ({2: 2.6, 8: 2.5, 32: 2.3}, "trained at 2, 8, 32, better with depth (2.60 to 2.30)"),
        ({2: 2.3, 8: 2.5, 32: 2.6}, "trained at 2, 8, 32, worse with depth (2.30 to 2.60)"),
        ({2: 2.6, 8: 2.3, 32: 2.5}, "trained at 2, 8, 32, best at 8 (2.30; 2.50 at 32)"),
        ({2: 2.4, 8: 2.9, 32: 3.2, 128: None}, "trained at 2, slow at 8, stuck at 32, diverged at 128"),
    ],
)
def test_words_and_sentences(finished, losses, said):
    results = Results.of(finished)
    base = {**results.base, "data": {**results.base["data"], "unigram": 3.14, "bigram": 2.14}}
    ended = {"recipe": "x", "learning_rate": 1e-2, "seed": 0, "status": "diverged", "valid_loss": None}
    cells = [{**ended, "depth": depth} for depth in losses]
    stub = Results(results.folder, base, cells)
    rows = [{"recipe": "x", "depth": depth, "loss": loss} for depth, loss in losses.items()]
    assert atlas.sentence([{**row, "word": atlas._word(row, stub)} for row in rows]) == said


def test_a_check_that_fails_is_a_row(corpus):
    setting = depth_atlas.PLANS["quick"].check_setting
    text = depth_atlas.data.load(str(corpus))
    found = deep_check.check(setting, "broken", Broken(), 0, text, learning_rate=1e-3)
    assert found.status == "failed" and "no init for you" in found.message
    assert SIZES["d-model"] == setting.d_model


def test_the_committed_finding_is_what_its_own_files_say(tmp_path, monkeypatch):
    """Words that no longer follow from the numbers, and numbers that were changed by hand, are both found."""
    committed = Path(deep_check.__file__).parents[1] / "results" / "depth_atlas"
    for name in ("results.csv", "result.json"):
        shutil.copy(committed / name, tmp_path)
    monkeypatch.setattr(alt.TopLevelMixin, "save", lambda *_, **__: None)
    assert depth_atlas.main(["--report-only", "--out", str(tmp_path)]) == 0
    for name in ("finding.md", "results.csv", "result.json"):
        assert (tmp_path / name).read_text() == (committed / name).read_text(), name


def test_zero_layers_decide_what_is_trained():
    """By the paired interval with three seeds, by the difference alone with one."""
    cells = [
        {"recipe": "x", "depth": depth, "learning_rate": 1e-2, "seed": seed, "status": "ok", "valid_loss": loss}
        for depth, losses in {
            0: (2.6, 2.7, 2.5),
            2: (2.5, 2.6, 2.4),
            8: (2.4, 2.8, 2.5),
            32: (2.59,),
            128: (2.61,),
            512: (3.2,),
        }.items()
        for seed, loss in enumerate(losses)
    ]
    results = Results(Folder("nowhere"), {"data": {"unigram": 3.2, "bigram": 2.4}, "setting": {}}, cells)
    rows = atlas.points(results)
    words = {row["depth"]: row["word"] for row in rows}
    assert words == {0: "no layers", 2: "trained", 8: NO_GAIN, 32: "trained", 128: NO_GAIN, 512: "stuck"}
    assert [row["gain_low"] is None for row in rows] == [True, False, False, True, True, True]
    assert atlas.sentence(rows) == f"trained at 2, 32, {NO_GAIN} at 8, 128, stuck at 512"
