"""Several workers on one folder, one of them frozen past its heartbeat and then continued."""

import os
import shutil
import signal
import time

import pytest

from experiments.lab import claim
from tests.experiments.test_sweep import numbers
from tests.faults.conftest import sentence

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.mark.parametrize("n", [2, 4, 8])
def test_many_at_once(bench, tmp_path, n):
    out = tmp_path / "out"
    workers = [bench.start(out) for _ in range(n)]
    for worker in workers:
        said = "".join(worker.communicate(timeout=600))
        sentence(said)
        assert worker.returncode in (0, 3), said
    bench.check(out)


def test_frozen_past_its_heartbeat_and_continued(bench, tmp_path):
    """The second worker takes over; the first, woken, sees that and changes nothing."""
    out = tmp_path / "out"
    frozen = bench.start(out)
    while frozen.poll() is None and not list(out.glob("groups/*/checkpoint.npz")):
        time.sleep(0.005)
    os.kill(frozen.pid, signal.SIGSTOP)
    long_ago = time.time() - 2 * claim.STALE
    for path in out.glob("groups/*/claim.json"):
        os.utime(path, (long_ago, long_ago))
    status, said = bench.run(out)
    assert status == 0, said
    before = numbers(out)
    os.kill(frozen.pid, signal.SIGCONT)
    said = "".join(frozen.communicate(timeout=300))
    sentence(said)
    assert frozen.returncode in (0, 3), said
    assert numbers(out) == before == bench.expected


def test_a_worker_that_dies_is_followed_at_once(bench, unfinished, tmp_path):
    """The claim of a process that is gone from this host is no claim."""
    out = tmp_path / "out"
    shutil.copytree(unfinished, out)
    began = time.monotonic()
    status, said = bench.run(out)
    assert status == 0 and time.monotonic() - began < claim.STALE, said
    assert numbers(out) == bench.expected
