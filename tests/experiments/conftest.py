"""A small corpus on disk, and one small sweep that many tests read."""

import shutil

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.depth_sweep import report
from experiments.lab import chart, command_line
from tests.experiments import browser as chromium

SIZES = {"steps": 6, "d-model": 8, "n-heads": 2, "context": 6, "batch": 2, "eval-every": 3, "eval-batches": 2}

PLAIN = ("--no-compile-cache", "--no-extend-rates", "--no-hops")


def arguments(out, corpus, *more):
    """A command line for a sweep of tiny models."""
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    return [*sizes, *PLAIN, "--data", str(corpus), "--out", str(out), *map(str, more)]


LANES = ("--learning-rates", 1e-2, 1e30, "--seeds", 2)
GRID = ("--depths", 0, 2, "--recipes", "pre_norm", "post_norm", *LANES)
"""Of the sweep that many tests read. With as many lanes, and a recipe and depth of it, nothing is compiled again."""

PART = ("--depths", 2, *GRID[3:])
"""The deeper half of it, for tests that begin again and again."""


def prepared(words):
    """The sweep that a command line describes."""
    return depth_sweep.prepare(command_line.parse(words, depth_sweep.Options, "experiments.depth_sweep"), "")


@pytest.fixture(scope="package", autouse=True)
def compiled_once(tmp_path_factory):
    """Keep compiled programs between the many sweeps of this folder, killed processes' among them."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def light_report(monkeypatch):
    """Write reports without figures and without the code that draws them; `finished` has a whole one."""
    monkeypatch.setattr(report, "export", lambda *_: None)
    monkeypatch.setattr(chart.vl_convert, "javascript_bundle", lambda *_: "")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of texts."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"text number {i}: " + " ".join(str(i * j) for j in range(60)))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, corpus):
    """The folder of a sweep that has ended; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "sweep"
    assert depth_sweep.main(arguments(out, corpus, *GRID)) == 0
    return out


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser without a network; where there is none, what needs it is skipped."""
    if chromium.CHROMIUM is None or chromium.DRIVER is None:
        pytest.skip("no chromium with its chromedriver here")
    with chromium.opened(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
