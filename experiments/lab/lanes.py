"""Several runs by one program, all at once or one after another: lanes of learning rates and seeds.

All lanes of a vmap take every step together. A lane that diverged is frozen, never removed, for the width of a vmap
changes the last bits of its lanes' numbers. Of lanes that follow each other, none depends on another.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import stackjax as sj

from . import compile_cache
from .corpus import Corpus
from .train import Batch, Hyper, State, Steps, Trainer, check_counts, runs, stack_hyper

Mode = Literal["vmap", "loop"]
"""All lanes at once by vmap; or one after another by a program of one lane, whatever their number, with the temporary
memory of one."""

CompilerOptions = dict[str, str | bool]

RUNS_ONCE: CompilerOptions = {"xla_backend_optimization_level": "0"}
"""Compiler options for a program that compiles for longer than it runs."""

RUNS_OFTEN: CompilerOptions = {"xla_backend_optimization_level": "1"}
"""Compiler options on a CPU for a program that runs for longer than it compiles: with more of LLVM's passes it compiles
for a quarter longer and runs no faster."""

Feed = Callable[[int, int], Batch]
"""`feed(seed, step) -> batch`, a pure function."""


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled programs of lanes that run at once, with a leading axis of lanes, or of one lane, without.

    Args:
        start: (hyper, batches) -> states
        advance: (hyper, states, batches) -> (states, steps); the states are donated.
        evaluate: (states, batches) -> (losses of each batch, measures)
        compile_seconds: wall time of tracing and compiling all three; None if any came from a cache.
        temp_bytes: XLA's own count of temporary memory in `advance`, on each device.
    """

    start: jax.stages.Compiled
    advance: jax.stages.Compiled
    evaluate: jax.stages.Compiled
    compile_seconds: float | None
    temp_bytes: int


def best_mode(on: Mesh | None = None) -> Mode:
    """The mode by default: one lane after another on a CPU, elsewhere and on a mesh all at once.

    On a CPU a vmap of eight lanes takes up to an eighth less time, but has another program for each number of lanes, so
    that every rate that is added compiles anew; and a vmap of one takes more (`experiments/results/bench_lanes`).

    Args:
        on: the mesh of devices over which each lane is split; None is one device.
    """
    return "loop" if on is None and jax.default_backend() == "cpu" else "vmap"


def behind(n: int, sharding: NamedSharding) -> NamedSharding:
    """The sharding of arrays with n more axes in front, which stay whole on each device."""
    return NamedSharding(sharding.mesh, PartitionSpec(*(None,) * n, *sharding.spec))


def compile_lanes(
    trainer: Trainer, hyper: Hyper, batches: Batch, valid: Batch, on: Mesh | None = None, *, mode: Mode = "vmap"
) -> Programs:
    """Compile the programs of lanes that run at once, or of one lane.

    On a mesh, each device has its share of every lane's parameters, moments and batch, as `stackjax.shard` says.

    Args:
        trainer: what is run.
        hyper: numbers with a leading axis of lanes; in the mode "loop" those of one lane.
        batches: of one chunk, with leading axes of lanes and steps, in the mode "loop" of steps; only shapes are read.
        valid: validation batches with a leading axis, the same for all lanes.
        on: the mesh of devices; None is one device.
        mode: how the lanes are run.
    """
    axes = int(mode == "vmap")

    def of_lanes(function: Callable, *in_axes: int | None) -> Callable:
        return jax.vmap(function, in_axes) if axes else function

    began = time.perf_counter()
    first = jax.tree.map(lambda x: x.take(0, axes), batches)
    whole = lanes = rows = rows_of_lanes = steps_of_rows = None
    if on is not None:
        state = jax.eval_shape(trainer.start, *jax.tree.map(lambda x: x[(0,) * axes], (hyper, first)))
        lanes = jax.tree.map(partial(behind, axes), sj.shard.state(trainer.task.model, on, state))
        whole, batch = NamedSharding(on, PartitionSpec()), sj.shard.batch(on)
        rows, rows_of_lanes, steps_of_rows = (behind(n, batch) for n in (1, axes, axes + 1))
    with contextlib.nullcontext() if on is None else jax.set_mesh(on):
        draw = jax.jit(of_lanes(trainer.start, 0, 0), in_shardings=(whole, rows_of_lanes), out_shardings=lanes)
        start = draw.lower(hyper, first)
        states = start.out_info
        advance = jax.jit(
            of_lanes(trainer.advance, 0, 0, 0),
            in_shardings=(whole, lanes, steps_of_rows),
            out_shardings=(lanes, whole),
            donate_argnums=1,
        ).lower(hyper, states, batches)
        look = jax.jit(of_lanes(trainer.evaluate_all, 0, None), in_shardings=(lanes, rows), out_shardings=whole)
        evaluate = look.lower(states, valid)

    def compiled(program: jax.stages.Lowered, options: CompilerOptions) -> tuple[jax.stages.Compiled, bool]:
        with compile_cache.hits() as hits:
            return program.compile(compiler_options=options), bool(hits)

    lowered = (start, advance, evaluate)
    often = RUNS_OFTEN if jax.default_backend() == "cpu" else {}
    with ThreadPoolExecutor(len(lowered)) as pool:
        programs, cached = zip(*pool.map(compiled, lowered, (RUNS_ONCE, often, often)), strict=True)
    memory = programs[1].memory_analysis()
    return Programs(
        start=programs[0],
        advance=programs[1],
        evaluate=programs[2],
        compile_seconds=None if any(cached) else time.perf_counter() - began,
        temp_bytes=0 if memory is None else memory.temp_size_in_bytes,
    )


class Run:
    """A group of lanes under way, chunk by chunk.

    Args:
        trainer: what is run.
        hypers: the numbers of each lane, as Python numbers; `steps` is the same for all.
        feed: the training data.
        valid: validation batches with a leading axis.
        eval_every: steps in a chunk; each ends with an evaluation and a look into the layers.
        mode: how the lanes are run.
        on: the mesh of devices over which each lane is split; None is one device.
    """

    def __init__(
        self,
        trainer: Trainer,
        hypers: Sequence[Hyper],
        feed: Feed,
        valid: Batch,
        *,
        eval_every: int,
        mode: Mode = "vmap",
        on: Mesh | None = None,
    ):
        self.trainer, self.hypers, self.feed, self.eval_every = trainer, tuple(hypers), feed, eval_every
        self.steps = int(hypers[0].steps)
        n = len(hypers)
        self._mode: Mode = mode
        self._at_once: list[slice | int] = [slice(n)] if mode == "vmap" else list(range(n))
        self._hyper = stack_hyper(hypers)
        self._valid = jax.tree.map(jnp.asarray, valid)
        hyper, batches = _part((self._hyper, self._batches(0)), self._at_once[0])
        self.programs = compile_lanes(trainer, hyper, batches, self._valid, on, mode=mode)
        self.states: list[State] = []
        self.metrics: list[list[dict[str, Any]]] = [[] for _ in hypers]
        self.layers: list[list[dict[str, Any]]] = [[] for _ in hypers]
        self.step_seconds: list[float] = []
        """Seconds a step and lane took, for each chunk."""

    def begin(self) -> None:
        """Draw the parameters and evaluate them."""
        first = jax.tree.map(lambda x: x[:, 0], self._batches(0))
        self.states = [self.programs.start(*_part((self._hyper, first), lanes)) for lanes in self._at_once]
        self._record(None)

    def resume(self, state: State, metrics: list[list[dict[str, Any]]], layers: list[list[dict[str, Any]]]) -> None:
        """Go on from a checkpoint.

        Args:
            state: of all lanes, with a leading axis of them.
            metrics: rows of each lane so far.
            layers: rows of each lane so far.
        """
        places = self.programs.start.output_shardings
        self.states = [jax.device_put(_part(state, lanes), places) for lanes in self._at_once]
        self.metrics, self.layers = metrics, layers

    @property
    def state(self) -> State:
        """The state of all lanes, with a leading axis of them."""
        return self._joined(self.states)

    @property
    def shapes(self) -> State:
        """The shapes and types of `state`."""
        states = self.programs.start.out_info
        if self._mode == "vmap":
            return states
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.hypers), *x.shape), x.dtype), states)

    @property
    def alive(self) -> np.ndarray:
        """(lanes,) False for those that diverged."""
        return np.asarray(self._joined([state.alive for state in self.states]))

    @property
    def step(self) -> int:
        """Steps behind us, those of frozen lanes included."""
        return max((row["step"] for rows in self.metrics for row in rows[-1:]), default=0)

    @property
    def ended(self) -> bool:
        """True if every lane is at its last step, or diverged."""
        return self.step >= self.steps or not np.any(self.alive)

    def chunk(self) -> None:
        """Take `eval_every` steps, or those that are left, and evaluate."""
        batches, seen, taken = self._batches(self.step), [], 0
        began = time.perf_counter()
        for i, lanes in enumerate(self._at_once):
            if not np.any(self.states[i].alive):
                seen.append(_nothing(self.programs.advance.out_info[1]))
                continue
            hyper, read = _part((self._hyper, batches), lanes)
            self.states[i], steps = self.programs.advance(hyper, self.states[i], read)
            seen.append(jax.device_get(steps))
            taken += steps.made.size
        self.step_seconds.append((time.perf_counter() - began) / max(taken, 1))
        self._record(self._joined(seen))

    def _joined(self, trees: Sequence[Any]) -> Any:
        """Trees of arrays, one for each run of a program, as one with a leading axis of lanes."""
        if self._mode == "vmap":
            return trees[0]
        return jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(trees))

    def _batches(self, step: int) -> Batch:
        """A chunk of batches with leading axes of lanes and steps; lanes of one seed read the same."""
        steps = range(step, step + self.eval_every)
        seeds = dict.fromkeys(int(hyper.seed) for hyper in self.hypers)
        chunks = {seed: [self.feed(seed, step) for step in steps] for seed in seeds}
        stacked = {seed: jax.tree.map(lambda *xs: np.stack(xs), *chunk) for seed, chunk in chunks.items()}
        return jax.tree.map(lambda *xs: np.stack(xs), *(stacked[int(hyper.seed)] for hyper in self.hypers))

    def _record(self, seen: Steps | None) -> None:
        evaluate = self.programs.evaluate
        evaluated = [
            evaluate(state, self._valid) if np.any(state.alive) else _nothing(evaluate.out_info)
            for state in self.states
        ]
        losses, measures = jax.device_get(self._joined(evaluated))
        alive, first = self.alive, self.step
        for lane in range(len(self.hypers)):
            rows = []
            if seen is not None:
                numbers = zip(seen.loss[lane], seen.gradient_norm[lane], seen.made[lane], strict=True)
                rows = [_row(first + i, *pair) for i, (*pair, made) in enumerate(numbers, 1) if made]
            elif first == 0:
                rows = [_row(0, None, None)]
            self.metrics[lane] += rows
            if rows and alive[lane]:
                rows[-1]["valid_loss"] = number(np.mean(losses[lane]))
                rows[-1]["valid_losses"] = [number(loss) for loss in losses[lane]]
                last = {} if seen is None else {name: x[lane][len(rows) - 1] for name, x in seen.layers.items()}
                profile = {name: x[lane] for name, x in measures.items()} | last
                rows[-1] |= {name: number(x) for name, x in profile.items() if np.ndim(x) == 0}
                layers = (name for name in sorted(profile) if np.ndim(profile[name]))
                arrays = {name: [number(x) for x in profile[name]] for name in layers}
                self.layers[lane].append({"step": rows[-1]["step"], **arrays})


def _part(tree: Any, lanes: slice | int) -> Any:
    """Some of the lanes of a tree of arrays with a leading axis of them, or one of them without it."""
    return jax.tree.map(lambda x: x[lanes], tree)


def _nothing(shapes: Any) -> Any:
    """Zeros in these shapes: what a lane that diverged adds to the rows."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _row(step: int, loss: Any, gradient_norm: Any) -> dict[str, Any]:
    return {"step": step, "train_loss": number(loss), "valid_loss": None, "grad_norm": number(gradient_norm)}


def number(x: Any) -> float | None:
    """A float32 as the shortest number that gives it back; None if it is not finite."""
    return None if x is None or not np.isfinite(x) else float(str(np.float32(x)))


def fit(
    trainer: Trainer,
    corpus: Corpus,
    *,
    learning_rates: Sequence[float] = (1e-3,),
    seeds: Sequence[int] = (0,),
    steps: int = 200,
    batch: int = 8,
    context: int = 32,
    eval_every: int = 25,
    eval_batches: int = 8,
    mode: Mode = "vmap",
    **numbers: Any,
) -> Run:
    """Train every learning rate with every seed, for use in a notebook.

    Args:
        trainer: what is run.
        corpus: what it reads.
        learning_rates: at their peaks.
        seeds: of init and data.
        steps: of each run.
        batch: B.
        context: T.
        eval_every: steps between evaluations.
        eval_batches: batches in an evaluation.
        mode: how the lanes are run.
        **numbers: the rest of `Hyper`: warmup, weight_decay, clip_norm.

    Returns:
        The run at its end: `metrics` and `layers`, lists of rows for each lane (rates outside, seeds inside), and
        `state`, whose arrays have a leading axis of lanes.

    Raises:
        ValueError: sizes or numbers that no run can have, or another mode.
    """
    check_counts(corpus, batch=batch, context=context, eval_every=eval_every, eval_batches=eval_batches)
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be {' or '.join(get_args(Mode))}; got {mode!r}")
    run = Run(
        trainer,
        runs(learning_rates, seeds, steps=steps, **numbers),
        lambda seed, step: corpus.batch(seed=seed, step=step, batch=batch, context=context),
        corpus.valid_batches(eval_batches, batch=batch, context=context),
        eval_every=min(eval_every, steps),
        mode=mode,
    )
    run.begin()
    while not run.ended:
        run.chunk()
    return run
