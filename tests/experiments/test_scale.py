"""Work of each of eight devices: every mesh is counted, and the verdicts follow from the rows."""

import json

import jax
import pytest

from experiments import scale

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


def row(way, flops, temporary, stream_split=8, bubble=0.0):
    counted = {"way": way, "flops_ratio": flops, "temporary_ratio": temporary}
    return {**counted, "stream_split": stream_split, "bubble": bubble}


def test_verdicts_can_come_out_both_ways():
    control = row(scale.CONTROL, 2.0, 5.0)
    good = [row("replicas", 1.1, 1.0), row("sharded, tensors", 1.0, 2.0, stream_split=4), control]
    good += [row("pipeline", 2.1, 2.2, stream_split=1, bubble=0.5)]
    assert [p.verdict for p in scale.predictions(good)] == ["supported"] * 4
    bad = [row("replicas", 1.2, 1.2), row("pipeline", 2.1, 2.4, stream_split=1, bubble=0.5), row(scale.CONTROL, 1, 1)]
    assert [p.verdict for p in scale.predictions(bad)] == ["refuted"] * 4


@pytest.mark.slow
def test_every_mesh_is_counted(tmp_path):
    assert scale.main(["--quick", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["way"] for row in rows if row["model"] == "decoder"} == {*scale.MESHES, scale.CONTROL}
    assert {row["way"] for row in rows if row["bubble"]} == {*scale.PIPELINES}
    assert {row["model"] for row in rows} == {"decoder", "encoder", "encoder-decoder", "experts", "decoder's layers"}
    assert all(row["flops"] > 0 and row["temporary"] > 0 for row in rows)


def test_what_does_not_divide_is_refused(tmp_path, capsys):
    assert scale.main(["--batch", "12", "--out", str(tmp_path / "out")]) == 2
    assert "--batch must divide by 8" in capsys.readouterr().err
