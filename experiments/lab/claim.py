"""Claims: how several workers on one folder share out the groups without a server.

A claim is a file made by exclusive creation, with the worker's host and process and a heartbeat in its modification
time. One whose worker is dead, or whose heart has stopped, may be taken over. Should two workers ever run the same
group, nothing is lost but time: they write the same numbers, atomically.
"""

import contextlib
import json
import os
import socket
import threading
import uuid
from pathlib import Path

HEARTBEAT = 10.0
"""Seconds between two beats."""
STALE = 90.0
"""Seconds without a beat after which a claim may be taken over."""


class Claim:
    """A claim that is held, until `release`. Make one with `Claim.take`."""

    def __init__(self, path: Path, text: str):
        self._path, self._text = path, text
        self._stop = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def take(cls, path: Path) -> "Claim | None":
        """Claim, or None if a living worker holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex})
        for _ in range(2):
            try:
                with open(path, "x") as file:
                    file.write(text)
                return cls(path, text)
            except FileExistsError:
                if _alive(path):
                    return None
                path.unlink(missing_ok=True)
        return None

    def held(self) -> bool:
        """Whether nobody has taken it over."""
        try:
            return self._path.read_text() == self._text
        except OSError:
            return False

    def release(self) -> None:
        """Give it back."""
        self._stop.set()
        if self.held():
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def holder(path: Path) -> str:
    """Who holds a claim, for people."""
    try:
        worker = json.loads(path.read_text())
        return f"process {worker['pid']} on {worker['host']}"
    except (OSError, ValueError, KeyError):
        return "another worker"


def _alive(path: Path) -> bool:
    try:
        age = _now(path.parent) - path.stat().st_mtime
        worker = json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    if age > STALE:
        return False
    return worker["host"] != socket.gethostname() or _running(worker["pid"])


def _now(folder: Path) -> float:
    """The time by the clock that stamps files in this folder, which may be another machine's."""
    probe = folder / f"clock-{uuid.uuid4().hex}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
