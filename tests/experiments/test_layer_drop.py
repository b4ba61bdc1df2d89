"""Layers left out of models trained on the spot, and of the cells of a sweep."""

import json
import shutil

import jax
import numpy as np
import pytest

import stackjax as sj
from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import data
from experiments.lab.grid import Setting
from experiments.layer_drop import __main__ as layer_drop
from experiments.layer_drop.dropped import drop
from stackjax import surgery
from stackjax.recipe import PreNorm
from stackjax.testing import perturbed
from tests.experiments.conftest import arguments


@pytest.mark.thorough
def test_quick(tmp_path, corpus, capsys):
    out = tmp_path / "out"
    assert layer_drop.main(["--quick", "--data", str(corpus), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "result.json").read_text())
    assert [row["recipe"] for row in found["rows"]] == ["pre_norm", "post_norm"]
    for row in found["rows"]:
        assert np.shape(row["cost"]) == (2, 2) and np.shape(row["distance"]) == (2, 3, 3)
        assert np.allclose(np.diagonal(row["distance"], 0, 1, 2), 0, atol=1e-3)
        assert np.shape(row["together"]) == (2, 3) and all(np.asarray(row["together"])[:, 0] == 0)
        assert all(0 <= idle <= 2 for idle in row["idle"])
    assert len(found["predictions"]) == 5 and all(p["claim"] in said for p in found["predictions"])
    for name in ("cost", "together", "angles"):
        assert (out / "figures" / f"{name}.png").exists()


@pytest.mark.thorough
def test_what_layers_cost_together(corpus):
    """Against a loop over models that do not have the layers, on the second half of the windows."""
    text = data.load(str(corpus))
    setting = Setting(steps=1, warmup=0, d_model=8, n_heads=2, context=6, batch=2)
    model = setting.model(PreNorm(), 3, text.vocab)
    params = perturbed(model.init(jax.random.key(0)))
    dropped = drop(model, [params], text, setting, 4)
    batches = text.valid_batches(4, batch=2, context=6)

    def loss(without, part):
        layers = [layer for layer in range(3) if layer not in without]
        shorter, fewer, _ = surgery.select(model, params, layers, coefficients="original")
        logits = (shorter.apply(fewer, windows[:, :-1])[0] for windows in part)
        return np.mean([sj.loss.cross_entropy(y, windows[:, 1:]) for y, windows in zip(logits, part, strict=True)])

    first, second = batches[:2], batches[2:]
    alone = [loss({layer}, first) - loss(set(), first) for layer in range(3)]
    order = np.argsort(alone)
    rises = [loss(set(order[:k]), second) - loss(set(), second) for k in range(4)]
    np.testing.assert_allclose(dropped.together[0], rises, atol=1e-5)
    np.testing.assert_array_equal(dropped.idle, [np.sum(np.array(alone) < 0.01)])
    np.testing.assert_array_equal(dropped.idle_together, dropped.together[0, dropped.idle])


@pytest.fixture(scope="module")
def kept(tmp_path_factory, corpus):
    """A cell with its parameters."""
    out = tmp_path_factory.mktemp("kept") / "out"
    words = ("--depths", 3, "--recipes", "pre_norm", "--learning-rates", 1e-2, "--keep-params")
    assert depth_sweep.main(arguments(out, corpus, *words)) == 0
    (cell,) = (out / "cells").iterdir()
    return cell


@pytest.mark.thorough
def test_a_cell_of_a_sweep(kept, tmp_path, corpus):
    out = tmp_path / "out"
    assert layer_drop.main(["--cells", str(kept), "--eval-batches", "2", "--data", str(corpus), "--out", str(out)]) == 0
    (row,) = json.loads((out / "result.json").read_text())["rows"]
    summary = json.loads((kept / "summary.json").read_text())
    assert row["recipe"] == kept.name and np.shape(row["cost"]) == (1, 3)
    assert row["loss"][0] == pytest.approx(summary["valid_loss"], rel=1e-3)


@pytest.mark.thorough
def test_bad_usage(kept, tmp_path, corpus, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(kept, bare, ignore=shutil.ignore_patterns("params.npz"))
    (tmp_path / "other.txt").write_text("another text, " * 200)
    for words, said in (
        (("--recipes", "pre_nrom"), "did you mean pre_norm"),
        (("--depth", 0), "--depth must be 1 or more; got 0"),
        (("--learning-rate", -1), "--learning-rate must be positive"),
        (("--n-heads", 3), "n_heads must divide d_model"),
        (("--cells", tmp_path), "is no cell of a sweep"),
        (("--cells", bare), "run the sweep with --keep-params"),
        (("--cells", kept, "--data", tmp_path / "other.txt"), "which --data has to name"),
    ):
        out = tmp_path / "out"
        assert layer_drop.main(["--data", str(corpus), "--out", str(out), *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("layer_drop: ") and captured.err.count("\n") == 1 and said in captured.err
        assert captured.out == "" and not out.exists()
