"""Every file of a run, finished or not, truncated, emptied, bit-flipped or replaced by another run's.

Either the same command ends with the same bits, or it says in one line which file is damaged and what to do, and then,
that done, ends with the same bits. It never shows another number.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.experiments.test_sweep import numbers
from tests.faults.conftest import sentence

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

HURTS = {
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "flipped_digit": lambda data: re.sub(rb"(\d\.\d*?)([0-8])", lambda m: m[1] + bytes([m[2][0] + 1]), data, count=1),
}
"""A byte's last bit in the middle; or a digit of the first number, which leaves a file of the right form."""


@pytest.fixture(scope="session")
def finished(bench, tmp_path_factory):
    """A finished run; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    bench.check(out)
    return out


def files(out):
    """The files of a run by which it goes on, those made again at every end left out."""
    made = {"results.csv", "report.html"}
    return sorted(p for p in out.rglob("*") if p.is_file() and p.name not in made and "figures" not in p.parts)


def recover(bench, out):
    """Run the command; where it refuses, do what it says, and run it again."""
    for _ in range(6):
        status, said = bench.run(out)
        sentence(said)
        if status == 0:
            break
        assert status == 2, said
        path = Path(re.search(r"remove (\S+)", said)[1])
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert numbers(out) == bench.expected


@pytest.mark.parametrize("hurt", HURTS)
@pytest.mark.parametrize("which", ["unfinished", "finished"])
def test_one_file(bench, request, tmp_path, which, hurt):
    """All files of one kind (by name) at once would hide one behind another: one at a time, one of each kind."""
    whole = request.getfixturevalue(which)
    kinds = {path.name: path for path in files(whole)}
    for name, path in kinds.items():
        out = tmp_path / name.replace(".", "_")
        shutil.copytree(whole, out)
        victim = out / path.relative_to(whole)
        victim.write_bytes(HURTS[hurt](victim.read_bytes()))
        recover(bench, out)


def test_replaced_by_another_run(bench, finished, tmp_path):
    """A cell's file where another cell's stood."""
    for name in ("config.json", "summary.json", "metrics.jsonl", "layers.jsonl"):
        out = tmp_path / name.replace(".", "_")
        shutil.copytree(finished, out)
        first, *_, last = sorted(out.glob(f"cells/*/{name}"))
        shutil.copy(last, first)
        recover(bench, out)
