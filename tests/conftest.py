"""Settings for all tests: fast compiles, kept for the next run; strict ranks and dtypes, reproducible properties."""

import ctypes
import gc
import importlib.metadata
import itertools
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_force_host_platform_device_count=8"
    # A third of the compile time; later versions have no such choice.
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
)

# A run of unchanged code finds its programs compiled and takes about two thirds of the time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Programs without the lines of Python that each instruction comes from are lowered a twentieth sooner.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import hypothesis
import jax
import pytest

import stackjax as sj

# Tracing makes millions of small objects, which Python's collector would look through at every 700th.
gc.set_threshold(50_000, 20, 50)

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=20)
hypothesis.settings.load_profile("ci")
jax.config.update("jax_numpy_rank_promotion", "allow")


def pytest_sessionstart(session):
    """Begin the cache of compiled programs anew once it has grown too large."""
    folder = session.config.rootpath / ".pytest_cache" / "xla"
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and sum(path.stat().st_size for path in folder.glob("*")) > 2**31:
        shutil.rmtree(folder)


FINISHED = itertools.count(1)


def pytest_runtest_teardown(item):
    """Give the memory of compiled programs back now and then, which otherwise grows to gigabytes."""
    if next(FINISHED) % 1000 == 0:
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def x64():
    """Run a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def traced(monkeypatch):
    """A list that grows whenever a model's logits are traced or computed outside of a compiled function."""
    calls, logits = [], sj.Model.logits

    def noticed(self, *arguments, **options):
        calls.append(self)
        return logits(self, *arguments, **options)

    monkeypatch.setattr(sj.Model, "logits", noticed)
    return calls
