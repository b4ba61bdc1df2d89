"""Findings: intervals, verdicts, and what is written."""

import json
import math

import altair as alt
import numpy as np
import pytest

from experiments.lab import environment, finding
from experiments.lab.finding import Estimate, Prediction


def test_intervals_are_students():
    estimate = Estimate.of([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    np.testing.assert_allclose([estimate.mean, estimate.low, estimate.high], [2, 2 - half, 2 + half], rtol=1e-6)
    assert str(estimate) == f"2.000 [{2 - half:.3f}, {2 + half:.3f}]"


def test_one_seed_says_nothing_of_its_spread():
    estimate = Estimate.of([0.5])
    assert (estimate.low, estimate.high) == (-math.inf, math.inf) and str(estimate) == "0.500 (one seed)"
    assert Prediction(claim="x", found=estimate, relation="below", threshold=9.0).verdict == "not judged"


def test_an_exact_number_is_judged():
    estimate = Estimate.exact(0.5)
    assert str(estimate) == "0.500"
    for threshold, verdict in ((0.6, "supported"), (0.4, "refuted")):
        assert Prediction(claim="x", found=estimate, relation="below", threshold=threshold).verdict == verdict


@pytest.mark.parametrize(
    ("values", "relation", "verdict"),
    [
        ([1.0, 1.1, 0.9], "below", "supported"),
        ([1.0, 1.1, 0.9], "above", "refuted"),
        ([3.0, 3.1, 2.9], "above", "supported"),
        ([3.0, 3.1, 2.9], "below", "refuted"),
        ([1.0, 3.0, 2.0], "below", "inconclusive"),
    ],
)
def test_a_verdict_needs_the_whole_interval(values, relation, verdict):
    assert Prediction(claim="x", found=Estimate.of(values), relation=relation, threshold=2.0).verdict == verdict


def test_a_finding_is_a_page_numbers_and_figures(tmp_path):
    chart = alt.Chart(alt.Data(values=[{"x": 1, "y": 2}])).mark_point().encode(x="x:Q", y="y:Q")
    page = finding.write(
        tmp_path / "new" / "folder",
        question="Is it so?",
        setting={"steps": 3},
        predictions=[Prediction(claim="a|b", found=Estimate.of([1.0]), relation="below", threshold=2.0)],
        rows=[{"loss": 1.5, "high": math.inf}],
        figures={"some_points": chart},
        text="It is.",
        provenance=environment.provenance("python -m this", seeds=(2, 0)),
    )
    text = page.read_text()
    for words in ("# Is it so?", "It is.", "| a\\|b | 1.000 (one seed) | below 2 | not judged |", "`python -m this`"):
        assert words in text
    assert "![some points](figures/some_points.svg)" in text
    found = json.loads((page.parent / "result.json").read_text())
    assert found["rows"] == [{"loss": 1.5, "high": None}] and found["command"] == "python -m this"
    assert found["seeds"] == [0, 2] and {"commit", "clean_tree", "device", "versions"} <= set(found)
    assert found["predictions"][0]["verdict"] == "not judged" and found["setting"] == {"steps": 3}
    assert (page.parent / "figures" / "some_points.png").read_bytes()[:4] == b"\x89PNG"
    assert (page.parent / "figures" / "some_points.svg").read_text().startswith("<svg")
