"""The command `stackjax`, from a checkout and from a wheel, beside a package `experiments` of somebody else."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stackjax import __main__ as console
from stackjax import memory
from tests.experiments.conftest import SIZES
from tests.experiments.test_layout import EXPERIMENTS

ROOT = Path(__file__).parents[2]
OWN_RECIPE = """
from stackjax.recipe import PreNorm

def recipe():
    return PreNorm()
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a package `experiments` of its own, in which a recipe stands, and a text."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    (tmp_path / "experiments" / "mine.py").write_text(OWN_RECIPE)
    (tmp_path / "text.txt").write_text("".join(f"line {i} of a text\n" for i in range(3000)))
    return tmp_path


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which a wheel of this checkout is installed, without what it depends on."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "-t", target, *wheels.iterdir()], check=True)
    return target


def started(command, folder, path):
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(path)}, capture_output=True, text=True
    )


SWEEP = [
    *(word for name, size in SIZES.items() for word in (f"--{name}", str(size))),
    *("--recipes", "pre_norm", "experiments.mine:recipe", "--depths", "0", "1", "--learning-rates", "0.01"),
    *("--data", "text.txt", "--no-compile-cache", "--no-hops"),
]


@pytest.mark.thorough
def test_an_installed_command_works_beside_another_package_of_the_name(installed, project):
    """Its recipes are read, its name is no obstacle, and the line that goes on is one that can be typed there."""
    assert not (installed / "experiments").exists() and (installed / "stackjax" / "experiments" / "lab").is_dir()
    command = [sys.executable, installed / "bin" / "stackjax"]
    listing = started([*command, "--help"], project, installed)
    assert listing.returncode == 0 and "  depth-sweep " in listing.stdout and "  x-ray " in listing.stdout
    options = started([*command, "claims", "--help"], project, installed)
    assert options.returncode == 0 and "usage: stackjax claims" in options.stdout
    planned = started([*command, "depth-sweep", *SWEEP, "--dry-run"], project, installed)
    assert planned.returncode == 0, planned.stderr
    assert "experiments.mine:recipe" in planned.stdout
    wrong = started([*command, "depth-sweep", "--depths", "-1"], project, installed)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and not (project / "runs").exists()


@pytest.mark.slow
def test_an_installed_sweep_runs_and_its_record_names_the_command(installed, project):
    command = [sys.executable, installed / "bin" / "stackjax", "depth_sweep", *SWEEP, "--out", "out"]
    done = started(command, project, installed)
    assert done.returncode == 0, done.stderr
    assert "stackjax depth-sweep" in (project / "out" / "report.html").read_text()


@pytest.mark.thorough
def test_a_checkout_has_the_same_command(project):
    """In a checkout, the same module is the same package under another name."""
    done = started([sys.executable, "-m", "stackjax", "depth-sweep", *SWEEP, "--dry-run"], project, ROOT)
    assert done.returncode == 0, done.stderr
    assert "experiments.mine:recipe" in done.stdout


def test_every_experiment_is_listed(capsys):
    assert console.main([]) == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if line.startswith("  ")]
    assert [name for name, *_ in lines] == [name.replace("_", "-") for name in EXPERIMENTS if name[:4] != "own_"]
    assert all(len(words) > 3 for words in lines)


def test_an_unknown_experiment_is_refused(capsys):
    assert console.main(["depth-swep"]) == 2
    assert "experiments are bench, claims" in capsys.readouterr().err


def test_a_trainer_that_is_its_own_process_keeps_its_memory(monkeypatch, capsys):
    """And one that is called from another program leaves it alone."""
    kept = []
    monkeypatch.setattr(memory, "keep", lambda: kept.append(True))
    monkeypatch.setattr(sys, "argv", ["stackjax", "train", "--depth", "-1"])
    assert console.main() == 2 and kept == [True]
    assert console.main(["train", "--depth", "-1"]) == 2 and kept == [True]
    assert capsys.readouterr().err.count("--depth") == 2
