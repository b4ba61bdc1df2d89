"""The experiments on positions: they run, write what they promise, and refuse what cannot be."""

import json

import numpy as np
import pytest

from experiments import length_extrapolation, position_gallery
from experiments.tree_positions import __main__ as tree_positions

EXPERIMENTS = {
    "tree_positions": tree_positions,
    "length_extrapolation": length_extrapolation,
    "position_gallery": position_gallery,
}


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """A folder of JSON documents."""
    folder = tmp_path_factory.mktemp("objects")
    for i in range(30):
        value = {"name": f"number {i}", "list": [{"key": j, "more": [i * j]} for j in range(1 + i % 4)]}
        (folder / f"{i:02}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("tree_positions", ("--steps", "0"), "--steps must be 1 or more; got 0"),
        ("tree_positions", ("--languages", "cobol"), "cobol"),
        ("tree_positions", ("--learning-rate", "nan"), "--learning-rate must be positive; got nan"),
        ("tree_positions", ("--n-heads", "3"), "n_heads must divide d_model; got d_model=64, n_heads=3"),
        ("tree_positions", ("--data", "/nowhere/at/all"), "no such file"),
        ("length_extrapolation", ("--seeds", "0"), "--seeds must be 1 or more; got 0"),
        ("length_extrapolation", ("--only", "rotory"), "no encoding 'rotory'; there are none, scalar"),
        ("length_extrapolation", ("--context", "16"), "--context must be 32 or more"),
        ("length_extrapolation", ("--eval-windows", "1000000000"), "windows of 512 bytes in the validation data"),
        ("length_extrapolation", ("--d-model", "36"), "rotary features must be even"),
        ("length_extrapolation", ("--data", "/nowhere/at/all"), "no such file"),
        ("position_gallery", ("--tokens", "0"), "--tokens must be 1 or more; got 0"),
        ("position_gallery", ("--token", "3"), "Unrecognized options"),
    ],
)
def test_bad_usage(tmp_path, capsys, name, words, said):
    out = tmp_path / "out"
    assert EXPERIMENTS[name].main([*words, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{name}: ") and captured.err.count("\n") == 1 and said in captured.err
    assert captured.out == "" and not out.exists()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_file_is_no_folder(tmp_path, capsys, name):
    (tmp_path / "file").write_text("mine")
    assert EXPERIMENTS[name].main(["--out", str(tmp_path / "file")]) == 2
    assert "is not a folder" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


def finished(name, out, *words):
    """Run an experiment quickly; its result."""
    assert EXPERIMENTS[name].main(["--quick", *map(str, words), "--out", str(out)]) == 0
    assert (out / "finding.md").read_text().count("A quick run") == 1
    found = json.loads((out / "result.json").read_text())
    assert found["command"].startswith(f"python -m experiments.{name} --quick")
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("task", ["decoder", "encoder"])
def test_tree_positions(tmp_path, objects, task):
    words = (
        "--data",
        objects,
        "--languages",
        "json",
        "--tasks",
        task,
        "--steps",
        2,
        "--d-model",
        8,
        "--cache",
        tmp_path / "cache",
    )
    found = finished("tree_positions", tmp_path / "out", *words)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    whole = {row["arm"]: row for row in found["rows"] if row["by"] == "all"}
    assert tuple(whole) == tree_positions.ARMS and whole["linear"]["gain"] == 0
    assert len({row["params"] for arm, row in whole.items() if arm != "tree"}) == 1
    assert all(len(row["losses"]) == 2 for row in found["rows"])
    assert {p["verdict"] for p in found["predictions"]} <= {"supported", "refuted", "inconclusive", "not judged"}
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} >= {"by_slice.svg", "by_depth.png"}


def test_what_each_arm_sees():
    rng = np.random.default_rng(0)
    window = {
        "tokens": rng.integers(1, 9, (3, 6)),
        "index": np.broadcast_to(np.arange(6), (3, 6)).copy(),
        "path": rng.integers(-1, 3, (3, 6, 4)),
        "label": np.zeros((3, 6), int),
    }
    window["index"][0, 4:] = -1
    seen = {arm: tree_positions.example(window, arm, "decoder", (0, 0)) for arm in tree_positions.ARMS}
    for example in seen.values():
        np.testing.assert_array_equal(example["inputs"], window["tokens"][:, :-1])
        np.testing.assert_array_equal(example["targets"][1:], window["tokens"][1:, 1:])
    assert seen["linear"]["targets"][0].tolist() == [*window["tokens"][0, 1:4], -1, -1]
    assert (seen["linear"]["path"] == -1).all()
    for arm in ("tree", "linear + tree"):
        np.testing.assert_array_equal(seen[arm]["path"], window["path"][:, :-1])
    np.testing.assert_array_equal(seen["linear + wrong tree"]["path"], window["path"][[2, 0, 1], :-1])


def test_hidden_leaves_are_the_targets_and_the_same_for_every_arm():
    window = {
        "tokens": np.random.default_rng(0).integers(1, 9, (50, 40)),
        "index": np.broadcast_to(np.arange(40), (50, 40)),
        "path": np.zeros((50, 40, 2), int),
    }
    examples = [tree_positions.example(window, arm, "encoder", (1, 2)) for arm in tree_positions.ARMS]
    hidden = examples[0]["targets"] >= 0
    assert abs(hidden.mean() - 0.15) < 0.02
    for example in examples:
        np.testing.assert_array_equal(example["targets"], np.where(hidden, window["tokens"], -1))
        np.testing.assert_array_equal(example["inputs"], np.where(hidden, 0, window["tokens"]))
    other = tree_positions.example(window, "tree", "encoder", (1, 3))
    assert (other["targets"] != examples[0]["targets"]).any()


@pytest.mark.thorough
def test_length_extrapolation(tmp_path, corpus):
    words = ("--data", corpus, "--steps", 2, "--d-model", 8, "--only", "learned", "alibi")
    found = finished("length_extrapolation", tmp_path, *words)
    lengths = {}
    for row in found["rows"]:
        lengths.setdefault(row["encoding"], []).append(row["length"])
    assert lengths == {"learned": [32], "alibi": [32, 64, 128, 256]}
    assert [p["claim"] for p in found["predictions"]] == ["ALiBi at 8 T over T"]


def test_stretching_changes_the_positions_and_no_parameter():
    options = length_extrapolation.QUICK
    plain = length_extrapolation.model_of(length_extrapolation.encodings(32)["rotary"], options)
    for encoding in length_extrapolation.stretched(32).values():
        model = length_extrapolation.model_of(encoding, options)
        assert model != plain and model.declaration() == plain.declaration()


@pytest.mark.thorough
def test_position_gallery(tmp_path):
    found = finished("position_gallery", tmp_path, "--tokens", 8)
    by_distance = {row["encoding"]: row["by distance alone, W = 1"] for row in found["rows"]}
    assert {name for name, answer in by_distance.items() if answer == "yes"} == {
        "NoPosition",
        "Sinusoidal",
        "Rotary",
        "Shaw",
        "TransformerXL",
        "T5Bias",
        "ALiBi",
    }
    assert {name for name, answer in by_distance.items() if answer == "no"} == {"Scalar", "Learned", "FIRE"}
    assert all(row["equation"] and row["source"] for row in found["rows"])
