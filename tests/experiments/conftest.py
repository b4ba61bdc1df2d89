"""A small corpus on disk, one small sweep that many tests read, and commands that are to be refused."""

import dataclasses
import importlib
import itertools
import shutil
import threading
import typing
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.depth_sweep import report
from experiments.lab import chart, command_line, sweep
from experiments.lab.command_line import USAGE
from experiments.lab.results import Results
from tests.experiments import browser as chromium

SIZES = {"steps": 6, "d-model": 8, "n-heads": 2, "context": 6, "batch": 2, "eval-every": 3, "eval-batches": 2}

ACCEPTED = 99
"""Exit status of a command that did not refuse, in place of what it would do."""

PLAIN = ("--no-compile-cache", "--no-extend-rates", "--no-hops", "--at-once", "1")


def arguments(out, corpus, *more):
    """A command line for a sweep of tiny models."""
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    return [*sizes, *PLAIN, "--data", str(corpus), "--out", str(out), *map(str, more)]


LANES = ("--learning-rates", 1e-2, 1e30, "--seeds", 2)
GRID = ("--depths", 0, 2, "--recipes", "pre_norm", "post_norm", *LANES)
"""Of the sweep that many tests read. With a recipe and depth of it, nothing is compiled again."""

PART = ("--depths", 2, *GRID[3:])
"""The deeper half of it, for tests that begin again and again."""


def losses_of(out):
    """The final loss of every cell in a folder."""
    return {cell["cell"]: cell["valid_loss"] for cell in Results.of(out).cells}


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


@pytest.fixture
def in_pairs(monkeypatch):
    """Let runs take a chunk only together with another one; a list that gets the devices of each chunk."""
    chunk, used, both = sweep.Run.chunk, [], threading.Barrier(2, timeout=300)

    def chunk_together(run):
        both.wait()
        chunk(run)
        used.append(run.states[0].step.devices())

    monkeypatch.setattr(sweep.Run, "chunk", chunk_together)
    return used


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


def module_of(name):
    """The module of a command."""
    folder = Path(command_line.__file__).parents[1] / name
    return importlib.import_module(f"experiments.{name}.__main__" if folder.is_dir() else f"experiments.{name}")


def options_of(kind):
    """Name and types of every option, those in groups included."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options_of(hints[field.name])
        else:
            inner = [hints[field.name], *typing.get_args(hints[field.name])]
            yield field.name, [*inner, *itertools.chain.from_iterable(map(typing.get_args, inner))]


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path, corpus):
    """Run a command that is to be refused, in an empty folder; returns its line. What it would do is never done."""
    command, before = command_line.command, None
    monkeypatch.setattr(
        command_line, "command", lambda program, prepare, work, words=None: command(program, prepare, accept, words)
    )
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def accept(_):
        return ACCEPTED

    def run(name, *words, out=None, unchanged=tmp_path):
        nonlocal before
        module, words = module_of(name), [str(word) for word in words]
        options = {option for option, _ in options_of(module.Options)}
        if out is None:
            out = work / "out"
            words = ["--out", str(out / "page.html" if name == "x_ray" else out), *words]
        if "data" in options and "--data" not in words:
            words = ["--data", str(corpus), *words]
        before = inside(unchanged)
        status, said = module.main(words), capsys.readouterr()
        assert status == USAGE, (words, status, said)
        assert said.err.startswith(f"{name}: ") and said.err.count("\n") == 1 and not said.out, (words, said)
        assert said.err[:-1].isprintable(), said.err
        assert inside(unchanged) == before, words
        return said.err

    return run


def inside(folder):
    """Everything below a folder, with what files hold."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if not path.is_symlink()}
