"""Equal to `transformers`, number by number: `pytest -m parity`, with the extra `oracle`."""

import json

import pytest

from experiments.lab.command_line import OK, USAGE
from experiments.parity_table import __main__ as parity_table
from experiments.parity_table import cases
from stackjax.interop import hf

compare = pytest.importorskip("experiments.parity_table.compare")
pytestmark = pytest.mark.parity


def test_every_architecture_is_compared():
    models = {name for found in hf.ARCHITECTURES.values() for name in found.classes}
    kinds = {
        kind for kind, found in hf.ARCHITECTURES.items() for case in cases.CASES.values() if case.model in found.classes
    }
    assert kinds == set(hf.ARCHITECTURES) and {case.model for case in cases.CASES.values()} <= models


@pytest.mark.parametrize("seed", [0, 1], ids=["padded on the right", "padded on the left"])
@pytest.mark.parametrize("name", cases.CASES)
def test_parity(name, seed, tmp_path):
    case = cases.CASES[name]
    found = compare.compare(case, seed, tmp_path)
    assert found["logits"] <= 1e-5
    assert found["hidden"] <= 1e-5
    assert not case.gradients or found["gradients"] <= 1e-4
    assert not case.decodes or found["decoding"] == 1
    assert found["round_trip"] == 1


def test_the_table(tmp_path, capsys):
    words = ["--only", "xlnet", "--seeds", "1", "--out", str(tmp_path)]
    assert parity_table.main(words) == OK
    record = json.loads((tmp_path / "result.json").read_text())
    row = record["rows"][0]
    assert row["title"] == "XLNet (Transformer-XL)" and row["tensors"] == 13 and row["logits"] <= 1e-5
    assert {"torch", "transformers", "jax"} <= set(record["versions"]) and "--only xlnet" in record["command"]
    assert (tmp_path / "finding.md").read_text() == capsys.readouterr().out


def test_a_bad_name_for_the_table(tmp_path, capsys):
    assert parity_table.main(["--only", "mamba", "--out", str(tmp_path / "new")]) == USAGE
    assert "--only knows gpt2" in capsys.readouterr().err and not (tmp_path / "new").exists()
