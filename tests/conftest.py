"""Settings for all tests: fast compiles, strict ranks and dtypes, reproducible properties."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    # A third of the compile time; later versions have no such choice.
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import hypothesis
import jax
import pytest

import stackjax as sj

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=20)
hypothesis.settings.load_profile("ci")
jax.config.update("jax_numpy_rank_promotion", "allow")


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
