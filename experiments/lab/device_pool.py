"""Independent pieces of work at the same time, on this machine."""

import contextlib
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""A function that is called as the built-in `map`, which is one."""


MOST_AT_ONCE = 4
"""Items that a CPU works on at the same time, where it has as many cores and nobody says otherwise."""


def best_at_once() -> int:
    """The number of items that one device works on at the same time by default: one, on a CPU one for each core.

    A step of a small model keeps no two cores busy.
    """
    if jax.default_backend() != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_AT_ONCE)


@contextlib.contextmanager
def device_pool(devices: int, at_once: int = 1) -> Iterator[Map]:
    """Yield a `map` that works on several items at the same time, each in a thread with a default device of its own.

    Nothing is split, so every item is computed by the program that computes it alone. When a call raises, items that
    wait are dropped, and the error is raised once those under way have ended.

    Args:
        devices: how many of the first local devices.
        at_once: items at the same time on each; if that is one on one device, the `map` is the built-in one, in the
            thread and on the device of the caller.
    """
    n = devices * at_once
    if n == 1:
        yield map
        return
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for device in jax.local_devices()[:devices] * at_once:
        idle.put(device)

    def on_idle_device(function: Callable[[Any], Any], item: Any) -> Any:
        device = idle.get()
        try:
            with jax.default_device(device):
                return function(item)
        finally:
            idle.put(device)

    with ThreadPoolExecutor(n) as pool:
        yield lambda function, items: pool.map(lambda item: on_idle_device(function, item), items)
