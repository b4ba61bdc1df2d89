"""One training run, as pure functions of numbers: start, a chunk of steps inside one scan, evaluation.

What changes the graph is in the frozen `Trainer`; what changes only numbers is in `Hyper`, traced, so that no learning
rate, seed or warm-up recompiles anything, and `lanes` can vmap over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import stackjax as sj
from stackjax.check import shown, whole
from stackjax.scan import Remat
from stackjax.segment import Measure
from stackjax.sublayer import Params

from . import names
from .corpus import Corpus
from .optimizer import optimizer_named

Batch = Any
"""A pytree of arrays; what is in it is between the task and the data."""


RECORDED = ("step", "train_loss", "valid_loss", "valid_losses", "grad_norm", "update_ratio", "stream_gradient")
"""Names of what every run records, which no metric of one's own may have."""


class Task(Protocol):
    """A task to learn; one of your own is a frozen dataclass with these."""

    @property
    def model(self) -> sj.Model:
        """The model that is trained."""
        ...

    def loss(self, params: Params, batch: Batch, **options: Any) -> tuple[jax.Array, sj.Result]:
        """The mean loss of a batch, and the stack's result.

        Args:
            params: the model's.
            batch: as the data gives it.
            **options: of `Model.apply`: key, taps, measure, remat.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Predict each token from those before it: cross-entropy in nats, on windows (B, T + 1) of integers.

    Args:
        model: a decoder.
        dtype: of the stream; parameters and their moments stay float32.
    """

    model: sj.Model
    dtype: Literal["float32", "bfloat16"] = "float32"

    def loss(self, params: Params, batch: Batch, **options: Any) -> tuple[jax.Array, sj.Result]:
        logits, result = self.model.apply(params, batch[..., :-1], dtype=jnp.dtype(self.dtype), **options)
        return sj.loss.cross_entropy(logits, batch[..., 1:]), result


@struct.dataclass
class Hyper:
    """The numbers of a run, all traced.

    Args:
        learning_rate: at its peak.
        seed: of the init, of dropout, and of the order of the data.
        steps: of the whole run; the schedule ends there.
        warmup: steps over which the learning rate rises linearly from zero.
        weight_decay: decoupled, times the learning rate.
        clip_norm: the global norm to which larger gradients are scaled down.
    """

    learning_rate: Any
    seed: Any
    steps: Any
    warmup: Any = 0
    weight_decay: Any = 0.1
    clip_norm: Any = 1.0


WHOLE = ("seed", "steps", "warmup")
"""The numbers of a run that are integers."""


POSITIVE = ("learning_rate", "steps", "clip_norm")
"""The numbers of a run that are not 0."""


def check_numbers(hyper: Hyper) -> None:
    """Refuse numbers that no run can have.

    Args:
        hyper: of one run, none of them traced.

    Raises:
        ValueError: one is of another kind or outside its range, or the warm-up does not end before the run.
    """
    for name in (field.name for field in fields(Hyper)):
        value, integer, positive = getattr(hyper, name), name in WHOLE, name in POSITIVE
        number, most = np.asarray(value), np.iinfo(np.int32).max if integer else np.finfo(np.float32).max
        if number.ndim or number.dtype.kind not in ("iu" if integer else "iuf"):
            raise ValueError(f"{name} must be {'an integer' if integer else 'a number'}; got {shown(value)}")
        if not 0 <= number <= most or (positive and number == 0):
            raise ValueError(f"{name} must be {'positive' if positive else '0 or more'}, up to {most}; got {value}")
    if hyper.warmup >= hyper.steps:
        raise ValueError(f"warmup must be less than steps={hyper.steps}; got {hyper.warmup}")


def check_counts(corpus: Corpus, *, batch: int, context: int, eval_every: int, eval_batches: int) -> None:
    """Refuse sizes that are no integers of 1 or more, or that the corpus does not fill.

    Raises:
        ValueError: there is one.
    """
    sizes = {"batch": batch, "context": context, "eval_every": eval_every, "eval_batches": eval_batches}
    whole(**sizes)
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be 1 or more; got {size}")
    corpus.check(batch=batch, context=context)
    if eval_batches * batch > (windows := len(corpus.valid) - context):
        raise ValueError(
            f"eval_batches={eval_batches} of batch={batch} are more than the {windows} windows of {context} tokens in "
            f"the validation data of {corpus.name}"
        )


def runs(learning_rates: Sequence[float], seeds: Sequence[int], **numbers: Any) -> list[Hyper]:
    """The numbers of a run with every learning rate and every seed, rates outside, seeds inside.

    Args:
        learning_rates: at their peaks.
        seeds: of init and data.
        **numbers: the rest of `Hyper`, the same for all.

    Raises:
        ValueError: no sequence, or an empty one; see `check_numbers`.
    """
    for name, values in (("learning_rates", learning_rates), ("seeds", seeds)):
        if np.ndim(values) != 1 or not len(values):
            raise ValueError(f"{name} must be a sequence of one or more numbers; got {shown(values)}")
    hypers = [Hyper(learning_rate=rate, seed=seed, **numbers) for rate in learning_rates for seed in seeds]
    for hyper in hypers:
        check_numbers(hyper)
    return hypers


def stack_hyper(runs: Sequence[Hyper]) -> Hyper:
    """Numbers of several runs with a leading axis of runs: seeds and steps as integers, all others as floats."""

    def stacked(name: str) -> jax.Array:
        return jnp.asarray([getattr(run, name) for run in runs], jnp.int32 if name in WHOLE else jnp.float32)

    return Hyper(**{field.name: stacked(field.name) for field in fields(Hyper)})


@struct.dataclass
class State:
    """The state of a run.

    Args:
        params: the model's parameters.
        optimizer: the optimiser's state.
        step: () how many updates were made.
        alive: () False once a loss or a gradient was not finite; nothing changes from then on.
    """

    params: Params
    optimizer: Any
    step: jax.Array
    alive: jax.Array


@struct.dataclass
class Steps:
    """Measurements while training, with a leading axis of steps.

    Args:
        made: whether the step was tried: not past the end of the run, and not after a divergence.
        loss: of the batch, before its update.
        gradient_norm: global, before clipping.
        layers: grad_norm and update_ratio (L,), stream_gradient (L + 1,), see `stackjax.probe`.
    """

    made: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    layers: dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The training of a task, as pure functions.

    Args:
        task: what is learned.
        optimizer: "adamw", "muon", or a dotted path, see `optimizer.optimizer_named`.
        schedule: of the learning rate after warm-up: "constant", or down to zero at the last step, "cosine" or
            "linear".
        remat: what the backward pass recomputes; on a CPU "layer" needs a fraction of the memory of "none", and up to a
            fifth more time for shallow stacks.
        metrics: the dotted path of a function (task, params, batch) to {name: () or (L,) array}, whose means over the
            validation batches are recorded beside the loss; None for none.
        accumulate: parts of a batch whose gradients are computed one after another and averaged, in the memory of one.
    """

    task: Task
    optimizer: str = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    remat: Remat = "layer"
    metrics: str | None = None
    accumulate: int = 1

    def learning_rate(self, hyper: Hyper, step: jax.Array) -> jax.Array:
        """The learning rate of update `step`, counted from 0."""
        left = (hyper.steps - step) / jnp.maximum(hyper.steps - hyper.warmup, 1)
        decay = {
            "constant": jnp.ones_like(left),
            "linear": left,
            "cosine": 0.5 * (1 - jnp.cos(jnp.pi * left)),
        }[self.schedule]
        warm = (step + 1) / jnp.maximum(hyper.warmup, 1)
        return hyper.learning_rate * jnp.where(step < hyper.warmup, warm, decay)

    def start(self, hyper: Hyper, batch: Batch) -> State:
        """The state before the first step.

        Args:
            hyper: the run's numbers.
            batch: the first batch, for recipes that look at data before they start.
        """
        stack = self.task.model.stack
        params = self.task.model.init(jax.random.fold_in(jax.random.key(hyper.seed), 0))

        def observe(stack: Params, measure: Measure) -> dict[str, jax.Array]:
            return self.task.loss({**params, "stack": stack}, batch, measure=measure, remat=self.remat)[1].measure

        params = {**params, "stack": stack.recipe.calibrate(params["stack"], stack.declaration(), observe)}
        return State(
            params=params,
            optimizer=self._optimizer(0.0, 0.0).init(params),
            step=jnp.zeros((), jnp.int32),
            alive=jnp.ones((), bool),
        )

    def advance(self, hyper: Hyper, state: State, batches: Batch) -> tuple[State, Steps]:
        """Train on a chunk of batches, one step for each.

        Args:
            hyper: the run's numbers.
            state: where the run stands.
            batches: with a leading axis of steps; those past the end of the run change nothing.
        """
        return jax.lax.scan(lambda state, batch: self._step(hyper, state, batch), state, batches)

    def evaluate(self, params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a batch, what `stackjax.probe.standard` sees in each layer, and metrics of one's own.

        Raises:
            ValueError: a metric that is neither a number nor one number for each layer, or has a name that is taken.
        """
        loss, result = self.task.loss(params, batch, measure=sj.probe.standard)
        if self.metrics is None:
            return loss, result.measure
        own, depth = names.metrics_named(self.metrics)(self.task, params, batch), self.task.model.stack.depth
        for name, value in own.items():
            if name in {*result.measure, *RECORDED}:
                raise ValueError(f"metrics {self.metrics!r}: the name {name} is taken; choose another")
            if jnp.shape(value) not in ((), (depth,)):
                rule = f"a metric is a number or an array ({depth},) over the layers"
                raise ValueError(f"metrics {self.metrics!r}: {rule}; {name} has the shape {jnp.shape(value)}")
        return loss, {**result.measure, **own}

    def evaluate_all(self, state: State, batches: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`evaluate` over a leading axis of batches: each one's loss, and the mean of all else."""
        losses, seen = jax.lax.map(lambda batch: self.evaluate(state.params, batch), batches)
        return losses, jax.tree.map(lambda x: jnp.mean(x, 0), seen)

    def _step(self, hyper: Hyper, state: State, batch: Batch) -> tuple[State, Steps]:
        model, depth = self.task.model, self.task.model.stack.depth
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(hyper.seed), 1), state.step)
        gradients, squares, loss, statistics = self._gradients(state.params, batch, key)
        norm = optax.tree.norm(gradients)
        factor = jnp.minimum(1.0, hyper.clip_norm / norm)
        clipped = jax.tree.map(lambda g: g * factor, gradients)
        optimizer = self._optimizer(self.learning_rate(hyper, state.step), hyper.weight_decay)
        updates: Any
        updates, moments = optimizer.update(clipped, state.optimizer, state.params)
        updated: Any = optax.apply_updates(state.params, updates)
        declaration = model.declaration()
        params = model.update_statistics(updated, statistics)

        made = state.alive & (state.step < hyper.steps)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        stepped = State(params=params, optimizer=moments, step=state.step + 1, alive=state.alive)
        new = jax.tree.map(lambda new, old: jnp.where(made & finite, new, old), stepped, state)
        layers = {
            "grad_norm": sj.probe.layer_norms(gradients, declaration, depth),
            "update_ratio": sj.probe.update_ratio(updates, state.params, declaration, depth),
            "stream_gradient": jnp.sqrt(squares),
        }
        seen = Steps(made=made, loss=loss, gradient_norm=norm, layers=layers)
        return new.replace(alive=state.alive & (finite | ~made)), seen

    def _gradients(self, params: Params, batch: Batch, key: jax.Array) -> tuple[Params, jax.Array, jax.Array, Params]:
        """Gradients, |dLoss/dx_l|² (L + 1,), the loss without what layers add to it, and new statistics."""

        def objective(params: Params, taps: jax.Array, part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
            loss, result = self.task.loss(params, part, key=key, taps=taps, remat=self.remat)
            return loss + sum(result.loss.values()), (loss, result.state)

        def of_part(part: Batch, key: jax.Array) -> tuple[Params, jax.Array, jax.Array, Params]:
            gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)
            (gradients, squares), aux = gradient(params, jnp.zeros(self.task.model.stack.depth + 1), part, key)
            return gradients, squares, *aux

        n = self.accumulate
        if n == 1:
            return of_part(batch, key)
        # Every n-th row, so that on a mesh each device has its share of each part.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), batch)
        xs = (parts, jax.random.split(key, n))
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], xs))
        )
        total, _ = jax.lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, of_part(*x)), None), zeros, xs)
        gradients, squares, loss, statistics = jax.tree.map(lambda x: x / n, total)
        return gradients, squares / n, loss, statistics

    def _optimizer(self, learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        make = optimizer_named(self.optimizer)
        return make(self.task.model, learning_rate=learning_rate, weight_decay=weight_decay)
