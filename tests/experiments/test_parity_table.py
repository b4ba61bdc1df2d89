"""The table of architectures, without `transformers`."""

import json
import sys
from types import ModuleType

import pytest

import experiments.parity_table as package
from experiments.lab import environment
from experiments.lab.command_line import FAILED, INTERRUPTED, OK, USAGE
from experiments.parity_table import __main__ as parity_table
from stackjax.interop import hf
from tests.interop.configs import CONFIGS

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


class Comparison(ModuleType):
    """Stands for the module that compares: notes what it is asked for, and is interrupted once."""

    def __init__(self):
        super().__init__("compare")
        self.asked, self.stop_at, self.off = [], None, 0.0

    def compare(self, case, seed, folder, architectures):
        if (case.title, seed) == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt
        self.asked.append((case.title, seed))
        return {**GOOD, "logits": 1e-7 * (seed + 1) + self.off}

    def draw_config(self, case):
        return CONFIGS["gpt2"]


@pytest.fixture
def comparison(monkeypatch):
    module = Comparison()
    monkeypatch.setitem(sys.modules, "experiments.parity_table.compare", module)
    monkeypatch.setattr(package, "compare", module, raising=False)
    return module


def at_commit(monkeypatch, commit):
    versions = environment.versions() | {"commit": commit}
    monkeypatch.setattr(environment, "versions", lambda: dict(versions))


def test_interrupted_it_goes_on_and_ends_with_the_same_table(comparison, tmp_path, monkeypatch, capsys):
    at_commit(monkeypatch, "a" * 12)
    words = ["--only", "gpt2", "bert", "--seeds", "2", "--out"]
    assert parity_table.main([*words, str(tmp_path / "whole")]) == OK
    everything, comparison.asked = comparison.asked, []
    comparison.stop_at = everything[2]
    assert parity_table.main([*words, str(tmp_path / "in two")]) == INTERRUPTED
    assert comparison.asked == everything[:2] and not (tmp_path / "in two" / "result.json").exists()
    assert parity_table.main([*words, str(tmp_path / "in two")]) == OK
    assert comparison.asked == everything and capsys.readouterr().out
    whole, parts = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "in two"))
    assert parts["rows"] == whole["rows"] and parts["rows"][0]["logits"] == 2e-7
    assert parity_table.main([*words, str(tmp_path / "in two")]) == OK and comparison.asked == everything


def test_other_code_or_another_package_compares_anew(comparison, tmp_path, monkeypatch):
    words = ["--only", "gpt2", "--seeds", "1", "--out", str(tmp_path)]
    at_commit(monkeypatch, "a" * 12)
    assert parity_table.main(words) == OK
    at_commit(monkeypatch, "b" * 12)
    comparison.off = 1.0
    assert parity_table.main(words) == FAILED and len(comparison.asked) == 2
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["logits"] > 1
    monkeypatch.setattr(environment, "version", lambda package: "0.0")
    assert parity_table.main(words) == FAILED and len(comparison.asked) == 3


@pytest.mark.parametrize("commit", ["unknown", f"{'a' * 12}-dirty"])
def test_nothing_is_kept_where_no_commit_says_what_the_code_is(commit, comparison, tmp_path, monkeypatch):
    at_commit(monkeypatch, commit)
    for _ in range(2):
        assert parity_table.main(["--only", "gpt2", "--seeds", "1", "--out", str(tmp_path)]) == OK
    assert len(comparison.asked) == 2 and not (tmp_path / "runs").exists()


def test_a_damaged_file_of_an_earlier_run_is_refused(comparison, tmp_path, monkeypatch, capsys):
    words = ["--only", "gpt2", "--seeds", "1", "--out", str(tmp_path)]
    at_commit(monkeypatch, "a" * 12)
    assert parity_table.main(words) == OK
    (kept,) = (tmp_path / "runs").iterdir()
    kept.write_text(kept.read_text().replace("1e-07", "2e-07"))
    assert parity_table.main(words) == USAGE
    message = capsys.readouterr().err.splitlines()[-1]
    assert str(kept) in message and "remove" in message and len(comparison.asked) == 1
