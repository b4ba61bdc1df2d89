"""The numbers: what each layer does, what the loss is without it, and what the stream already says after it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import loss, probe
from stackjax.model import Model
from stackjax.seq2seq import EncoderDecoder
from stackjax.skip import keep, skippable
from stackjax.sublayer import Params

from .subject import Subject

Keep = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Said:
    """The model's answers, with some of its layers.

    Args:
        loss: mean cross-entropy in nats.
        top: (B, T) the likeliest token.
        probability: (B, T) of it.
    """

    loss: float
    top: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that was measured.

    Args:
        measure: by side, {name: (L,)} of `probe.standard`.
        whole: what the model says.
        without: by side, the loss without each layer, (L,).
        lens: what the last stack's end reads from the stream after 0 .. L layers.
    """

    measure: dict[str, dict[str, np.ndarray]]
    whole: Said
    without: dict[str, np.ndarray]
    lens: list[Said]

    @property
    def settled(self) -> np.ndarray:
        """Share of the tokens whose likeliest is the final one, after 0 .. L layers."""
        return np.array([np.mean(guess.top == self.whole.top) for guess in self.lens])


def steps(subject: Subject) -> int:
    """Number of times that `read` reports progress."""
    depths = [stack.depth for stack in subject.stacks.values()]
    return 1 + sum(depths) + depths[-1] + 1


def read(subject: Subject, progress: Callable[[str], Any] = lambda doing: None) -> Reading:
    """Measure everything; `progress` hears of each step before it is taken.

    Raises:
        ValueError: weights that make a loss that is no number.
    """
    depths = {side: stack.depth for side, stack in subject.stacks.items()}
    inputs = tuple(map(jnp.asarray, subject.inputs))
    targets = jnp.asarray(subject.targets)

    @jax.jit
    def run(params: Params, numbers: Keep) -> tuple[jax.Array, ...]:
        logits, _ = _apply(subject, params, inputs, numbers)
        logits = logits.astype(jnp.float32)
        top = jnp.argmax(logits, -1)
        likely = jnp.exp(jnp.max(logits, -1) - jax.nn.logsumexp(logits, -1))
        return loss.cross_entropy(logits, targets), top, likely

    def say(**changed: jax.Array) -> Said:
        everything = {side: jnp.ones(depth) for side, depth in depths.items()}
        value, top, likely = run(subject.params, everything | changed)
        return Said(loss=float(value), top=np.asarray(top), probability=np.asarray(likely))

    progress("measuring the layers")
    measured = jax.jit(partial(_measure, subject))(subject.params, inputs)
    whole = say()
    if not np.isfinite(whole.loss):
        raise ValueError(f"the model's loss on this text is {whole.loss}; are the weights whole?")
    without = {side: np.zeros(depth) for side, depth in depths.items()}
    for side, depth in depths.items():
        for layer in range(depth):
            progress(f"without {f'{side} layer'.strip()} {layer}")
            without[side][layer] = say(**{side: jnp.ones(depth).at[layer].set(0)}).loss
    lens, (side, depth) = [], list(depths.items())[-1]
    for layer in range(depth + 1):
        progress(f"reading the stream after {layer} layers")
        lens.append(say(**{side: (jnp.arange(depth) < layer).astype(float)}))
    return Reading(measure=jax.tree.map(np.asarray, measured), whole=whole, without=without, lens=lens)


def _measure(subject: Subject, params: Params, inputs: tuple[Any, ...]) -> dict[str, dict[str, jax.Array]]:
    _, result = subject.model.apply(params, *inputs, dtype=subject.dtype, measure=probe.standard)
    return {"": result.measure} if isinstance(subject.model, Model) else result.measure


def _apply(subject: Subject, params: Params, inputs: tuple[Any, ...], numbers: Keep) -> tuple[jax.Array, Any]:
    """Logits with the layers whose numbers are 1."""
    coefficients = {side: keep(stack.coefficients(), numbers[side]) for side, stack in subject.stacks.items()}
    model, decoder = subject.model, subject.decoder
    shorter = replace(decoder, stack=skippable(decoder.stack))
    if isinstance(model, EncoderDecoder):
        both = replace(model, encoder=skippable(model.encoder), decoder=shorter)
        return both.apply(params, *inputs, coefficients=coefficients, dtype=subject.dtype)
    return shorter.apply(params, *inputs, coefficients=coefficients[""], dtype=subject.dtype)
