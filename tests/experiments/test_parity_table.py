"""The table of architectures, without `transformers`."""

import sys

import pytest

from experiments import oracle, parity_table
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
    monkeypatch.setitem(sys.modules, "experiments.oracle.compare", None)
    monkeypatch.delattr(oracle, "compare", raising=False)
    assert parity_table.main([]) == parity_table.USAGE
    assert "install the extra `oracle`" in capsys.readouterr().err
