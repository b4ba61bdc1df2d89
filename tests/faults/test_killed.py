"""kill -9, at random instants and at each named point of a write: nothing reported is lost, and no bit changes."""

import contextlib
import random
import time

import pytest

from tests.faults.worker import POINTS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


def reported(out):
    """The summaries that are there, as they are."""
    return {path: path.read_bytes() for path in out.glob("cells/*/summary.json")}


def at_work(process, out):
    """Wait until a worker has claimed a group, which comes after its imports; False if it ended before."""
    began = time.time()
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if any(path.stat().st_mtime > began for path in out.glob("groups/*/claim.json")):
                return True
        time.sleep(0.005)
    return False


def test_at_fifty_random_instants(bench, tmp_path):
    """One folder after another, each worker killed at a moment drawn from the whole of its work."""
    random_ = random.Random(time.time_ns())
    process = bench.start(tmp_path / "timing")
    at_work(process, tmp_path / "timing")
    began = time.monotonic()
    process.communicate()
    whole, killed, folder, out = time.monotonic() - began, 0, 0, tmp_path / "0"
    while killed < 50:
        process = bench.start(out)
        if at_work(process, out):
            time.sleep(random_.uniform(0, 1) * whole)
        before = reported(out)
        ended = process.poll() is not None
        process.kill()
        said = "".join(process.communicate())
        assert "Traceback" not in said
        killed += not ended
        after = reported(out)
        assert {path: after.get(path) for path in before} == before, "a result that was reported is lost"
        if ended:
            bench.check(out)
            folder, out = folder + 1, tmp_path / str(folder + 1)
    bench.check(out)


@pytest.mark.parametrize("point", POINTS)
def test_at_each_call_of_a_point_of_a_write(bench, tmp_path, point):
    """The first, second, fourth .. call; each worker goes on in the folder that the last one left."""
    out, nth = tmp_path / "out", 1
    while True:
        status, said = bench.run(out, ("kill", point, nth))
        assert "Traceback" not in said
        if status != -9:
            break
        nth = nth * 2 if nth < 16 else nth + 16
    bench.check(out)
