"""The experiment runs and writes what it promises."""

import json

from experiments.history_cost import RECIPES, Options, main


def test_quick(tmp_path):
    rows = main(Options(out=tmp_path, quick=True, d_model=8, batch=1, context=4, repeats=1))
    found = json.loads((tmp_path / "history_cost.json").read_text())
    assert len(found["rows"]) == len(rows) == 4 + 5
    assert {row["recipe"] for row in found["rows"]} == set(list(RECIPES)[:2])
    assert all(row["temp_bytes"] > 0 and row["step_seconds"] > 0 for row in found["rows"])
    assert (tmp_path / "history_cost.svg").read_text().startswith("<svg")
