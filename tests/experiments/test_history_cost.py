"""The experiment runs and writes what it promises."""

import json

import pytest

from experiments.history_cost import RECIPES, main


@pytest.mark.thorough
def test_quick(tmp_path):
    words = ["--quick", "--d-model", "8", "--context", "4", "--out", str(tmp_path)]
    assert main(words) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert len(found["rows"]) == 4 + 5 and found["command"].startswith("python -m experiments.history_cost --quick")
    assert {row["recipe"] for row in found["rows"]} == set(list(RECIPES)[:2])
    assert all(row["temp_bytes"] > 0 and row["step_seconds"] > 0 for row in found["rows"])
    assert (tmp_path / "figures" / "history_cost.svg").read_text().startswith("<svg")
    assert "A quick run" in (tmp_path / "finding.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--depths", "0"), "--depths must be 1 or more; got 0"),
        (("--recipes", "keel"), "--recipes knows pre_norm"),
        (("--n-heads", "3"), "n_heads must divide d_model"),
        (("--repeats", "0"), "--repeats must be 1 or more; got 0"),
    ],
)
def test_bad_usage(tmp_path, capsys, words, said):
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("history_cost: ") and captured.err.count("\n") == 1 and said in captured.err
    assert not (tmp_path / "out").exists()
