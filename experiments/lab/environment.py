"""Where numbers were made: versions, device, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

PACKAGES = ("stackjax", "jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Of all that may change a number: Python, packages, and this repository's commit where there is one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "commit": _commit()}


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
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
