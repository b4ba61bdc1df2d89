"""The probe runs, and refuses what it cannot do."""

import contextlib
import io
import json

import numpy as np
import pytest

from experiments.depth_probe import __main__ as depth_probe
from experiments.depth_probe import claims
from experiments.lab import profile_chart
from tests.experiments.browser import use


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory, corpus):
    """The folder of a small run that has ended, and what it printed."""
    out = tmp_path_factory.mktemp("depth_probe") / "out"
    words = ["--quick", "--recipes", "pre_norm", "post_norm", "--data", str(corpus), "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert depth_probe.main(words) == 0
    return out, printed.getvalue()


@pytest.mark.thorough
def test_quick(quick_run):
    out, said = quick_run
    found = json.loads((out / "result.json").read_text())
    assert {p["verdict"] for p in found["predictions"]} <= {"supported", "refuted", "inconclusive", "not judged"}
    assert all(p["claim"] in said for p in found["predictions"]) and len(found["predictions"]) == 9
    rows = {(row["recipe"], row["depth"], row["when"]): row for row in found["rows"] if "recipe" in row}
    assert len(rows) == 2 * 2 * 3
    for (_, depth, when), row in rows.items():
        assert len(row["grad_norm/down"]) == depth
        if when != "random":
            assert len(row["stream_gradient"]) == depth + 1 and len(row["jacobian_gain"]) == depth
            assert {"stream_rms", "cosine", "token_similarity", "rank_residual", "branch_ratio/attention"} <= set(row)
    page = (out / "page.html").read_text()
    assert "Rank collapse" in page and page.count('class="chart"') == 4
    for name in depth_probe.FIGURES:
        assert (out / "figures" / f"{name}.png").exists() and (out / "figures" / f"{name}.svg").exists()


@pytest.mark.thorough
def test_a_browser_uses_the_page(quick_run, browser):
    use(browser, quick_run[0] / "page.html")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipes", "pre_nrom"), "did you mean pre_norm"),
        (("--depths", "0"), "--depths must be 1 or more; got 0"),
        (("--seeds", "0"), "--seeds must be 1 or more"),
        (("--steps", "-1"), "--steps must be 0 or more"),
        (("--n-heads", "3"), "n_heads must divide d_model"),
        (("--data", "/no/such/file"), "no such file"),
        (("--depth", "3"), "--depth"),
    ],
)
def test_bad_usage(tmp_path, corpus, capsys, words, said):
    out = tmp_path / "out"
    assert depth_probe.main(["--data", str(corpus), "--out", str(out), *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("depth_probe: ") and captured.err.count("\n") == 1 and said in captured.err
    assert captured.out == "" and not out.exists()


def test_slopes_are_read_from_the_last_layers():
    def looked(last):
        return claims.Looked(random={"grad_norm/down": np.array([[9.0, x] for x in last])}, text={}, trained=None)

    seen = {("keel", depth): looked([1 / depth, 2 / depth, 5 / depth]) for depth in (4, 8, 16)}
    ones = dict.fromkeys(
        ("attention alone", "attention and feed-forward, no skip", "pre-norm", "post-norm"),
        np.ones((3, claims.COLLAPSE_DEPTH)),
    )
    by_claim = [(p.claim, p.found.mean, p.verdict) for p in claims.predictions(seen, ones)]
    assert [verdict for claim, _, verdict in by_claim if "keel" in claim] == ["supported", "supported"]
    assert by_claim[0][1] == pytest.approx(-1)
    assert [verdict for claim, _, verdict in by_claim if "rank" in claim] == [
        "refuted",
        "refuted",
        "supported",
        "refuted",
    ]


def test_charts_take_plain_arrays():
    """What is not finite, and what a logarithm has no place for, is left out."""
    points = profile_chart.rows({"stream_rms": [1.0, np.nan, 0.0], "cosine": [0.0, 1.0]}, recipe="x", depth=2)
    assert [p["layer"] for p in points] == [0, 2, 0, 1] and points[-1]["share"] == 1
    drawn = profile_chart.profiles(points).to_dict()
    assert len(drawn["vconcat"]) == 2
    assert len(profile_chart.rows({"cosine": np.zeros(1000)})) == profile_chart.MOST_LAYERS
