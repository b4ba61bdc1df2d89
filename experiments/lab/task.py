"""Tasks beside text that a sweep can train on: tokens in, tokens out, made by rule."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

import stackjax as sj
from stackjax.sublayer import Params

from .train import Batch


@dataclass(frozen=True, kw_only=True)
class Filled:
    """Predict a token wherever there is a target: cross-entropy in nats.

    Args:
        model: of tokens. Batches are {inputs, targets, index}, each (B, T) integers, perhaps with path (B, T, P) and
            whatever else the data says of them; a target of -1 is none.
        dtype: of the stream; parameters and their moments stay float32.
    """

    model: sj.Model
    dtype: Literal["float32", "bfloat16"] = "float32"

    def logits(self, params: Params, batch: Batch, **options: Any) -> tuple[jax.Array, sj.Result]:
        """The model's logits of a batch, (B, T, V), and the stack's result."""
        given = sj.SideInputs(position={name: batch[name] for name in ("index", "path") if name in batch})
        return self.model.apply(params, batch["inputs"], given, dtype=jnp.dtype(self.dtype), **options)

    def loss(self, params: Params, batch: Batch, **options: Any) -> tuple[jax.Array, sj.Result]:
        """The mean over all targets of the batch, and the stack's result."""
        logits, result = self.logits(params, batch, **options)
        return sj.loss.cross_entropy(logits, batch["targets"]), result

    def accuracy(self, params: Params, batch: Batch, where: jax.Array | bool = True) -> jax.Array:
        """Share of the targets that the most likely token meets, ().

        Args:
            params: the model's.
            batch: as for `loss`.
            where: (B, T) or what broadcasts to it: which targets count.
        """
        counted = (batch["targets"] >= 0) & where
        right = jnp.argmax(self.logits(params, batch)[0], -1) == batch["targets"]
        return jnp.sum(right & counted) / jnp.maximum(jnp.sum(counted), 1)
