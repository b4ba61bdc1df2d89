"""Memory on a CPU, kept from step to step.

XLA asks the C library for a program's temporaries anew at every call. GNU's library gives large blocks back to the
kernel as soon as they are freed, and the kernel clears them, page by page, when they are asked for again: for a shallow
stack that takes as long as its arithmetic.

    stackjax.memory.keep()    before the first array is made
"""

import contextlib
import ctypes
import sys
import warnings
from functools import cache
from pathlib import Path

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Options of mallopt(3)."""


@cache
def keep() -> bool:
    """Have this process keep the memory that its arrays free, for those that follow.

    Call it before JAX computes anything: its threads, which begin then, have heaps of their own, from which large
    blocks still go back. It holds until the process ends, whose memory stays at the most that it has needed.

    Returns:
        Whether it does. False, with a warning, where JAX has begun, and False without GNU's C library; nothing is
        changed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    if _begun():
        warnings.warn("memory is not kept: JAX has computed something already; call keep() before", stacklevel=2)
        return False
    return all([set_option(ARENA_MAX, 1), set_option(MMAP_MAX, 0), set_option(TRIM_THRESHOLD, -1)])


def _begun() -> bool:
    """True where this process has threads of XLA."""
    for name in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            if name.read_text().startswith("tf_XLA"):
                return True
    return False
