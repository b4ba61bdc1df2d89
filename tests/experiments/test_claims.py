"""Common claims about deep Transformers: verdicts, what is run and what is not, and the page."""

import json

import jax
import numpy as np
import pytest

from experiments.claims import __main__ as command
from experiments.claims import keeps_input, norms_rates, report, suite, training
from experiments.claims.claim import FIRST_SEED, Check, judge
from experiments.lab.finding import Estimate, Prediction
from tests.experiments.browser import use

CLAIMS = {claim.name: claim for claim in suite.CLAIMS}
CHEAP = "per_token"


def judged(*checks):
    """Checks with predictions, from (about, verdict) pairs."""
    values = {"supported": [0.9, 1.0, 1.1], "refuted": [2.9, 3.0, 3.1], "inconclusive": [0.0, 2.0, 4.0]}
    found = []
    for about, verdict in checks:
        check = Check(claim="", about=about, relation="below", threshold=2.0, needs=(), values=lambda rows: [])
        made = Prediction(claim="", found=Estimate.of(values[verdict]), relation="below", threshold=2.0)
        assert made.verdict == verdict
        found.append((check, made))
    return found


@pytest.mark.parametrize(
    ("checks", "word"),
    [
        ([("claim", "supported"), ("control", "supported")], "holds"),
        ([("claim", "refuted"), ("control", "supported")], "false"),
        ([("correction", "supported")], "false"),
        ([("claim", "supported"), ("correction", "supported")], "corrected"),
        ([("claim", "supported"), ("claim", "refuted"), ("claim", "inconclusive")], "corrected"),
        ([("claim", "supported"), ("beyond", "refuted"), ("beyond", "inconclusive")], "holds"),
        ([("claim", "supported"), ("claim", "inconclusive")], "not settled"),
        ([("claim", "supported"), ("correction", "refuted")], "not settled"),
        ([("claim", "refuted"), ("claim", "inconclusive")], "not settled"),
        ([("claim", "supported"), ("control", "inconclusive")], "not settled"),
        ([("claim", "supported"), ("correction", "supported"), ("control", "refuted")], "not settled"),
    ],
)
def test_a_verdict_is_one_of_three_words_or_none_yet(checks, word):
    assert judge(judged(*checks)) == word


def test_a_number_that_is_missing_settles_nothing():
    (check, _), other = judged(("claim", "supported"), ("claim", "supported"))
    assert judge([(check, None), other]) == "not settled"


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_a_control_fresh_seeds_and_checks_that_read_what_is_run(name):
    claim = CLAIMS[name]
    units = {unit.name: unit for unit in claim.units(False)}
    assert [unit.name for unit in claim.units(True)] == list(units)
    assert any(check.about == "control" for check in claim.checks)
    assert any(check.about != "control" for check in claim.checks)
    for check in claim.checks:
        assert set(check.needs) <= set(units), check.claim
        assert check.predict({}) is None
    for unit in units.values():
        assert min(unit.setting["seeds"]) >= FIRST_SEED and len(unit.setting["seeds"]) >= 2
        assert json.loads(json.dumps(unit.setting)) == unit.setting


def test_all_claims_are_run_and_stand_on_the_page():
    assert {claim.name for claim in suite.named(())} == set(CLAIMS) and len(CLAIMS) == len(suite.CLAIMS)


def words(out, *more):
    """A command line for a small run."""
    return ["--quick", "--out", str(out), *more]


@pytest.fixture(scope="module")
def nothing_trained():
    """Training that returns numbers of the right shapes at once."""
    random = np.random.default_rng(0)

    def train(task, feed, valid, *, rates, seeds, steps, warmups=None, score=None, **more):
        assert jax.tree.leaves(feed(seeds[0], 0)) and len(jax.tree.leaves(valid)[0]) % 2 == 0
        params = jax.eval_shape(task.model.init, jax.random.key(0))
        first = jax.tree.map(lambda x: np.asarray(x)[0], valid)
        jax.eval_shape(lambda p: task.loss(p, first)[0], params)
        names = {} if score is None else jax.eval_shape(score, params, first)
        shape = (len(rates) * len(warmups or [0]), len(seeds))
        found = {name: random.uniform(0.1, 1.0, shape).tolist() for name in ("choose", "loss", *names)}
        return {"rates": list(rates), "steps": steps, "params": task.model.n_params, **found}

    def run(*, depths, seeds, **more):
        each = {str(depth): [0.5] * len(seeds) for depth in depths}
        return {"accuracy": each, "shuffled": each}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", train)
        for module in suite.RUN_ORDER:
            if hasattr(module, "train"):
                patch.setattr(module, "train", train)
        patch.setattr(keeps_input, "run", run)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, nothing_trained):
    """The folder of a suite of which all is done; not to be changed."""
    out = tmp_path_factory.mktemp("claims")
    assert command.main(words(out)) == 0
    return out


@pytest.mark.thorough
def test_every_claim_has_a_verdict_a_figure_and_a_lesson_once_all_is_run(whole):
    result = json.loads((whole / "result.json").read_text())
    for claim in result["claims"]:
        assert not claim["not_run"] and "not run" not in claim["paragraph"] and len(claim["paragraph"]) > 200
        assert "{" not in claim["paragraph"] and "nan" not in claim["paragraph"].split()
        assert all("found" in check for check in claim["checks"])
        assert (whole / "figures" / f"{claim['name']}.svg").exists()
    assert sum(result["tally"].values()) == len(CLAIMS)


@pytest.mark.thorough
def test_a_browser_uses_the_page(whole, browser):
    use(browser, whole / "page.html")
    assert len(browser.find_elements("class name", "chart")) == len(CLAIMS)


@pytest.mark.thorough
def test_figures_are_drawn_from_what_there_is(nothing_trained):
    for claim in suite.CLAIMS:
        units = claim.units(True)
        for unit in (units[0], units[-1]):
            rows = {unit.name: json.loads(json.dumps(unit.run(**unit.setting)))}
            claim.figure(rows).to_dict(validate=False)


def test_what_was_run_is_not_run_again_unless_its_setting_changed(tmp_path, monkeypatch):
    assert command.main(words(tmp_path, "--only", CHEAP)) == 0
    raw = tmp_path / "raw" / f"{CHEAP}.json"
    before = json.loads(raw.read_text())
    assert command.main(words(tmp_path, "--only", CHEAP)) == 0 and json.loads(raw.read_text()) == before
    changed = {name: {**record, "setting": {**record["setting"], "d_model": 1}} for name, record in before.items()}
    raw.write_text(json.dumps({**before, "batch norm": changed["batch norm"]}))
    ran = []
    measured = suite.measured
    monkeypatch.setattr(suite, "measured", lambda unit: ran.append(unit.name) or measured(unit))
    assert command.main(words(tmp_path, "--only", CHEAP)) == 0
    after = json.loads(raw.read_text())
    assert ran == ["batch norm"] and after["batch norm"]["numbers"] == before["batch norm"]["numbers"]
    assert after["layer norm"] == before["layer norm"]


def test_interrupted_between_two_units_keeps_the_first(tmp_path, monkeypatch):
    measured = suite.measured

    def interrupted(unit):
        if unit.name == "batch norm":
            raise KeyboardInterrupt
        return measured(unit)

    monkeypatch.setattr(suite, "measured", interrupted)
    with pytest.raises(SystemExit) as stop:
        command.main(words(tmp_path, "--only", CHEAP))
    assert stop.value.code == 130
    assert list(json.loads((tmp_path / "raw" / f"{CHEAP}.json").read_text())) == ["layer norm"]
    assert (tmp_path / "page.html").exists()


def test_a_part_that_fails_is_said_and_stops_nothing(tmp_path, monkeypatch, capsys):
    measured = suite.measured

    def broken(unit):
        return measured(unit) if unit.name == "batch norm" else 1 / 0

    monkeypatch.setattr(suite, "measured", broken)
    with pytest.raises(SystemExit) as stop:
        command.main(words(tmp_path, "--only", CHEAP))
    assert stop.value.code == 1 and f"{CHEAP}: layer norm" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "raw" / f"{CHEAP}.json").read_text())) == ["batch norm"]
    assert "layer norm" in (tmp_path / "finding.md").read_text()


def test_the_page_says_what_was_found_and_what_was_not_run(tmp_path):
    assert command.main(words(tmp_path, "--only", CHEAP)) == 0
    finding, page = (tmp_path / "finding.md").read_text(), (tmp_path / "page.html").read_text()
    result = {claim["name"]: claim for claim in json.loads((tmp_path / "result.json").read_text())["claims"]}
    assert result[CHEAP]["verdict"] == "corrected" and not result[CHEAP]["not_run"]
    others = set(CLAIMS) - {CHEAP}
    assert {result[name]["verdict"] for name in others} == {"not settled"}
    assert all(result[name]["not_run"] for name in others)
    for claim in CLAIMS.values():
        assert claim.title in finding and f'id="{claim.name}"' in page
    for text in (finding, page):
        assert CLAIMS[CHEAP].lesson(suite.rows(suite.done(tmp_path, CLAIMS[CHEAP], True)))[:60] in text
        assert "http" not in text.split("<script>")[0].replace("http://www.w3.org", "")
    assert (tmp_path / "figures" / f"{CHEAP}.svg").exists()
    assert [path.name for path in (tmp_path / "figures").glob("*.svg")] == [f"{CHEAP}.svg"]


def test_a_claim_that_does_not_exist_is_one_line_and_nothing_written(tmp_path, capsys):
    assert command.main(words(tmp_path / "new", "--only", "perpetual_motion")) == 2
    said = capsys.readouterr().err
    assert "perpetual_motion" in said and "staircase" in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_every_claim_without_a_test_says_why():
    assert report.WITHOUT_PROTOCOL and all(report.WITHOUT_PROTOCOL.values())


def test_the_best_rate_is_chosen_on_one_half_and_reported_on_the_other():
    row = {"choose": [[2.0, 2.0], [1.0, 1.2], [0.1, None]], "loss": [[5.0, 6.0], [7.0, 8.0], [0.0, 0.0]]}
    np.testing.assert_array_equal(training.best(row), [7.0, 8.0])
    np.testing.assert_array_equal(training.best(row, of=slice(0, 1)), [5.0, 6.0])
    dead = {"choose": [[None, None]], "loss": [[None, None]]}
    assert np.isinf(training.best(dead)).all()


def test_a_best_rate_at_the_end_of_those_tried_is_named():
    row = {"rates": [1.0, 2.0, 3.0], "choose": [[2.0], [1.0], [3.0]]}
    assert training.ends_of_grid(row) == []
    assert training.ends_of_grid({**row, "choose": [*row["choose"], [2.0], [1.5], [1.0]]}) == [3.0]
    assert training.ends_of_grid({"rates": [1.0], "choose": [[2.0]]}) == []


def test_rates_are_told_by_the_seed_where_seeds_differ():
    rates = norms_rates.RATES
    loss = [[3.0 if rate < 0.003 else 9.0, 9.0, None] for rate in rates]
    largest = norms_rates.largest({"arm": {"loss": loss}}, "arm")
    assert norms_rates.told(largest) == "0.002 with 1 of 3 seeds and none of those tried with 2 of 3 seeds"
    assert norms_rates.told(largest[:1]) == "0.002"
