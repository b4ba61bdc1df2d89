"""Disks that are full, read-only, slow or gone; clocks that jump; memory that is short."""

import shutil
import subprocess
import time

import pytest

from tests.faults.conftest import sentence

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of a given size; skipped where that is not allowed."""
    mounted = []

    def mount(size, *options):
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", folder])
        if done.returncode:
            pytest.skip("mounting a file system is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=False)


@pytest.mark.parametrize("kibibytes", [4, 16, 48, 96])
def test_full(bench, small_disk, kibibytes):
    """The run ends in a sentence; with room again, the same command ends with the same bits."""
    out = small_disk(f"{kibibytes}k") / "out"
    status, said = bench.run(out)
    assert status in (1, 2)
    sentence(said)
    assert "No space left" in said or "failed" in said
    subprocess.run(["mount", "-o", "remount,size=64m", out.parent], check=True)
    bench.check(out)


def test_read_only(bench, unfinished, small_disk):
    disk = small_disk("64m")
    shutil.copytree(unfinished, disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    status, said = bench.run(disk / "out")
    assert status == 2 and len(said.strip().splitlines()) == 1, said
    sentence(said)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    bench.check(disk / "out")


def test_a_folder_that_is_lost_on_the_way(bench, tmp_path):
    out = tmp_path / "out"
    process = bench.start(out)
    while process.poll() is None and not list(out.glob("groups/*/checkpoint.npz")):
        time.sleep(0.01)
    shutil.rmtree(out, ignore_errors=True)
    said = "".join(process.communicate(timeout=300))
    sentence(said)
    bench.check(out)


def test_slow(bench, tmp_path):
    status, said = bench.run(tmp_path / "out", ("slow", 0.05))
    assert status == 0, said
    bench.check(tmp_path / "out")


@pytest.mark.parametrize("seconds", [-86400, 86400])
def test_a_clock_that_jumps(bench, unfinished, tmp_path, seconds):
    """Whether a claim is alive is judged by the clock that stamps the files."""
    out = tmp_path / "out"
    shutil.copytree(unfinished, out)
    status, said = bench.run(out, ("clock", seconds))
    assert status == 0, said
    bench.check(out)


@pytest.mark.parametrize("mebibytes", [1, 64, 256])
def test_short_of_memory(bench, tmp_path, mebibytes):
    """The worker may die of it, as a process does; what it leaves is gone on with."""
    out = tmp_path / "out"
    bench.run(out, ("memory", mebibytes))
    status, said = bench.run(out, ("none",), "--retry-failed")
    assert status == 0, said
    bench.check(out)
