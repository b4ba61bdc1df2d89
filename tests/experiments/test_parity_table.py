"""The table of architectures, without `transformers`."""

import sys

import pytest

import experiments.parity_table as package
from experiments.lab.command_line import USAGE
from experiments.parity_table import __main__ as parity_table
from stackjax.interop import hf

NAN = float("nan")
GOOD = {"logits": 2e-7, "hidden": 3e-7, "gradients": NAN, "decoding": NAN, "round_trip": 1.0}


def row(**changes):
    runs = [GOOD, {**GOOD, **changes}]
    return {"title": "Some", "lines": 9, "tensors": 12, **parity_table.worst(runs)}


def test_the_worst_seed_counts():
    assert row(logits=5e-6)["logits"] == 5e-6 and row()["gradients"] is None
    assert parity_table.markdown([row(logits=5e-6)]).splitlines()[-1] == (
        "| Some | 9 | 12 | 5.0e-06 | 3.0e-07 |  |  | exact |"
    )
    assert "**differs**" in parity_table.markdown([row(round_trip=0.0)])


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [([0], "over one random small configuration of each"), ([0, 1, 2], "over 3 random small configurations of each")],
)
def test_the_caption_counts_configurations(seeds, expected):
    versions = dict.fromkeys(("transformers", "torch", "jax"), "1.0")
    assert expected in parity_table.caption({"seeds": seeds, "command": "it", "versions": versions})


@pytest.mark.parametrize("changes", [{"logits": 2e-5}, {"hidden": 2e-5}, {"round_trip": 0.0}])
def test_what_does_not_pass(changes):
    assert parity_table.passes(row())
    assert not parity_table.passes(row(**changes))


def test_lines_of_a_description():
    def three():
        """Not counted.

        Nor this."""

        one = 1
        return one

    assert parity_table.code_lines(three) == 3
    assert all(parity_table.code_lines(found.describe) < 50 for found in hf.ARCHITECTURES.values())


def test_without_the_oracle(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "experiments.parity_table.compare", None)
    monkeypatch.delattr(package, "compare", raising=False)
    assert parity_table.main([]) == USAGE
    assert "install the extra `oracle`" in capsys.readouterr().err


def test_bad_usage_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parity_table.main(["--seeds", "many"]) == USAGE
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    parity_table.splice(readme, "new\n")
    assert not readme.exists()
    readme.write_text("# Title\n\nno marks\n")
    parity_table.splice(readme, "new\n")
    assert readme.read_text() == "# Title\n\nno marks\n"
    readme.write_text(f"a\n{parity_table.BEGIN}\nold\n{parity_table.END}\nb\n")
    for _ in range(2):
        parity_table.splice(readme, "new\n")
        assert readme.read_text() == f"a\n{parity_table.BEGIN}\nnew\n{parity_table.END}\nb\n"
