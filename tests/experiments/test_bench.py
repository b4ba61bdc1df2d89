"""The benchmark runs, writes what it promises, and judges what it found."""

import json

import jax
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import agree, alone, decoding, packed, peers, verdict
from experiments.bench.peers.base import Size
from experiments.bench.program import equations, prepare

TINY = Size(d_model=8, n_heads=2, context=4, batch=2, vocab=16, depth=2)


@pytest.mark.thorough
def test_quick(tmp_path, capsys, monkeypatch):
    here = ("stackjax", "linen")
    monkeypatch.setattr(peers, "installed", lambda name: name in here)
    asked = ["--peers", *here, "equinox", "--remats", "none", "--parts", "train"]
    assert bench.main(["--quick", "--out", str(tmp_path), *asked]) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert [(row["peer"], row["depth"]) for row in found["rows"]] == [(peer, n) for n in (2, 4) for peer in here]
    assert all(row["step_seconds"] > 0 and row["temp_bytes"] > 0 for row in found["rows"])
    assert len({row["equations"] for row in found["rows"] if row["peer"] == "stackjax"}) == 1
    assert found["skipped"] == ["equinox: equinox is not installed"]
    page = (tmp_path / "finding.md").read_text()
    assert "A quick run" in page and "step time / best JAX peer's (linen), 4 layers, remat none" in page
    assert (tmp_path / "figures" / "bench.svg").read_text().startswith("<svg")
    assert "at most" in capsys.readouterr().out


@pytest.mark.slow
def test_all_of_it(tmp_path):
    assert bench.main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["agreement"]["largest_difference"] < 1e-5
    assert [row["remat"] for row in found["remat"]] == ["none", "layer", "nested"]
    assert found["sweep"][0]["runs"] == 8 and len(found["sweep"][0]["ratios"]) == 1
    decoded = [] if decoding.missing() else [(4, 1, 1.0), (4, 2, 1.0)]
    assert [(row["prompt"], row["batch"], row["same_tokens"]) for row in found["decode"]] == decoded
    assert decoded or any(line.startswith("decoding beside transformers") for line in found["skipped"])
    assert [row["way"] for row in found["packed"]] == ["padded", "packed"]


def test_no_time_is_left(tmp_path):
    assert (
        bench.main(["--quick", "--minutes", "0", "--parts", "agree", "--out", str(tmp_path), "--peers", "linen"]) == 0
    )


def test_an_unknown_peer(tmp_path, capsys):
    assert bench.main(["--peers", "trax", "--out", str(tmp_path / "no")]) == 2
    assert "unknown peer 'trax'" in capsys.readouterr().err and not (tmp_path / "no").exists()


def row(peer, **changes):
    usual = {"peer": peer, "remat": "none", "depth": 8, "compile_seconds": 2.0, "equations": 10}
    return {**usual, "step_seconds": 1.0, "temp_bytes": 100, **changes}


def test_verdicts():
    rows = [
        row("stackjax", step_seconds=1.1, temp_bytes=90),
        row("linen", temp_bytes=80),
        row("haiku", step_seconds=1.5, temp_bytes=60),
        row("torch", step_seconds=2.0, temp_bytes=None, equations=None),
        row("torch_compile", step_seconds=0.8, temp_bytes=None, equations=None),
    ]
    remat = [
        row("stackjax", gradient_bytes=1000),
        row("stackjax", remat="layer", gradient_bytes=29, step_seconds=1.4),
        row("stackjax", remat="nested", gradient_bytes=14, step_seconds=1.9),
    ]
    compiled = {"depths": [4, 512], "ratios": [1.0, 1.1, 1.3], "equations": [10, 10]}
    found = {"agreement": None, "compile": compiled, "rows": rows, "remat": remat, "remat_peer": None, "peak": None}
    found |= {"size": {"d_model": 128}, "model_flops": {"8": 7.7}, "matmul_flops_per_second": 10.0}
    judged = {target.claim: (round(target.found, 3), target.met) for target in verdict.judge(found)}
    assert list(judged.values()) == [
        (1.1, True),
        (1.0, True),
        (1.1, False),
        (1.5, False),
        (0.55, True),
        (1.375, False),
        (0.7, True),
        (0.029, True),
        (1.4, True),
        (0.014, False),
        (1.9, False),
    ]


def test_where_arithmetic_dominates_the_aims_are_higher():
    rows = [
        row("stackjax", step_seconds=0.95),
        row("torch"),
        row("stackjax", remat="layer"),
        row("torch", remat="layer"),
    ]
    found = {"agreement": None, "compile": None, "rows": rows, "remat": [], "remat_peer": None, "peak": None}
    found |= {"size": {"d_model": 512}, "model_flops": {"8": 5.0}, "matmul_flops_per_second": 10.0}
    judged = [(round(target.found, 3), target.bound, target.met) for target in verdict.judge(found)]
    assert judged == [(0.95, 0.9, False), (1.0, 0.85, False), (0.526, 0.6, False)]


def test_verdicts_on_a_gpu():
    rows = [row("stackjax", temp_bytes=104), row("unrolled", step_seconds=0.9)]
    found = {"agreement": None, "compile": None, "rows": rows, "remat": [], "peak": 8.0, "model_flops": {"8": 4.4}}
    judged = [(round(target.found, 3), target.met) for target in verdict.judge({**found, "remat_peer": None})]
    assert judged == [(1.111, False), (1.04, True), (0.55, True)]


def test_documents_are_packed_whole_and_more_of_them_count():
    size = Size(d_model=8, n_heads=2, context=64, batch=4, vocab=16)
    alone, together = packed.padded(size), packed.packed(size)
    index, segment = together["position"]["index"], together["position"]["segment"]
    lengths = packed.lengths(size)
    for i in np.unique(segment[index >= 0]):
        assert np.array_equal(index[(segment == i) & (index >= 0)], np.arange(lengths[i]))
    assert together["weights"].sum() == (index > 0).sum() > 2 * alone["weights"].sum()


def test_how_long_a_deeper_group_takes():
    last = [row("stackjax"), row("torch_compile", equations=None)]
    assert bench.expected(last, depth=16, rounds=4) == 2 + 4 + 5 * 2 * 2
    assert bench.expected([], depth=16, rounds=4) == 0


@pytest.mark.thorough
def test_a_program_starts_once_and_goes_on():
    program = prepare("stackjax", TINY, "none")
    first, second = program.step(), program.step()
    assert second < first
    assert program.row["step_seconds"] is None and program.facts["peer"] == "stackjax"


def test_equations_of_inner_functions_count():
    flat = jax.make_jaxpr(lambda x: x + 1)(1.0).jaxpr
    looped = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y + 1, x))(1.0).jaxpr
    assert equations(flat) == 1 and equations(looped) > 2


@pytest.mark.parity
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_are_the_same_model(name):
    if not peers.installed(name):
        pytest.skip("not installed")
    rows = [agree.losses(peer, TINY) for peer in ("stackjax", name)]
    assert agree.largest_difference(rows) < 1e-5
    assert {row["n_params"] for row in rows} == {TINY.n_params}


@pytest.mark.slow
def test_a_process_of_its_own():
    found = alone.measure("linen", TINY, "layer", rounds=1, seconds=120)
    assert found["peer"] == "linen" and found["step_seconds"] > 0
    with pytest.raises(RuntimeError, match="Linen has none, layer, dots"):
        alone.measure("linen", TINY, "nested", rounds=1, seconds=120)
    with pytest.raises(TimeoutError, match="not done after 0 s"):
        alone.measure("linen", TINY, "layer", rounds=1, seconds=0.01)
