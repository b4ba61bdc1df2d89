"""Stacks that grow while they train: the ways to spend a number of FLOPs, and the runs of one."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj

from ..lab import cost
from ..lab.corpus import Corpus
from ..lab.options import Finding, Sizes, at_least, one_or_more
from ..lab.train import Hyper, NextToken, State, Trainer, stack_hyper

How = Literal["copy", "identity"]
"""Layers are doubled by copies in the same order, or by one behind each that passes the stream on."""

SAVED = 0.4
"""Share of the compute that the papers' least claim saves."""


@dataclass(frozen=True, kw_only=True)
class Options(Finding, Sizes):
    """Compare stacks that grow while they train with one of full depth, for the same FLOPs.

    Exit status: 0 done, whatever the verdicts; 2 bad usage; 130 interrupted.
    """

    data: str | None = None
    """A file, folder or glob of text; None is Python's standard library."""
    steps: int = 200
    """Updates of the run at full depth."""
    seeds: int = 4
    """Runs of each, which differ in init and in the order of the data."""
    depth: int = 8
    """Layers at the end, a multiple of 4."""
    learning_rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    """Each strategy is judged at the one at which it ends lowest on average, on the windows that choose."""
    shares: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Parts of the steps behind which a stack grows."""
    chunk: int = 10
    """Steps between which a stack may grow: each part of a run is as many of them as come nearest."""
    first_seed: int = 0
    """The seeds are this one and those that follow."""
    eval_batches: int = 32
    """Batches of validation windows at the end: one half of them chooses the learning rate, the other half is
    reported."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "depth", "steps", "seeds", "chunk")
        at_least(0, self, "first_seed")
        at_least(2, self, "eval_batches")
        if self.depth % 4:
            raise ValueError(f"--depth must be a multiple of 4, for it is doubled twice; got {self.depth}")
        if not self.learning_rates or not all(0 < rate < float("inf") for rate in self.learning_rates):
            raise ValueError(f"--learning-rates must be positive, one or more; got {self.learning_rates}")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"--shares must be between 0 and 1, one or more; got {self.shares}")
        if self.steps < 10 * self.chunk:
            raise ValueError(f"--steps must be 10 --chunk or more; got {self.steps} and {self.chunk}")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to spend the FLOPs.

    Args:
        parts: (share of the steps, depth) in order; depths double.
        how: the way in which the stack is grown.
        budget: FLOPs, as a multiple of what the full depth has.
    """

    parts: tuple[tuple[float, int], ...]
    how: How = "copy"
    budget: float = 1.0


class Stable(Trainer):
    """Trainer whose learning rate warms up, stays, and falls to zero over the last fifth of the steps."""

    def learning_rate(self, hyper: Hyper, step: jax.Array) -> jax.Array:
        left = (hyper.steps - step) / (0.2 * hyper.steps)
        return hyper.learning_rate * jnp.minimum(jnp.minimum((step + 1) / jnp.maximum(hyper.warmup, 1), left), 1)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of a strategy's runs.

    Args:
        choice: loss on the validation windows by which a learning rate is chosen, {learning rate: (seeds,)}.
        loss: on the others, which are reported.
        steps: made, by depth.
        flops: of one run.
    """

    choice: dict[str, list[float]]
    loss: dict[str, list[float]]
    steps: dict[str, int]
    flops: float

    @property
    def best(self) -> str:
        """The learning rate with the lowest mean loss."""
        means = {rate: np.mean(losses) if np.isfinite(losses).all() else np.inf for rate, losses in self.choice.items()}
        return min(means, key=lambda rate: means[rate])

    @property
    def at_best(self) -> np.ndarray:
        """The losses there, (seeds,)."""
        return np.array(self.loss[self.best])


def strategies(options: Options) -> dict[str, Strategy]:
    """Each strategy by its name."""
    full, half = options.depth, options.depth // 2
    hows: tuple[How, ...] = ("copy", "identity")
    grown = {
        f"{how} at {share:.0%}": Strategy(parts=((share, half), (1 - share, full)), how=how)
        for how in hows
        for share in options.shares
    }
    twice = {f"{how} twice": Strategy(parts=((0.25, half // 2), (0.25, half), (0.5, full)), how=how) for how in hows}
    return {
        "full depth": Strategy(parts=((1.0, full),)),
        **grown,
        **twice,
        "half depth": Strategy(parts=((1.0, half),)),
        "full depth, more": Strategy(parts=((1.0, full),), budget=1 / (1 - SAVED)),
    }


def model_of(options: Options, depth: int, vocab: int, **attention: Any) -> sj.Model:
    """The decoder of a depth, pre-norm with rotary positions."""
    return sj.decoder(
        vocab=vocab,
        d_model=options.d_model,
        depth=depth,
        n_heads=options.n_heads,
        attention=sj.Attention(n_heads=options.n_heads, position=sj.position.Rotary(), **attention),
    )


def step_flops(options: Options, depth: int, vocab: int) -> int:
    """FLOPs of a training step at a depth."""
    task = NextToken(model=model_of(options, depth, vocab, backend="plain"))
    return cost.step_flops(task, jax.ShapeDtypeStruct((options.batch, options.context + 1), "int32"))


def chunks(strategy: Strategy, options: Options, flops: dict[int, int]) -> list[tuple[int, int]]:
    """(depth, chunks of steps) of each part, so that the run as a whole has the FLOPs of its budget, to half a chunk.

    Args:
        strategy: what is run.
        options: with the steps of the full depth.
        flops: of a step, by depth.
    """
    budget = strategy.budget * options.steps * flops[options.depth] / options.chunk
    total = budget / sum(share * flops[depth] for share, depth in strategy.parts)
    planned = [(depth, max(1, round(share * total))) for share, depth in strategy.parts[:-1]]
    left = budget - sum(n * flops[depth] for depth, n in planned)
    last = strategy.parts[-1][1]
    return [*planned, (last, max(1, round(left / flops[last])))]


def trained(strategy: Strategy, corpus: Corpus, options: Options, flops: dict[int, int]) -> Ended:
    """Run a strategy with each learning rate and seed."""
    parts = chunks(strategy, options, flops)
    steps = options.chunk * sum(n for _, n in parts)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    hyper = stack_hyper(
        [
            Hyper(learning_rate=rate, seed=seed, steps=steps, warmup=max(1, steps // 20))
            for rate in options.learning_rates
            for seed in seeds
        ]
    )
    sizes = {"batch": options.batch, "context": options.context}

    def batches(first: int) -> jax.Array:
        by_seed = [
            np.stack([corpus.batch(seed=seed, step=first + i, **sizes) for i in range(options.chunk)]) for seed in seeds
        ]
        return jnp.asarray(np.stack(by_seed * len(options.learning_rates)))

    step, state, trainer = 0, None, None
    for depth, n in parts:
        model = model_of(options, depth, corpus.vocab)
        if trainer is None or state is None:
            trainer = Stable(task=NextToken(model=model))
            state = jax.jit(jax.vmap(trainer.start))(hyper, batches(0)[:, 0])
        else:
            state = grown(trainer.task.model, state, strategy.how)
            trainer = Stable(task=NextToken(model=model))
        advance = jax.jit(jax.vmap(trainer.advance))
        for _ in range(n):
            state, _ = advance(hyper, state, batches(step))
            step += options.chunk
    assert trainer is not None and state is not None
    valid = jnp.asarray(corpus.valid_batches(options.eval_batches, **sizes))
    losses = np.asarray(jax.jit(jax.vmap(lambda state: trainer.evaluate_all(state, valid)[0]))(state), np.float64)
    losses = np.where(np.asarray(state.alive)[:, None], losses, np.inf)

    def by_rate(losses: np.ndarray) -> dict[str, list[float]]:
        rows = losses.mean(1).reshape(len(options.learning_rates), options.seeds)
        return {f"{rate:g}": row.tolist() for rate, row in zip(options.learning_rates, rows, strict=True)}

    return Ended(
        choice=by_rate(losses[:, 0::2]),
        loss=by_rate(losses[:, 1::2]),
        steps={str(depth): n * options.chunk for depth, n in parts},
        flops=float(sum(n * options.chunk * flops[depth] for depth, n in parts)),
    )


def grown(model: sj.Model, state: State, how: How) -> State:
    """Twice the layers in every lane; moments of copies are copied, those of new layers are zero.

    Args:
        model: that the state is of.
        state: with a leading axis of lanes.
        how: the way in which it is grown.
    """
    depth = model.stack.depth

    def one(params: Any, moments: Any) -> tuple[Any, Any]:
        if how == "copy":
            order = sj.surgery.stacked(depth, times=2)
            return sj.surgery.select(model, params, order, coefficients="new", state=moments)[1:]
        return sj.surgery.insert_identity(model, params, range(depth), coefficients="new", state=moments)[1:]

    n = len(state.alive)
    lanes = [one(*jax.tree.map(lambda a, i=i: a[i], (state.params, state.optimizer))) for i in range(n)]
    params, moments = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    return replace(state, params=params, optimizer=moments)
