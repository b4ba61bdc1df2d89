"""The cache of compiled programs: what it holds is read, and never where compile times are measured."""

import threading

import jax
import jax.numpy as jnp
import pytest

from experiments import history_cost, long_inputs
from experiments.bench import program
from experiments.lab import compile_cache


@pytest.fixture
def compiled(tmp_path):
    """A function that compiles one program, through a cache of its own; whether it was read from there."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compile_cache.compilation_cache.reset_cache()

    def run():
        with compile_cache.hits() as hits:
            jax.jit(lambda x: jnp.sin(x) * 17).lower(1.0).compile()
        return bool(hits)

    yield run
    jax.config.update("jax_compilation_cache_dir", before)
    compile_cache.compilation_cache.reset_cache()


def test_a_program_is_read_unless_its_compile_time_is_measured(compiled):
    assert [compiled(), compiled()] == [False, True]
    with compile_cache.off():
        assert not compiled()
    assert compiled()


def test_what_another_thread_reads_is_not_counted(compiled):
    compiled()
    with compile_cache.hits() as hits:
        other = threading.Thread(target=compiled)
        other.start()
        other.join()
    assert not hits and compiled()


@pytest.mark.parametrize("measures", [history_cost.measure, long_inputs.measure, program.prepare])
def test_measured_compile_times_are_not_of_the_cache(measures, monkeypatch):
    changes = []
    with monkeypatch.context() as patched:
        patched.setattr(jax.config, "update", lambda name, value: changes.append((name, value)))
        with pytest.raises(TypeError):
            measures()
    assert changes[0] == ("jax_enable_compilation_cache", False)
