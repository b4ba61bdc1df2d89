"""XLA's persistent cache of compiled programs, so that a resumed or extended sweep does not compile again.

A program from the cache is the program that was compiled: it changes no number.
"""

import contextlib
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

LEAST_SECONDS = 0.3
"""Programs that compile faster are not kept."""

_HIT = "/jax/compilation_cache/cache_hits"


def enable() -> Path:
    """Keep compiled programs in the user's cache folder, unless JAX was told of another.

    Each machine has its own, for programs are compiled for its processor.
    """
    known = jax.config.values["jax_compilation_cache_dir"]
    if known:
        return Path(known)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "stackjax" / "xla" / platform.node()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Compile everything anew meanwhile, or in a function decorated with `off()`, whose compile times count."""
    was = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        compilation_cache.reset_cache()


_heard = threading.local()


def _listen(event: str, **_) -> None:
    if event == _HIT:
        getattr(_heard, "hits", []).append(event)


jax.monitoring.register_event_listener(_listen)


@contextlib.contextmanager
def hits() -> Iterator[list[str]]:
    """A list that grows with each program that this thread reads from the cache meanwhile."""
    _heard.hits = events = []
    try:
        yield events
    finally:
        del _heard.hits
