"""Recipes with norms that learn, and with norms that do not."""

import json

import jax
import numpy as np
import pytest

import stackjax as sj
from experiments import norm_gains
from experiments.lab import names
from stackjax import recipe
from stackjax.recipe.residual import BranchNormed


@pytest.mark.parametrize("name", ["pre_norm", "post_norm", "deepnorm", "keel"])
def test_only_the_gains_are_left_out(name):
    pair = norm_gains.both(names.recipes(name))
    assert list(pair) == [name, f"{name}_without_gains"]
    learned, fixed = (
        sj.decoder(vocab=8, d_model=8, depth=2, n_heads=2, recipe=each).init(jax.random.key(0))
        for each in pair.values()
    )

    def leaves(params):
        return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}

    learned, fixed = leaves(learned), leaves(fixed)
    left_out = set(learned) - set(fixed)
    assert set(fixed) < set(learned) and left_out
    for path in left_out:
        assert "'scale'" in path or "'bias'" in path, path
        assert "norm" in path
    for path, x in fixed.items():
        np.testing.assert_array_equal(x, learned[path])


@pytest.mark.thorough
def test_quick_and_again(tmp_path, corpus, capsys):
    """A second run finds all cells ended."""
    out = tmp_path / "out"
    words = ["--quick", "--data", str(corpus), "--out", str(out)]
    assert norm_gains.main(words) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "result.json").read_text())
    assert [(row["gains"], row["depth"]) for row in found["rows"]] == [
        (gains, depth) for depth in (0, 1, 2) for gains in ("learned", "none")
    ]
    assert all(np.shape(row["losses"]) == (2,) for row in found["rows"])
    assert len(found["predictions"]) == 2 and all(p["claim"] in said for p in found["predictions"])
    learned, none = (row for row in found["rows"] if row["depth"] == 2)
    difference = float(np.mean(np.subtract(none["losses"], learned["losses"])))
    assert found["predictions"][0]["found"]["mean"] == pytest.approx(difference)
    page = (out / "finding.md").read_text()
    assert norm_gains.main(words) == 0
    assert "compiling" not in capsys.readouterr().out and (out / "finding.md").read_text() == page


def test_a_recipe_whose_form_has_no_layer_norm_is_refused():
    for named in (recipe.NAMES["rezero"], sj.recipe.PreNorm(residual=BranchNormed(norm=sj.RMSNorm()))):
        with pytest.raises(ValueError, match=r"a residual form with a LayerNorm.*; mine has none"):
            norm_gains.both({"mine": named})


def test_cells_that_another_worker_holds_are_left_undone_and_said_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(norm_gains, "run_sweep", lambda *_: ["a job"])
    monkeypatch.setattr(norm_gains, "undone", lambda *_: "2 cells are left undone")
    assert norm_gains.main(["--quick", "--out", str(tmp_path / "out")]) == 3
    assert "2 cells are left undone" in capsys.readouterr().out
