"""The report: complete, offline, and drawn by a real browser."""

import json
import re
from pathlib import Path

import pytest

from experiments.depth_sweep import report
from experiments.lab import chart, headline, outcome
from experiments.lab.results import Results
from tests.experiments.browser import use

ROOT = Path(__file__).parents[2]
CHARTS = [name for figures in report.SECTIONS.values() for figure in figures for name, _ in figure.charts.values()]


def test_it_loads_nothing_from_anywhere(finished):
    page = (finished / "report.html").read_text()
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', page, re.S).group(1).replace("<\\/", "</"))
    assert list(specs) == CHARTS
    assert "http" not in json.dumps(specs)
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert "http" not in outside and "src=" not in outside and "@import" not in outside and "url(" not in outside
    assert page.count("<script") == 4 and "<link" not in page


def test_it_answers_in_order(finished):
    page = (finished / "report.html").read_text()
    order = [
        "headline",
        *(f"<h2>{title}" for title in report.SECTIONS),
        "<h2>Divergence",
        "<h2>All cells",
        "<h2>Environ",
    ]
    places = [page.index(words) for words in order]
    assert places == sorted(places)
    assert page.count("diverged</td>") == 2 * 8 and "not finite" in page
    assert "python -m experiments.depth_sweep" in page


def test_every_chart_is_a_figure_too(finished):
    for name in CHARTS:
        assert (finished / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (finished / "figures" / f"{name}.svg").read_text().startswith("<svg")


def cell(recipe, depth, rate, loss, seed=0, status="ok"):
    return {
        "cell": "",
        "recipe": recipe,
        "depth": depth,
        "learning_rate": rate,
        "seed": seed,
        "status": status,
        "valid_loss": loss,
    }


def fake(cells, unigram=3.0, bigram=2.0):
    return Results(None, {"data": {"unigram": unigram, "bigram": bigram}, "setting": {}}, cells)


def test_headlines_say_what_the_cells_say():
    cells = [cell("a", 2, rate, loss) for rate, loss in ((1e-4, 2.6), (1e-3, 2.5), (1e-2, 2.7))]
    cells += [cell("a", 4, rate, loss) for rate, loss in ((1e-4, 2.9), (1e-3, 2.4), (1e-2, 2.95))]
    cells += [cell("b", 2, rate, loss) for rate, loss in ((1e-4, 2.6), (1e-3, 2.5), (1e-2, 2.45))]
    cells += [cell("b", 4, rate, loss) for rate, loss in ((1e-4, 2.9), (1e-3, 2.85), (1e-2, 2.95))]
    lines = headline.sentences(fake(cells))
    assert lines[0] == "At the greatest depth, 4 layers, the lowest loss is a 2.40 nats, then b 2.85."
    assert lines[1] == "a trains up to depth 4, the greatest tried; its lowest loss, 2.40 nats, is there."
    assert lines[2] == "b trains up to depth 2, not at 4 (2.85)."
    assert lines[3].startswith("The best learning rate is the end of those tried for b at depth 2 (the highest): ")
    assert len(lines) == 4


def test_where_there_are_zero_layers_trained_means_below_them():
    cells = [cell("a", 0, 1e-3, 2.5), cell("a", 2, 1e-3, 2.4), cell("a", 8, 1e-3, 2.6)]
    found = fake(cells)
    assert headline.trained(found, found.best()[1]) and not headline.trained(found, found.best()[2])
    assert not headline.trained(found, found.best()[0])
    assert "zero layers" in headline.rule(found) and "one seed" in headline.rule(found)
    (line,) = [line for line in headline.sentences(found) if line.startswith("a ")]
    assert line == "a trains up to depth 2, not at 8 (2.60) (zero layers: 2.50)."
    below_the_bar = [row for row in found.best() if row["loss"] < headline.bar(found)]
    assert len(below_the_bar) == 3, "without zero layers all would count"


def test_with_seeds_the_whole_paired_interval_lies_below_zero_layers():
    def two(depth, *losses):
        return [cell("a", depth, 1e-3, loss, seed=seed) for seed, loss in enumerate(losses)]

    found = fake([*two(0, 2.5, 2.7, 2.6), *two(2, 2.4, 2.6, 2.5), *two(4, 2.3, 2.7, 2.7)])
    _, pairs_agree, mean_alone = found.best()
    assert pairs_agree["loss"] < found.best()[0]["loss"] and mean_alone["loss"] < found.best()[0]["loss"]
    assert headline.trained(found, pairs_agree) and not headline.trained(found, mean_alone)
    assert "interval" in headline.rule(found)


def test_every_compared_number_has_its_paired_interval():
    cells = [
        cell(recipe, depth, 1e-3, loss, seed=seed)
        for recipe, depth, losses in (
            ("a", 0, (2.5, 2.7, 2.6)),
            ("a", 2, (2.4, 2.6, 2.5)),
            ("b", 0, (2.5, 2.7, 2.6)),
            ("b", 2, (2.45, 2.66, 2.55)),
        )
        for seed, loss in enumerate(losses)
    ]
    found = fake(cells)
    first, *_ = headline.sentences(found)
    assert "the lowest loss is a 2.50 [2.25, 2.75] nats, then b 2.55 [2.29, 2.81] (+0.05 [0.04, 0.07])." in first
    row = found.best()[1]
    assert (row["low"], row["high"]) == pytest.approx((2.5 - 0.2484, 2.5 + 0.2484), abs=1e-3)
    assert fake(cells[:1]).best()[0]["low"] is None


def test_rates_are_chosen_on_one_half_and_reported_on_the_other():
    def halves(rate, chosen, reported):
        return {**cell("a", 2, rate, (chosen + reported) / 2), "choice_loss": chosen, "report_loss": reported}

    (row,) = fake([halves(1e-3, 2.4, 2.6), halves(1e-2, 2.5, 2.3)]).best()
    assert row["learning_rate"] == 1e-3 and row["loss"] == 2.6, "the other rate would be chosen by what is reported"
    assert outcome.halves([1.0, 2.0, 3.0, 5.0]) == {"choice_loss": 2.0, "report_loss": 3.5, "report_losses": [2.0, 5.0]}


def test_the_noise_of_the_windows_is_said_beside_that_of_the_seeds():
    def measured(depth, seed, *batches):
        losses = {"report_loss": sum(batches) / len(batches), "report_losses": list(batches)}
        return {**cell("a", depth, 1e-3, 2.5, seed=seed), "choice_loss": 2.5, **losses}

    floor, deep = [measured(0, 0, 2.0, 3.0), measured(0, 1, 2.0, 3.0)], [measured(2, 0, 1.9, 2.7)]
    one = Results(None, {**fake([]).base, "setting": {"eval_batches": 4, "batch": 8}}, [*floor[:1], *deep])
    said = headline.noise(one)
    assert "on 16 windows" in said and "standard error of 0.100 nats" in said and "with one seed" in said
    two = Results(None, one.base, [*floor, *deep, measured(2, 1, 1.8, 2.8)])
    assert "0.050 nats" in headline.noise(two) and "that of seeds is 0.000" in headline.noise(two)
    assert headline.noise(fake([cell("a", 2, 1e-3, 2.5)])) == ""


def test_a_rate_at_which_a_seed_diverged_is_not_the_best():
    cells = [cell("a", 2, 1e-3, 2.5), cell("a", 2, 1e-3, 2.7, seed=1), cell("a", 2, 1e-2, 2.0)]
    cells += [cell("a", 2, 1e-2, None, seed=1, status="diverged")]
    (row,) = fake(cells).best()
    assert row["learning_rate"] == 1e-3 and row["loss"] == pytest.approx(2.6)
    (row,) = fake(cells[3:]).best()
    assert row["loss"] is None
    assert headline.sentences(fake(cells[3:])) == ["a trains at none of the depths tried (2)."]


def test_ticks_of_logarithmic_axes():
    assert chart.decades([0.02, 50]) == [0.01, 0.1, 1, 10, 100]
    assert chart.decades([2, 4]) == [1, 2, 5, 10, 20, 50]


def test_nothing_has_ended_yet(copy):
    for path in (copy / "cells").glob("*/*"):
        if path.name != "config.json":
            path.unlink()
    found = Results.of(copy)
    assert "16 cells have not ended yet." in headline.sentences(found)
    assert "Nothing has ended yet" in report.write_report(found).read_text()


@pytest.mark.thorough
def test_a_browser_uses_the_page(finished, browser):
    use(browser, finished / "report.html")
    assert len(browser.find_elements("class name", "chart")) == len(CHARTS)


def test_every_page_that_an_experiment_writes_is_used_in_a_browser():
    """Where a page is written, a test beside this one opens it."""
    sources = {path: path.read_text() for path in ROOT.joinpath("experiments").rglob("*.py")}
    writers = {path.parent.name for path, text in sources.items() if re.search(r"page\.(document|write_page)\(", text)}
    tests = {path.stem: path.read_text() for path in ROOT.joinpath("tests", "experiments").glob("test_*.py")}
    assert writers == {"claims", "depth_sweep", "depth_probe", "x_ray"}
    opened = {
        "claims": "test_claims",
        "depth_sweep": "test_report",
        "depth_probe": "test_depth_probe",
        "x_ray": "test_x_ray",
    }
    assert all("use(browser, " in tests[opened[writer]] for writer in writers)
