"""A stack too deep to sweep widely: does it compile like a shallow one, start finite, and learn anything at all?"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.recipe import Recipe

from ..lab import compile_cache
from ..lab.corpus import Corpus
from ..lab.grid import Setting
from ..lab.lanes import RUNS_ONCE, number
from ..lab.made import Made
from ..lab.outcome import failure
from ..lab.store import Json
from ..lab.train import Batch, Trainer, stack_hyper

REMATS: tuple[Literal["none", "layer", "nested"], ...] = ("none", "layer", "nested")


@dataclass(frozen=True, kw_only=True)
class Check:
    """Outcome and cost of a few training steps of a deep stack.

    Args:
        recipe: name.
        depth: L.
        shallow: the depth whose compile time is beside it.
        status: "finite"; "not finite" at the first step; "diverged" at a later one; "failed" with a message.
        message: what failed, in one line.
        losses: of each step before its update, in nats, up to the first that is not finite.
        gradient_norm: global, at the first step; None if it is not finite.
        compile_seconds: of the training steps, without optimisation of machine code; None if it came from a cache.
        shallow_compile_seconds: of the same steps at depth `shallow`.
        step_seconds: wall time of a step.
        temp_bytes: XLA's count of the steps' temporary memory under each rematerialisation.
    """

    recipe: str
    depth: int
    shallow: int
    status: Literal["finite", "not finite", "diverged", "failed"]
    message: str = ""
    losses: tuple[float, ...] = ()
    gradient_norm: float | None = None
    compile_seconds: float | None = None
    shallow_compile_seconds: float | None = None
    step_seconds: float | None = None
    temp_bytes: dict[str, int] | None = None

    def json(self) -> Json:
        """All of it, as plain JSON."""
        return asdict(self)


def check(
    setting: Setting,
    name: str,
    recipe: Recipe,
    depth: int,
    corpus: Corpus | Made,
    *,
    learning_rate: float,
    shallow: int = 4,
) -> Check:
    """Take `setting.steps` training steps at a constant rate, and weigh the program under each rematerialisation.

    Args:
        setting: sizes and steps.
        name: of the recipe.
        recipe: that is checked.
        depth: L.
        corpus: what is read.
        learning_rate: of all steps.
        shallow: a depth to compare compile times with.
    """
    try:
        return _check(replace(setting, schedule="constant"), name, recipe, depth, corpus, learning_rate, shallow)
    except Exception as error:
        return Check(recipe=name, depth=depth, shallow=shallow, status="failed", message=failure(error)["message"])


def _check(
    setting: Setting, name: str, recipe: Recipe, depth: int, corpus: Corpus | Made, learning_rate: float, shallow: int
) -> Check:
    hyper = jax.tree.map(lambda x: x[0], stack_hyper([setting.hyper(learning_rate=learning_rate, seed=0)]))
    size = {"batch": setting.batch, "context": setting.context}
    read = [corpus.batch(seed=0, step=step, **size) for step in range(setting.steps)]
    batches = jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *read)

    deep = setting.trainer(recipe, depth, corpus.vocab)
    first = jax.tree.map(lambda x: x[0], batches)
    start = jax.jit(deep.start).lower(hyper, first).compile(compiler_options=RUNS_ONCE)
    _, shallow_seconds = _compiled(setting.trainer(recipe, shallow, corpus.vocab), hyper, batches)
    advance, seconds = _compiled(deep, hyper, batches)
    programs = {
        remat: advance if remat == deep.remat else _compiled(replace(deep, remat=remat), hyper, batches)[0]
        for remat in REMATS
    }
    state = start(hyper, first)
    began = time.perf_counter()
    _, seen = jax.device_get(advance(hyper, state, batches))
    step_seconds = (time.perf_counter() - began) / setting.steps
    finite = np.isfinite(seen.loss) & np.isfinite(seen.gradient_norm)
    n_finite = int(np.argmin(finite)) if not finite.all() else len(finite)
    return Check(
        recipe=name,
        depth=depth,
        shallow=shallow,
        status="finite" if finite.all() else "diverged" if n_finite else "not finite",
        losses=tuple(float(loss) for loss in seen.loss[:n_finite]),
        gradient_norm=number(seen.gradient_norm[0]),
        compile_seconds=seconds,
        shallow_compile_seconds=shallow_seconds,
        step_seconds=step_seconds,
        temp_bytes={remat: program.memory_analysis().temp_size_in_bytes for remat, program in programs.items()},
    )


def _compiled(trainer: Trainer, hyper: Any, batches: Batch) -> tuple[Any, float | None]:
    """The training steps compiled, and how long that took."""
    began = time.perf_counter()
    with compile_cache.hits() as cached:
        states = jax.eval_shape(trainer.start, hyper, jax.tree.map(lambda x: x[0], batches))
        lowered = jax.jit(trainer.advance, donate_argnums=1).lower(hyper, states, batches)
        program = lowered.compile(compiler_options=RUNS_ONCE)
    return program, None if cached else time.perf_counter() - began
