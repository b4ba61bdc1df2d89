"""Losses of trained models without some of their layers, and the angles between all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj

from ..lab.corpus import Corpus
from ..lab.grid import Setting

USED = 0.01
"""Nats: a layer whose absence costs less is hardly used."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Losses and distances of one recipe, or one cell.

    Args:
        loss: with all layers, (seeds,).
        cost: by how much the loss rises without each layer, (seeds, L).
        together: by how much it rises without the k least costly layers, for k from 0 to L, (seeds, L + 1): which are
            the least costly is found on one half of the windows, and this is measured on the other.
        idle: layers that alone cost less than `USED` on the first half, (seeds,).
        distance: mean angle between x_l and x_m as a share of pi, (seeds, L + 1, L + 1).
    """

    loss: np.ndarray
    cost: np.ndarray
    together: np.ndarray
    idle: np.ndarray
    distance: np.ndarray

    @property
    def deeper_half(self) -> np.ndarray:
        """Mean cost of the layers of the deeper half, (seeds,)."""
        return self.cost[:, self.cost.shape[1] // 2 :].mean(1)

    @property
    def idle_together(self) -> np.ndarray:
        """Rise without all layers that alone cost less than `USED`, (seeds,)."""
        return self.together[np.arange(len(self.idle)), self.idle]

    def turns(self) -> np.ndarray:
        """Angle between each layer's input and output, (seeds, L)."""
        return np.diagonal(self.distance, 1, 1, 2)


def drop(model: sj.Model, params: Sequence[Any], corpus: Corpus, setting: Setting, eval_batches: int) -> Dropped:
    """Leave out layers, one by one and together, and measure the angles, for each set of parameters.

    Args:
        eval_batches: number of batches, two or more: one half says which layers are the least costly, the other half
            what they cost together.
    """
    batches = jnp.asarray(corpus.valid_batches(eval_batches, batch=setting.batch, context=setting.context))
    half = eval_batches // 2
    skipping = replace(model, stack=sj.skip.skippable(model.stack))

    def loss(logits: jax.Array, windows: jax.Array) -> jax.Array:
        return sj.loss.cross_entropy(logits, windows[:, 1:])

    def one(params: Any, windows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tokens = windows[:, :-1]
        whole, without = sj.skip.losses(model, params, tokens, lambda logits: loss(logits, windows))
        last = model.apply(params, tokens, measure=sj.probe.last_token)[1].measure
        return whole, without, sj.probe.angular_distance(**last)

    def with_layers(params: Any, kept: jax.Array, windows: jax.Array) -> jax.Array:
        coefficients = sj.skip.keep(model.stack.coefficients(), kept)
        return loss(skipping.apply(params, windows[:, :-1], coefficients=coefficients)[0], windows)

    @jax.jit
    def each_alone(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.lax.map(lambda windows: one(params, windows), batches)

    @jax.jit
    def in_order(params: Any, masks: jax.Array) -> jax.Array:
        def of_mask(kept: jax.Array) -> jax.Array:
            return jax.lax.map(lambda windows: with_layers(params, kept, windows), batches[half:]).mean()

        return jax.lax.map(of_mask, masks)

    rows = []
    for seed in params:
        whole, without, distance = (np.asarray(x, np.float64) for x in each_alone(seed))
        costs = (without - whole[:, None])[:half].mean(0)
        ranks = np.argsort(np.argsort(costs))
        masks = ranks >= np.arange(len(costs) + 1)[:, None]
        losses = np.asarray(in_order(seed, jnp.asarray(masks, jnp.float32)), np.float64)
        rows.append(
            {
                "loss": whole.mean(),
                "cost": (without - whole[:, None]).mean(0),
                "together": losses - losses[0],
                "idle": np.sum(costs < USED),
                "distance": distance.mean(0),
            }
        )
    return Dropped(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
