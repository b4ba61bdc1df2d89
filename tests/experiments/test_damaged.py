"""Files of a run that are damaged are refused by name, whatever is wrong with them, and nothing is written."""

import shutil

import numpy as np
import pytest

from experiments.lab import store
from tests.experiments.conftest import arguments


def damaged(path):
    """Ways in which a JSON file is broken: (what is in it, how)."""
    text = path.read_text()
    yield "", "emptied"
    yield text[: len(text) // 2], "truncated"
    yield "[]", "no object"
    yield "{}", "without anything in it"
    yield "\x00" * 40, "zeros"
    yield text.replace("{", "[", 1), "flipped"


@pytest.fixture
def sweep_of(tmp_path, finished, corpus):
    """A finished sweep to be damaged, and the words that go on with it."""
    shutil.copytree(finished, tmp_path / "sweep")
    return tmp_path / "sweep", arguments(tmp_path / "sweep", corpus)


@pytest.mark.thorough
@pytest.mark.parametrize("which", ["sweep.json", "cells/*/config.json", "cells/*/summary.json"])
def test_a_sweep_whose_files_are_damaged(refused, sweep_of, which):
    folder, words = sweep_of
    path = sorted(folder.glob(which))[0]
    whole = path.read_text()
    for text, how in damaged(path):
        path.write_text(text)
        line = refused("depth_sweep", *words, out=folder)
        assert str(path) in line and ("remove" in line), (how, line)
        refused("depth_sweep", "--report-only", "--out", folder, out=folder)
        path.write_text(whole)


def test_a_cell_in_another_cells_place(refused, sweep_of):
    folder, words = sweep_of
    one, other = sorted(folder.glob("cells/*/config.json"))[:2]
    shutil.copy(one, other)
    assert f"{other} is that of {one.parent.name}; remove {other.parent}" in refused("depth_sweep", *words, out=folder)


@pytest.mark.parametrize("change", [{"cells": [{"wings": 2}]}, {"cells": None}, {"cells": []}, {"name": ["a"]}])
def test_a_sweep_whose_cells_name_no_group(refused, sweep_of, change):
    """Sealed as a run seals its own files, and still not trusted."""
    folder, words = sweep_of
    path = sorted(folder.glob("cells/*/config.json"))[0]
    config = store.read_sealed(path)
    store.write_sealed(path, {**config, "group": {**config["group"], **change}})
    assert f"{path} names no group" in refused("depth_sweep", *words, out=folder)


def test_a_sweep_of_another_version(refused, sweep_of):
    folder, words = sweep_of
    record = store.read_sealed(folder / "sweep.json")
    store.write_sealed(folder / "sweep.json", {**record, "schema": 99})
    assert "another version of this program" in refused("depth_sweep", *words, out=folder)


def test_a_cell_that_layers_cannot_be_left_out_of(refused, sweep_of, corpus):
    folder, _ = sweep_of
    cell = next(path for path in sorted((folder / "cells").iterdir()) if "-L2-" in path.name)
    words = ("--cells", cell, "--data", corpus)
    assert "run the sweep with --keep-params" in refused("layer_drop", *words)
    config = store.read_sealed(cell / "config.json")
    np.savez(cell / "params.npz", embedding=np.zeros(3))
    assert "params.npz is damaged, or another model's" in refused("layer_drop", *words)
    (cell / "params.npz").write_bytes((cell / "params.npz").read_bytes()[:40])
    assert "params.npz is damaged" in refused("layer_drop", *words)
    for text, how in damaged(cell / "config.json"):
        (cell / "config.json").write_text(text)
        assert "config.json" in refused("layer_drop", *words), how
    for changes, said in (
        ({"recipe": "no_such_recipe"}, "unknown recipe"),
        ({"setting": {**config["setting"], "wings": 2}}, "wings"),
        ({"setting": {**config["setting"], "n_heads": 3}}, "n_heads must divide d_model"),
        ({"depth": "deep"}, "config.json"),
        ({"data": {"sha256": "other", "name": "another text"}}, "which --data has to name"),
    ):
        store.write_sealed(cell / "config.json", {**config, **changes})
        assert said in refused("layer_drop", *words), changes


def test_a_check_of_the_atlas_that_is_damaged(refused, tmp_path, corpus, finished):
    shutil.copytree(finished, tmp_path / "atlas")
    (tmp_path / "atlas" / "checks").mkdir()
    (tmp_path / "atlas" / "checks" / "pre_norm.json").write_text("{")
    line = refused("depth_atlas", "--report-only", "--out", tmp_path / "atlas", out=tmp_path / "atlas")
    assert "pre_norm.json is damaged" in line


def test_numbers_of_claims_that_are_damaged(refused, tmp_path):
    (tmp_path / "claims" / "raw").mkdir(parents=True)
    (tmp_path / "claims" / "raw" / "staircase.json").write_text("[")
    for words in ((), ("--only", "staircase"), ("--report-only",)):
        line = refused("claims", *words, "--out", tmp_path / "claims", out=tmp_path / "claims")
        assert "staircase.json is damaged" in line


def test_pages_whose_measurements_are_damaged(refused, tmp_path):
    (tmp_path / "pages" / "positions").mkdir(parents=True)
    (tmp_path / "pages" / "positions" / "result.json").write_text("{")
    assert "result.json is damaged" in refused("pages", "--out", tmp_path / "pages", out=tmp_path / "pages")
