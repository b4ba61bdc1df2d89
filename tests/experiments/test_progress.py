"""What is shown while a sweep runs."""

import io

import pytest
from rich.console import Console

from experiments.lab import progress, sweep
from experiments.lab.results import Results
from tests.experiments.conftest import LANES, arguments, prepared


def described(out, corpus, recipe):
    command = arguments(out, corpus, "--depths", 2, "--recipes", recipe, *LANES)
    return prepared(command)


@pytest.fixture
def sweeping(tmp_path, corpus):
    return described(tmp_path / "out", corpus, "pre_norm")


def seen(sweeping):
    """What stands on a terminal at the end of a sweep, as words in lines."""
    console = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=120)
    screen = progress.Screen(console)
    sweep.run(sweeping, screen)
    screen.close()
    with console.capture() as capture:
        console.print(screen._draw())
    return [line.split() for line in capture.get().splitlines()]


@pytest.mark.thorough
def test_a_terminal_sees_every_cell_and_a_bar_that_fills(sweeping):
    lines = seen(sweeping)
    cells = [line for line in lines if line[:1] == ["pre_norm"]]
    ended = [["2", rate, seed, state] for rate, state in (("0.01", "ok"), ("1e+30", "diverged")) for seed in "01"]
    assert [cell[1:5] for cell in cells] == ended
    assert cells[0][5] == "6" and float(cells[0][6]) > 0
    bar = next(line for line in lines if line[:1] == ["layer-steps"])
    assert f"{4 * (2 + 1) * 6}/{4 * (2 + 1) * 6}" in bar
    assert [line for line in seen(sweeping) if line[:1] == ["pre_norm"]] == cells, "the same when all was done before"


@pytest.mark.thorough
def test_plain_lines_are_not_silent_for_long(sweeping, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    said = []
    sweep.run(sweeping, progress.Plain(said.append))
    moving = [line for line in said if line.startswith("pre_norm L=2: step ")]
    assert [line.split()[3] for line in moving] == ["0,", "3,", "6,"]


@pytest.mark.parametrize(
    "show",
    [pytest.param(progress.Plain, marks=pytest.mark.thorough), lambda: progress.Screen(Console(file=io.StringIO()))],
)
def test_losses_that_are_no_numbers_from_the_start_can_be_shown(tmp_path, corpus, monkeypatch, show):
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    sweeping = described(tmp_path / "out", corpus, "tests.experiments.own:Endless")
    sweep.run(sweeping, show())
    for cell in Results.of(tmp_path / "out").cells:
        assert cell["status"] == "diverged" and cell["message"] == "not finite" and cell["diverged_step"] == 1
