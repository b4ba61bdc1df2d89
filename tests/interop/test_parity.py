"""Equal to `transformers`, number by number: `pytest -m parity`, with the extra `oracle`."""

import json
from dataclasses import replace

import numpy as np
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


EAGER_ALONE = {"xlnet", "gemma2", "gpt_oss", "falcon", "bloom", "gpt_neo", "mpt"}


@pytest.mark.parametrize("name", cases.CASES)
def test_the_two_kinds_of_attention_of_the_oracle_agree(name):
    """Those of `transformers`, eager and sdpa, so that it does not matter with which of them ours is compared."""
    case, random = replace(cases.CASES[name], gradients=False), np.random.default_rng(0)
    model = compare.draw_model(case, random)
    batches = [compare.draw_batch(random, left=case.left) for _ in range(1 + case.two_sided)]
    batches = [compare.draw_images(random, model.config)] if case.images else batches
    with compare.torch.no_grad():
        eager = compare.theirs(case, model, batches).logits
        try:
            model.set_attn_implementation("sdpa")
        except ValueError:
            assert name in EAGER_ALONE
            return
        assert (model.config._attn_implementation == "eager") == (name in EAGER_ALONE)
        fused = compare.theirs(case, model, batches).logits
    assert np.abs(fused - eager).max() <= 1e-5 * np.abs(eager).max()


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
