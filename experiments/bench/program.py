"""One peer made ready to run, and what that took: the two kinds, JAX and PyTorch, behind one face."""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr

from ..lab import compile_cache, cost
from . import peers
from .machine import clock
from .peers.base import JaxPeer, Size
from .peers.in_stackjax import Stackjax

Row = dict[str, Any]
"""One measurement, as plain JSON."""


@dataclass(kw_only=True)
class Program:
    """A peer, compiled.

    Args:
        step: takes one training step and returns the loss before it, when it is done.
        facts: what is known without running it.
        seconds: of the steps that were timed.
    """

    step: Callable[[], float]
    facts: Row
    seconds: list[float] = field(default_factory=list)

    def timed_step(self) -> None:
        """Take a step and note its time."""
        began = clock()
        self.step()
        self.seconds.append(clock() - began)

    @property
    def row(self) -> Row:
        """All that was measured."""
        return {
            **self.facts,
            "step_seconds": statistics.median(self.seconds) if self.seconds else None,
            "steps": self.seconds,
        }


def tokens_of(size: Size) -> np.ndarray:
    """A batch of random tokens (B, T)."""
    return np.random.default_rng(0).integers(0, size.vocab, (size.batch, size.context)).astype(np.int32)


@compile_cache.off()
def prepare(name: str, size: Size, remat: str) -> Program:
    """Build, trace and compile a peer: its init, its optimiser and its step."""
    jax.clear_caches()
    gc.collect()
    kind = peers.load(name)
    jax_peer = issubclass(kind, JaxPeer)
    program = prepare_jax(kind(size, remat), tokens_of(size)) if jax_peer else _prepare_torch(kind, size, remat)
    program.facts = {"peer": name, "remat": remat, "depth": size.depth, **program.facts}
    return program


def prepare_jax(peer: JaxPeer, batch: Any) -> Program:
    """Trace and compile a peer's init, optimiser and step, whose loss takes such a batch."""
    began, busy = clock(), time.process_time()
    start = jax.jit(lambda key: peer.start(peer.init(key))).lower(jax.random.key(0))
    traced = jax.jit(peer.step, donate_argnums=0).trace(start.out_info, batch)
    begin, advance = start.compile(), traced.lower().compile()
    facts = {
        "compile_seconds": clock() - began,
        "compile_cpu_seconds": time.process_time() - busy,
        "equations": equations(traced.jaxpr.jaxpr),
        "temp_bytes": _temp_bytes(advance),
    }
    state: list[Any] = []

    def step() -> float:
        before = state.pop() if state else begin(jax.random.key(0))
        after, loss = advance(before, batch)
        state.append(after)
        return float(jax.block_until_ready((after, loss))[1])

    return Program(step=step, facts=facts)


def _prepare_torch(kind: type, size: Size, remat: str) -> Program:
    import torch  # pyright: ignore[reportMissingImports]
    from torch._inductor import config as inductor  # pyright: ignore[reportMissingImports]

    warnings.filterwarnings("ignore", message="dynamo_pgo")
    torch.compiler.reset()
    inductor.force_disable_caches = True
    began = time.perf_counter()  # of the wall, for torch.compile works in other processes
    peer = kind(size, remat)
    tokens = peer.tokens(tokens_of(size))
    peer.step(tokens)
    facts = {"compile_seconds": time.perf_counter() - began, "equations": None, "temp_bytes": None}
    return Program(step=lambda: peer.step(tokens), facts=facts)


def gradient_bytes(name: str, size: Size, remat: str) -> int:
    """XLA's temporary bytes of loss and gradient alone, without the optimiser."""
    peer: JaxPeer = peers.load(name)(size, remat)
    params = jax.eval_shape(peer.init, jax.random.key(0))
    return _temp_bytes(jax.jit(jax.value_and_grad(peer.loss)).lower(params, tokens_of(size)).compile())


def _temp_bytes(compiled: Any) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


def equations(jaxpr: Jaxpr) -> int:
    """Number of equations in a jaxpr, those of inner jaxprs included."""
    return sum(1 + sum(map(equations, cost.inner_jaxprs(equation.params))) for equation in jaxpr.eqns)


def model_flops(size: Size) -> int:
    """FLOPs of the matrix products of one training step, nothing recomputed; masked entries of attention count."""
    peer = Stackjax(replace(size, dtype="float32"), backend="plain")
    params = jax.eval_shape(peer.init, jax.random.key(0))
    return cost.matmul_flops(jax.grad(peer.loss), params, tokens_of(size))


def run(programs: Sequence[Program], rounds: int) -> None:
    """Time the programs' steps in turn, round after round, after one round that does not count."""
    for program in programs:
        program.step()
    for _ in range(rounds):
        for program in programs:
            program.timed_step()
