"""Profiles of a recipe at birth: what stands in each layer before the first step."""

from typing import Any

import jax
import numpy as np

import stackjax as sj
from stackjax import probe
from stackjax.recipe import Recipe

from ..lab.grid import Setting
from ..lab.store import Json

MEASURES = ("stream_rms", "stream_gradient")
"""Size of the stream behind each layer (L,), and gradient of the loss with respect to it before and behind (L + 1,)."""
VOCAB = 256


def profile(recipe: Recipe, setting: Setting, *, depth: int, seeds: int) -> Json:
    """Means over seeds of each of `MEASURES`, in four digits, on random bytes; None where one is not finite.

    Args:
        recipe: to be looked at.
        setting: sizes of the model and of its batch.
        depth: L.
        seeds: inits, each with bytes of its own.
    """
    model = setting.model(recipe, depth, VOCAB)

    @jax.jit
    def seen(key: jax.Array) -> dict[str, jax.Array]:
        shape = (setting.batch, setting.context + 1)
        windows = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, VOCAB)
        params = model.calibrate(model.init(jax.random.fold_in(key, 0)), windows[:, :-1])

        def loss(logits: jax.Array) -> jax.Array:
            return sj.loss.cross_entropy(logits, windows[:, 1:])

        looked = probe.look(model, params, windows[:, :-1], loss, jax.random.fold_in(key, 2), remat="layer")
        return {name: looked[name] for name in MEASURES}

    each = [jax.device_get(seen(jax.random.key(seed))) for seed in range(seeds)]
    return {name: [_short(value) for value in np.mean([one[name] for one in each], 0)] for name in MEASURES}


def _short(value: Any) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
