"""What is shown while a sweep runs."""

import io

import pytest
from rich.console import Console

from experiments import depth_sweep
from experiments.lab import progress, sweep
from tests.experiments.conftest import arguments


@pytest.fixture
def sweeping(tmp_path, corpus):
    grid = ("--depths", 1, "--recipes", "pre_norm", "--learning-rates", 0.01, 1e30)
    return depth_sweep.prepare(depth_sweep.parse(arguments(tmp_path / "out", corpus, *grid)), "")


def seen(sweeping):
    """What stands on a terminal at the end of a sweep, as words in lines."""
    console = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=120)
    screen = progress.Screen(console)
    sweep.run(sweeping, screen)
    screen.close()
    with console.capture() as capture:
        console.print(screen._draw())
    return [line.split() for line in capture.get().splitlines()]


def test_a_terminal_sees_every_cell_and_a_bar_that_fills(sweeping):
    lines = seen(sweeping)
    cells = [line for line in lines if line[:1] == ["pre_norm"]]
    assert [cell[1:5] for cell in cells] == [["1", "0.01", "0", "ok"], ["1", "1e+30", "0", "diverged"]]
    assert cells[0][5] == "6" and float(cells[0][6]) > 0
    bar = next(line for line in lines if line[:1] == ["layer-steps"])
    assert f"{2 * (1 + 1) * 6}/{2 * (1 + 1) * 6}" in bar
    assert [line for line in seen(sweeping) if line[:1] == ["pre_norm"]] == cells, "the same when all was done before"
