"""Independent pieces of work on several devices of this machine at the same time."""

import contextlib
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""A function that is called as the built-in `map`, which is one."""


@contextlib.contextmanager
def device_pool(n: int) -> Iterator[Map]:
    """Yield a `map` that works on n items at the same time, each in a thread whose default device no other one has.

    Nothing is split, so every item is computed by the program that computes it on one device. When a call raises,
    items that wait are dropped, and the error is raised once those under way have ended.

    Args:
        n: how many of the first local devices; with 1, the built-in `map`, in the thread and on the device of the
            caller.
    """
    if n == 1:
        yield map
        return
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for device in jax.local_devices()[:n]:
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
