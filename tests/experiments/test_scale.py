"""Work of each of eight devices: every mesh is counted, and the verdicts follow from the rows."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import stackjax as sj
from experiments.scale import __main__ as scale
from experiments.scale import collectives

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


def row(way, flops, temporary, bubble=0.0):
    return {"way": way, "flops_ratio": flops, "temporary_ratio": temporary, "bubble": bubble}


def test_verdicts_can_come_out_both_ways():
    unpinned, replicated = scale.CONTROLS
    good = [row("replicas", 1.1, 1.0), row("sharded, tensors", 1.0, 1.1), row(unpinned, 2.0, 5.0)]
    good += [row(replicated, 1.0, 2.0), row("pipeline", 2.1, 2.2, bubble=0.5)]
    assert [p.verdict for p in scale.predictions(good)] == ["supported"] * 5
    bad = [row("replicas", 1.2, 1.0), row("tensors", 1.0, 1.2), row("pipeline", 2.1, 2.4, bubble=0.5)]
    bad += [row(unpinned, 1, 2), row(replicated, 2, 1)]
    assert [p.verdict for p in scale.predictions(bad)] == ["refuted"] * 5


def test_collectives_are_counted_as_often_as_they_run():
    """Four rounds of a gathered (16, 4) and a summed (2, 4) in float32, and one sum of a number behind them."""
    mesh = sj.shard.mesh(model=8)

    def one(x, _):
        whole = jax.lax.all_gather(x, "model", tiled=True)
        return jax.lax.psum(x * whole[2:4], "model"), None

    def rounds(x):
        return jax.lax.psum(jnp.sum(jax.lax.scan(one, x, None, length=4)[0]), "model")

    split = jax.shard_map(
        rounds, mesh=mesh, in_specs=PartitionSpec("model"), out_specs=PartitionSpec(), check_vma=False
    )
    program = jax.jit(split).lower(jax.ShapeDtypeStruct((16, 4), jnp.float32)).compile()
    assert collectives.exchanged(program.as_text()) == {"gathered": 4 * 16 * 4 * 4, "reduced": 4 * 2 * 4 * 4 + 4}


@pytest.mark.slow
def test_every_mesh_is_counted(tmp_path):
    assert scale.main(["--quick", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["way"] for row in rows if row["model"] == "decoder"} == {*scale.MESHES, *scale.CONTROLS}
    assert {row["way"] for row in rows if row["bubble"]} == {*scale.PIPELINES}
    assert {row["model"] for row in rows} == {"decoder", "encoder", "encoder-decoder", "experts", "decoder's layers"}
    assert all(row["flops"] > 0 and row["temporary"] > 0 for row in rows)


def test_what_does_not_divide_is_refused(tmp_path, capsys):
    assert scale.main(["--batch", "12", "--out", str(tmp_path / "out")]) == 2
    assert "--batch must divide by 8" in capsys.readouterr().err
