"""A process that keeps its memory is not given it anew at every step."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from stackjax import memory

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
import stackjax as sj
kept = sys.argv[1] == "keep" and sj.memory.keep()
program = jax.jit(lambda x: jnp.cumsum(jnp.sin(x @ x.T), 1) @ x)
x = jnp.ones((4096, 8))
temporaries = program.lower(x).compile().memory_analysis().temp_size_in_bytes
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), temporaries // resource.getpagesize(), min(faults[1:]))
"""


TWICE = """
import jax.numpy as jnp, stackjax as sj
print(sj.memory.keep())
jnp.zeros(3) + 1
print(sj.memory.keep())
"""


def pages(word: str) -> list[int]:
    """Whether memory is kept, a program's temporaries in pages, and the fewest that a call was given."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


@pytest.mark.thorough
def test_pages_are_asked_for_once():
    kept, whole, fewest = pages("keep")
    if not kept:
        pytest.skip("not GNU's C library")
    assert whole > 2**14 and fewest < whole // 100


@pytest.mark.thorough
def test_they_would_be_asked_for_at_every_call():
    kept, whole, fewest = pages("as it is")
    assert not kept and (fewest > whole // 2 or not sys.platform.startswith("linux"))


def test_too_late_is_said():
    """Once is enough: JAX has begun in this process, and in one that kept its memory before it did nothing is said."""
    if not sys.platform.startswith("linux"):
        pytest.skip("not GNU's C library")
    jnp.zeros(3).block_until_ready()
    with pytest.warns(UserWarning, match=r"memory is not kept: .* call keep\(\) before"):
        assert memory.keep.__wrapped__() is False
    done = subprocess.run([sys.executable, "-W", "error", "-c", TWICE], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_where_there_is_no_such_library(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep.__wrapped__() is False
