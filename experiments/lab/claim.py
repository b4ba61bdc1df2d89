"""Claims: how several workers on one folder share out the groups without a server.

A claim is a file made by exclusive creation. It names a worker by host, process id and the time at which that process
began, so that a process id that is used again proves nothing, and its modification time is the worker's heartbeat. A
claim whose process has ended, or whose heart has stopped, may be taken over; one that was made on another machine
counts as a living worker's once its heart was seen to beat. Should two workers ever run the same group, nothing is lost
but time: they write the same numbers, atomically.
"""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from .device_pool import Map

HEARTBEAT = 10.0
"""Seconds between two beats."""
STALE = 90.0
"""Seconds without a beat after which a claim may be taken over."""
LOOK_AGAIN = 1.0
"""Seconds between two looks at claims whose workers may have died."""

T = TypeVar("T")


class Claim:
    """A claim that is held, until `release`. Make one with `Claim.take`."""

    def __init__(self, path: Path, text: str):
        self._path, self._text = path, text
        self._stop = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def take(cls, path: Path) -> "Claim | None":
        """Claim, or None if a worker that may be living holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**_process(os.getpid()), "token": uuid.uuid4().hex})
        for _ in range(2):
            try:
                with open(path, "x") as file:
                    file.write(text)
                return cls(path, text)
            except FileExistsError:
                if _life(path) != "dead":
                    return None
                path.unlink(missing_ok=True)
        return None

    def held(self) -> bool:
        """True if nobody has taken the claim over."""
        return _text(self._path) == self._text

    def release(self) -> None:
        """Give it back."""
        self._stop.set()
        if self.held():
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            if self.held():
                with contextlib.suppress(OSError):
                    os.utime(self._path)


def share(
    tasks: Sequence[T],
    *,
    path: Callable[[T], Path],
    settle: Callable[[T], bool],
    note: Callable[[str], None],
    map: Map = map,
) -> list[T]:
    """Settle all tasks but those that other, living workers hold.

    Waits for a sign of life of workers that hold the rest, and takes over from those that give none.

    Args:
        tasks: in the order in which they are to be done.
        path: of a task's claim.
        settle: does a task unless it is done or held; whether it is done.
        note: tells people that there is waiting.
        map: calls `settle` with each task; another than the built-in one may do so for several at the same time.

    Returns:
        Tasks that are left undone.
    """
    watch, waiting, left = Watch(), False, list(tasks)
    while left := [task for task, done in zip(left, map(settle, left), strict=True) if not done]:
        claims = [path(task) for task in left]
        if all([watch.proves_life(claim) for claim in claims]):
            break
        if not waiting:
            note(f"waiting up to {STALE + HEARTBEAT:.0f} s for a sign of life of {holders(claims)}")
            waiting = True
        time.sleep(LOOK_AGAIN)
    return left


class Watch:
    """Looks at claims again and again, to tell living workers from those that died where nobody can ask for them."""

    def __init__(self):
        self._first: dict[Path, tuple[str, float]] = {}

    def proves_life(self, path: Path) -> bool:
        """True if the worker that holds a claim is known to live: its process runs here, or its heart has beaten since
        the first look."""
        if _life(path) == "alive":
            return True
        try:
            seen = (_text(path), path.stat().st_mtime)
        except OSError:
            return False
        first = self._first.setdefault(path, seen)
        if first[0] != seen[0]:
            self._first[path] = seen
        return first[0] == seen[0] and first[1] != seen[1]


def holders(paths: Iterable[Path]) -> str:
    """Names of the workers that hold these claims, for people."""
    return ", ".join(dict.fromkeys(map(holder, paths)))


def holder(path: Path) -> str:
    """Name of the worker that holds a claim, for people."""
    worker = _worker(path)
    return f"process {worker['pid']} on {worker['host']}" if {"pid", "host"} <= set(worker) else "another worker"


def _life(path: Path) -> Literal["alive", "dead", "unknown"]:
    """State of a claim's worker, at one look."""
    try:
        age = abs(_now(path.parent) - path.stat().st_mtime)
    except FileNotFoundError:
        return "dead"
    if age > STALE:
        return "dead"
    worker = _worker(path)
    namespace = _namespace()
    if (worker.get("host"), worker.get("namespace", namespace)) != (socket.gethostname(), namespace):
        return "unknown"
    began = _began(worker["pid"]) if isinstance(worker.get("pid"), int) else None
    if began == "":
        return "unknown"
    return "alive" if began is not None and began == worker.get("began") else "dead"


def _worker(path: Path) -> dict[str, Any]:
    """Text of a claim's file; empty where it is gone, or was not written to its end."""
    try:
        worker = json.loads(_text(path))
    except ValueError:
        return {}
    return worker if isinstance(worker, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _now(folder: Path) -> float:
    """The time by the clock that stamps files in this folder, which may be another machine's."""
    probe = folder / f"clock-{uuid.uuid4().hex}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _process(pid: int) -> dict[str, Any]:
    """All that tells a process of this machine from every other one, also from a later one with its id."""
    return {"host": socket.gethostname(), "namespace": _namespace(), "pid": pid, "began": _began(pid)}


def _namespace() -> str | None:
    """Name of the place in which process ids mean the same: containers on one machine have namespaces of their own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _began(pid: int) -> str | None:
    """Start time of a process, in the system's own words; None if it has ended, "" if the system does not tell."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    with contextlib.suppress(OSError):
        # After the name in brackets come the state, third of all fields, and the start time, the 22nd.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=10)
        return listed.stdout.strip()
    return ""
