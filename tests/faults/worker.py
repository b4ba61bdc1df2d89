"""A sweep's worker that is hurt on purpose: `python -m tests.faults.worker INJURY ARGUMENT... -- OPTION...`.

none                        nothing
    kill POINT N                SIGKILL before the N-th call of a point of a write (`POINTS`)
slow SECONDS                every os.fsync takes that long
memory MIB                  no more than that may be allocated beyond what is held after the imports
clock SECONDS               time.time() is off by that much
"""

import os
import pathlib
import resource
import signal
import sys
import time

from experiments.depth_sweep import __main__ as depth_sweep

POINTS = {
    "os.replace": (os, "replace"),
    "os.fsync": (os, "fsync"),
    "os.utime": (os, "utime"),
    "os.unlink": (os, "unlink"),
    "Path.mkdir": (pathlib.Path, "mkdir"),
}


def kill(point: str, nth: str) -> None:
    """Die at a named point of a write."""
    owner, name = POINTS[point]
    real, calls = getattr(owner, name), 0

    def call(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, name, call)


def slow(seconds: str) -> None:
    """A disk that takes its time."""
    real = os.fsync

    def fsync(file):
        time.sleep(float(seconds))
        real(file)

    os.fsync = fsync


def memory(mebibytes: str) -> None:
    """Little memory is left."""
    held = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = held + int(mebibytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def clock(seconds: str) -> None:
    """A clock that jumped."""
    real = time.time
    time.time = lambda: real() + float(seconds)


INJURIES = {"none": lambda: None, "kill": kill, "slow": slow, "memory": memory, "clock": clock}

if __name__ == "__main__":
    injury, *arguments = sys.argv[1 : sys.argv.index("--")]
    INJURIES[injury](*arguments)
    sys.exit(depth_sweep.main(sys.argv[sys.argv.index("--") + 1 :]))
