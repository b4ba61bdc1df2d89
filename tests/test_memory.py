"""A process that keeps its memory is not given it anew at every step."""

import subprocess
import sys

import pytest

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


def test_where_there_is_no_such_library(monkeypatch):
    from stackjax import memory

    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep() is False
