"""The profile of a step runs, sorts instructions into kinds, and refuses what cannot be."""

import json

import pytest

from experiments.bench.profile import KINDS, OTHERS, WAYS, kind, main


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ynn_fusion.31", "matrix products, fused"),
        ("dot.58", "matrix products, plain"),
        ("wrapped_broadcast.8", "buffers filled with zeros"),
        ("bitcast_dynamic-update-slice_fusion.7", "stacked in and out of the scan"),
        ("copy_bitcast_fusion.5", "copies between layouts"),
        ("while.3", "loop control"),
        ("multiply_tanh_fusion", OTHERS),
        ("subtract_exponential_fusion", OTHERS),
    ],
)
def test_kinds(name, expected):
    assert kind(name) == expected


@pytest.mark.thorough
def test_quick(tmp_path):
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["command"].startswith("python -m experiments.bench.profile --quick")
    for way in WAYS:
        rows = [row for row in result["rows"] if row["way"] == way]
        assert {"matrix products, plain"} <= {row["kind"] for row in rows} <= {*KINDS, OTHERS}
        assert sum(row["milliseconds"] for row in rows) > 0 and result["setting"]["found"][way]["step_seconds"] > 0
    assert len(list(tmp_path.glob("trace_*.json.gz"))) == 3 and "A quick run" in (tmp_path / "finding.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "0"), "--steps must be 1 or more; got 0"),
        (("--size.n-heads", "3"), "--n-heads must divide --d-model"),
        (("--remat", "all"), "all"),
    ],
)
def test_bad_usage(tmp_path, capsys, words, said):
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("profile: ") and captured.err.count("\n") == 1 and said in captured.err
    assert not (tmp_path / "out").exists()
