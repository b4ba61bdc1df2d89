"""Learning rates that a sweep adds: which ones, until when, and that it can be stopped and resumed."""

import math
import signal

import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import extend, sweep
from experiments.lab.grid import Grid
from experiments.lab.results import Results
from experiments.lab.store import Folder
from tests.experiments.conftest import arguments, losses_of

RATES = (1e-3, 4e-3, 1.6e-2)


def search(rates, loss):
    """The rates that are tried, in rounds, where `loss` says what each ends at."""
    losses, rounds = {rate: loss(rate) for rate in rates}, []
    while more := extend.following(rates, losses):
        assert not set(more) & set(losses)
        losses |= {rate: loss(rate) for rate in more}
        rounds.append(more)
    return losses, rounds


def valley(middle, *, diverges=math.inf):
    """A loss that is least at a rate, and infinite from another one on."""
    return lambda rate: math.inf if rate >= diverges else abs(math.log(rate / middle))


def test_a_grid_goes_on_in_its_own_steps():
    assert extend.ladder(RATES) == [1.56e-5, 6.25e-5, 2.5e-4, *RATES, 6.4e-2, 2.56e-1, 1.02]
    assert extend.ladder((1e-2, 1e-3, 1e-3)) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10])
    assert extend.ladder((1e-3,)) == [1e-3], "one rate is a choice"
    assert max(extend.ladder((1e300, 1e-300))) < math.inf


@pytest.mark.parametrize("middle", [10 ** (k / 4) for k in range(-18, 1)])
def test_the_best_rate_ends_up_inside_with_a_finer_step_on_either_side(middle):
    losses, rounds = search(RATES, valley(middle))
    best, tried = min(losses, key=lambda rate: losses[rate]), sorted(losses)
    assert len(losses) <= len(RATES) + extend.MOST
    bound = extend.ladder(RATES)
    if bound[0] * 2 < middle < bound[-1] / 2:
        at = tried.index(best)
        assert 0 < at < len(tried) - 1
        assert all(1.9 < high / low < 2.1 for low, high in zip(tried[at - 1 : at + 1], tried[at : at + 2], strict=True))
    assert all(len(more) == 1 for more in rounds[:-1]), "one rate a round until the best is inside"


def test_beyond_the_bound_nothing_is_added():
    losses, rounds = search(RATES, valley(1e-9))
    assert min(losses) == extend.ladder(RATES)[0] and max(losses) == RATES[-1]
    assert len(rounds) == extend.REACH + 1


def test_where_all_rates_end_alike_lower_ones_follow():
    """A plateau that falls by less than the noise says nothing of the side on which learning begins."""
    losses, rounds = search(RATES, lambda rate: 3.3 - 1e-3 * rate if rate > 5e-4 else 3.0 + valley(2.5e-4)(rate) / 10)
    assert rounds[:2] == [[2.5e-4], [6.25e-5]] and min(losses, key=lambda rate: losses[rate]) == 2.5e-4
    assert len(rounds) == 3 and max(losses) == RATES[-1]
    _, rounds = search(RATES, lambda rate: 3.3)
    assert rounds == [[rate] for rate in extend.ladder(RATES)[2::-1]], "and nothing halfway between equals"
    _, rounds = search(RATES, lambda rate: math.inf if rate > 1e-2 else 3.3)
    assert [2.5e-4] in rounds, "those that diverged are not alike"


def test_where_nothing_is_lower_than_a_plateau_higher_ones_follow():
    losses, rounds = search(RATES, lambda rate: 3.3 - 1e-3 * rate if rate < 2e-2 else 2.0 + valley(0.256)(rate) / 10)
    assert rounds[:4] == [[2.5e-4], [6.25e-5], [1.56e-5], [6.4e-2]] and min(losses, key=lambda r: losses[r]) == 0.256
    assert extend.REACH + 2 < len(losses) - len(RATES) <= extend.MOST


def test_a_task_that_is_solved_at_every_rate_is_searched_no_further_down():
    _, rounds = search(RATES, lambda rate: 1e-4 + abs(rate - 4e-3) / 100)
    assert rounds == [[2e-3, 8e-3]]


def test_where_every_rate_diverged_lower_ones_follow():
    _, rounds = search(RATES, valley(2e-4, diverges=1e-3))
    assert rounds[0] == [2.5e-4] and rounds[1] == [6.25e-5] and len(rounds[2]) == 2
    assert search(RATES, lambda rate: math.inf)[1] == [[2.5e-4], [6.25e-5], [1.56e-5]]


def rows(losses, *, seeds=1, **more):
    return [
        {
            "recipe": "pre_norm",
            "depth": 2,
            "learning_rate": rate,
            "seed": seed,
            "status": "ok",
            "valid_loss": loss,
            **more,
        }
        for rate, loss in losses.items()
        for seed in range(seeds)
    ]


def test_only_points_that_have_ended_go_on_and_every_seed_of_them():
    grid = Grid(depths=(2, 4), learning_rates=RATES, seeds=2)
    losses = {rate: rate for rate in RATES}
    added = list(extend.cells(grid, rows(losses, seeds=2)))
    assert [(cell.recipe, cell.depth, cell.learning_rate, cell.seed) for cell in added] == [
        ("pre_norm", 2, 2.5e-4, 0),
        ("pre_norm", 2, 2.5e-4, 1),
    ]
    assert not list(extend.cells(grid, rows(losses, seeds=1)))
    assert not list(extend.cells(grid, rows({1e-3: 1.0, 4e-3: 2.0}, seeds=2)))
    assert not list(extend.cells(grid, [*rows(losses, seeds=2), *rows({2.5e-4: None}, status="failed")]))
    begun = [*rows(losses, seeds=2), *rows({2.5e-4: None}, seeds=2, status="unfinished")]
    assert list(extend.cells(grid, begun)) == added, "one that was begun is wanted until it has ended"
    diverged = [*rows(losses, seeds=2), *rows({2.5e-4: None}, status="diverged"), *rows({2.5e-4: 0.0})]
    diverged[-1]["seed"] = 1
    assert {cell.learning_rate for cell in extend.cells(grid, diverged)} == {2e-3, 5e-4}


def words(out, corpus):
    """A command line for a sweep that adds rates: of zero layers, for they compile fast."""
    plain = arguments(out, corpus, "--depths", 0, "--recipes", "pre_norm", "--learning-rates", 1e-3, 1e-2)
    return [word for word in plain if word != "--no-extend-rates"]


@pytest.fixture(scope="module")
def extended(tmp_path_factory, corpus):
    """The folder of a sweep that has added what it adds; not to be changed."""
    out = tmp_path_factory.mktemp("extended") / "out"
    assert depth_sweep.main(words(out, corpus)) == 0
    return out


@pytest.mark.thorough
def test_a_sweep_goes_on_until_nothing_follows(extended, corpus, capsys):
    found = Results.of(extended)
    losses = {cell["learning_rate"]: cell["valid_loss"] or math.inf for cell in found.cells}
    assert len(losses) > 3 and not extend.following((1e-3, 1e-2), losses)
    before = losses_of(extended)
    assert depth_sweep.main(words(extended, corpus)) == 0
    assert "compiling" not in capsys.readouterr().out and losses_of(extended) == before
    (best,) = found.best()
    assert best["learning_rate"] not in (1e-3, 1e-2), "it has moved, or the test shows nothing"


@pytest.mark.thorough
def test_interrupted_in_what_was_added_and_resumed(extended, tmp_path, corpus, monkeypatch, capsys):
    out, chunk, stops = tmp_path / "out", sweep.Run.chunk, 0
    monkeypatch.setattr(sweep.Run, "chunk", lambda run: (chunk(run), signal.raise_signal(signal.SIGINT)))
    while (status := depth_sweep.main(words(out, corpus))) == 130:
        stops += 1
    assert status == 0 and stops > 3 and losses_of(out) == losses_of(extended)
    assert "adding learning rates" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_dry_run_says_what_may_be_added_and_what_is(extended, tmp_path, corpus, capsys):
    assert depth_sweep.main([*words(tmp_path / "out", corpus), "--dry-run"]) == 0
    assert "from 1e-06 to 10" in capsys.readouterr().out
    assert depth_sweep.main([*words(tmp_path / "out", corpus), "--no-extend-rates", "--dry-run"]) == 0
    assert "may be added" not in capsys.readouterr().out


def test_a_rate_of_fewer_seeds_is_not_chosen(tmp_path):
    """The rates that one seed had added are no match for the mean of three, however lucky that seed was."""
    losses = {1e-3: (2.0, 2.1, 2.2), 4e-3: (2.3, 2.4, 2.2), 2.5e-4: (1.0,)}
    cells = [
        {
            **{"recipe": "pre_norm", "depth": 1, "learning_rate": rate, "seed": seed, "status": "ok"},
            **{"valid_loss": loss, "choice_loss": loss, "report_loss": loss},
        }
        for rate, by_seed in losses.items()
        for seed, loss in enumerate(by_seed)
    ]
    (best,) = Results(Folder(tmp_path), {}, cells).best()
    assert best["learning_rate"] == 1e-3 and len(best["cells"]) == 3
    assert best["edge"] == "lowest", "among those that can be compared"
