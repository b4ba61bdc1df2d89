"""Tasks made by rule, with the face of a `Corpus`, so that a sweep can train on them as on text."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

import stackjax as sj
from stackjax.position import Position

from . import task_copy, task_hops, task_tree
from .corpus import Origin, entropies
from .train import Batch

VALID_STEP = 2**32
"""Step of the first validation batch; a training run never gets there."""


@dataclass(frozen=True)
class Made:
    """Examples that a rule makes, as many as anyone asks for.

    Args:
        name: what is asked, for people.
        vocab: V.
        side: whether the model reads in both directions ("encoder") or one.
        position: the encoding that the task needs, for so many tokens.
        examples: `examples(n, seed=, step=, context=)` makes n of them, a pure function of seed and step.
        context: the number of tokens, if the task has its own; None takes any.
    """

    name: str
    vocab: int
    side: Literal["encoder", "decoder"]
    position: Callable[[int], Position]
    examples: Callable[..., Batch]
    context: int | None = None

    @property
    def origin(self) -> Origin:
        """Lines on what was read: none."""
        return Origin()

    @property
    def size(self) -> str:
        """Size of the data, in words."""
        return "made by rule, without end"

    def check(self, *, batch: int, context: int) -> None:
        """Refuse a number of tokens that the task cannot have.

        Raises:
            ValueError: another one than its own, or too few.
        """
        if self.context is not None and context != self.context:
            raise ValueError(f"{self.name}: an example has {self.context} tokens; give --context {self.context}")
        if context < 4:
            raise ValueError(f"{self.name}: --context must be 4 or more; got {context}")

    def batch(self, *, seed: int, step: int, batch: int, context: int) -> Batch:
        """B training examples, a pure function of (seed, step)."""
        return self.examples(batch, seed=seed, step=step, context=context)

    def valid_batches(self, n: int, *, batch: int, context: int) -> Batch:
        """n batches of B examples, the same for every run, with a leading axis."""
        made = [self.examples(batch, seed=0, step=VALID_STEP + i, context=context) for i in range(n)]
        return {name: np.stack([part[name] for part in made]) for name in made[0]}

    @cached_property
    def sha256(self) -> str:
        """Digest of a few examples: what they are stands for how they are made."""
        digest = hashlib.sha256(f"{self.name} {self.vocab}".encode())
        for array in self._few.values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def unigram(self) -> float:
        """Entropy of the targets in nats: the loss of guessing."""
        targets = self._few["targets"]
        return entropies(targets[targets >= 0], self.vocab)[0]

    @cached_property
    def _few(self) -> Mapping[str, np.ndarray]:
        return self.examples(256, seed=0, step=0, context=self.context or 32)

    def facts(self) -> dict[str, Any]:
        """All of it but the examples, as plain JSON."""
        guess = {"unigram": self.unigram, "bigram": None}
        return {"name": self.name, "size": self.size, "vocab": self.vocab, "sha256": self.sha256, **guess}


def _own_context(examples: Callable[..., Batch]) -> Callable[..., Batch]:
    """Examples of a task whose number of tokens is its own."""
    return lambda n, *, seed, step, context: examples(n, seed=seed, step=step)


def _tree_position(context: int) -> Position:
    return sj.position.Both(first=sj.position.Rotary(), second=sj.position.TreeBias())


TASKS: Mapping[str, Made] = {
    "hops": Made(
        name="pointer chasing: 1, 2, 4 and 8 hops over 16 places",
        vocab=task_hops.PLACES + task_hops.MOST_HOPS,
        side="encoder",
        position=lambda context: sj.position.Learned(n_positions=context),
        examples=_own_context(task_hops.examples),
        context=task_hops.PLACES + 1,
    ),
    "three_hops": Made(
        name="pointer chasing: 3 hops over 16 places",
        vocab=task_hops.PLACES + task_hops.MOST_HOPS,
        side="encoder",
        position=lambda context: sj.position.Learned(n_positions=context),
        examples=_own_context(functools.partial(task_hops.examples, hops=(3,))),
        context=task_hops.PLACES + 1,
    ),
    "tree": Made(
        name="the grandparent's colour in a random tree",
        vocab=task_tree.VOCAB,
        side="encoder",
        position=_tree_position,
        examples=_own_context(task_tree.examples),
        context=task_tree.TOKENS,
    ),
    "copy": Made(
        name="tokens that repeat with an unknown period",
        vocab=task_copy.VOCAB,
        side="decoder",
        position=lambda context: sj.position.Rotary(),
        examples=task_copy.examples,
    ),
}
"""Tasks by the name that the command line has for them."""
