"""The machine: its clock, its cores, and the rate of its matrix products."""

import os
import time

import jax
import jax.numpy as jnp

from .peers.base import Size

PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s of dense products in 16 bits by part of a device's name, from the vendor's data sheets."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_one_core() -> bool:
    """True if everything is computed by a single core."""
    return cores() == 1 and jax.default_backend() == "cpu"


def clock() -> float:
    """Seconds: of the processor on one core, where no neighbour on the machine disturbs them; else of the wall."""
    return time.process_time() if on_one_core() else time.perf_counter()


def peak() -> float | None:
    """FLOP/s that the vendor states of the accelerator, if it is a known one."""
    kind = jax.devices()[0].device_kind
    return next((flops for name, flops in PEAKS.items() if name in kind), None)


def matmul_rate(size: Size, repeats: int = 30) -> float:
    """FLOP/s of the fastest of the model's own matrix products, each alone, through XLA."""
    tokens, narrow, wide = size.batch * size.context, size.d_model, size.d_hidden
    product = jax.jit(jnp.matmul)
    best = 0.0
    for n_in, n_out in ((narrow, narrow), (narrow, wide), (wide, narrow)):
        x, w = jnp.ones((tokens, n_in), size.dtype), jnp.ones((n_in, n_out), size.dtype)
        product(x, w).block_until_ready()
        for _ in range(repeats):
            began = clock()
            product(x, w).block_until_ready()
            best = max(best, 2 * tokens * n_in * n_out / (clock() - began))
    return best
