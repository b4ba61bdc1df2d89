"""The environment in which numbers are made: command, commit, versions, seeds, device."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("stackjax", "jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Versions of all that may change a number: Python, packages, and this repository's commit where there is one."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "commit": _commit()}


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def provenance(
    command: str,
    *,
    seeds: Iterable[int] = (),
    packages: Iterable[str] = (),
    recorded: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Origin of a result; every `result.json` begins with it.

    Args:
        command: that made it.
        seeds: of init and data.
        packages: whose versions matter too.
        recorded: `versions` and `device` of an earlier run that made the numbers; None takes this process's.

    Returns:
        command, seeds, commit, clean_tree (whether the commit is all there is; None if that is unknown), versions and
        device.
    """
    origin = {"versions": versions(), "device": device()} if recorded is None else recorded
    known = origin["versions"] | {name: version(name) for name in packages}
    commit = known.pop("commit")
    return {
        "command": command,
        "seeds": sorted(set(seeds)),
        "commit": commit.removesuffix("-dirty"),
        "clean_tree": None if commit == "unknown" else not commit.endswith("-dirty"),
        "versions": known,
        "device": origin["device"],
    }


def origin(config: dict[str, Any], base: dict[str, Any]) -> str:
    """Origin of one cell of a sweep: its commit, and what else is not as it was when the sweep was begun.

    Args:
        config: `versions` and `device` of the cell.
        base: those of the sweep.
    """
    then, now = ({**record["versions"], "device": record["device"]} for record in (base, config))
    commit = now.pop("commit", "unknown")
    return ", ".join([commit, *(f"{name} {value}" for name, value in now.items() if value != then.get(name))])


def described(origin: dict[str, Any]) -> str:
    """A result's provenance in a sentence."""
    tree = {True: "", False: " with changes that are in no commit", None: ""}[origin["clean_tree"]]
    packages = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    origins = origin.get("origins", {})
    cells = "; ".join(f"{n:,} cells at {where}" for where, n in origins.items()) if len(origins) > 1 else ""
    return (
        f"Made by `{origin['command']}` on {origin['device']}; {packages}; commit {origin['commit']}{tree}"
        f"{f' ({cells})' if cells else ''}."
    )


def device() -> str:
    """The device that JAX computes on."""
    first = jax.devices()[0]
    if first.platform == "cpu":
        return f"{_processor()} (cpu, {platform.machine()}, {os.cpu_count()} cores)"
    return f"{first.device_kind} ({first.platform})"


def _processor() -> str:
    """The processor's own name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown processor")


def _commit() -> str:
    """The commit of the repository that keeps this very file, which one that merely lies around it does not.

    Where the code was copied without its repository, as into a container, the variable STACKJAX_COMMIT may name it.
    """
    if not _git("ls-files", Path(__file__).name):
        return os.environ.get("STACKJAX_COMMIT", "unknown")
    return _git("describe", "--always", "--dirty", "--abbrev=12")


def _git(*words: str) -> str:
    """The output of git where this file lies; empty if it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
