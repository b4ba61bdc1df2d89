"""Measure one peer in a subprocess, so that its GPU allocation is released before the next."""

import json
import subprocess
import sys
from dataclasses import asdict

from . import program
from .peers.base import Size
from .program import Row


def measure(name: str, size: Size, remat: str, rounds: int, seconds: float) -> Row:
    """Run `program.prepare` and `program.run` in a subprocess, and return the row that they find.

    Raises:
        RuntimeError: the process failed; its last line says why.
        TimeoutError: it took longer than these seconds.
    """
    asked = json.dumps({"name": name, "size": asdict(size), "remat": remat, "rounds": rounds})
    try:
        command = [sys.executable, "-m", __name__, asked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not done after {seconds:.0f} s") from None
    if done.returncode:
        raise RuntimeError(next(iter(done.stderr.strip().splitlines()[-1:]), f"exit status {done.returncode}"))
    return json.loads(done.stdout.splitlines()[-1])


def main(asked: str) -> None:
    """Measure what is asked and print it as JSON."""
    request = json.loads(asked)
    made = program.prepare(request["name"], Size(**request["size"]), request["remat"])
    program.run([made], request["rounds"])
    print(json.dumps(made.row))


if __name__ == "__main__":
    main(sys.argv[1])
