"""Inputs of the checks: a few tokens, at positions that every encoding can read."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.abstract_model import AbstractModel
from stackjax.embedding import Embedding
from stackjax.model import Model
from stackjax.seq2seq import EncoderDecoder
from stackjax.sublayer import Positions, SideInputs
from stackjax.testing.compare import perturbed

N_BATCH, N_TOKENS = 2, 5

PATHS = ((), (0,), (0, 1), (1,), (1, 0, 2), (2,), (2, 0))
"""Paths of the first tokens, for encodings that read where a token stands in a tree."""

_STEPS = np.array([path + (-1,) * (4 - len(path)) for path in PATHS], np.int32)


def located(index: Any) -> Positions:
    """Positions with the paths that belong to these indices (..., T); -1 is empty."""
    index = jnp.asarray(index, jnp.int32)
    return {"index": index, "path": jnp.where(index[..., None] < 0, -1, jnp.asarray(_STEPS)[index])}


def in_order() -> SideInputs:
    """Side inputs of tokens 0 .. T-1 of every example, with paths."""
    return SideInputs(position=located(jnp.broadcast_to(jnp.arange(N_TOKENS), (N_BATCH, N_TOKENS))))


def normal(*shape: int, key: int = 0, dtype: Any = None) -> jax.Array:
    """Gaussian numbers, in the widest float dtype in use unless said."""
    numbers = np.random.default_rng(key).standard_normal(shape)
    return jax.device_put(numbers.astype(dtype or jnp.result_type(float)))


def drawn(model: AbstractModel, dtype: Any = jnp.float64) -> Any:
    """Parameters of a model, perturbed; drawn in x64 mode everywhere, so that its programs are compiled once."""
    with jax.enable_x64(True):
        return perturbed(model.init(jax.random.key(0), dtype))


def tokens(embedding: Embedding, n_tokens: int = N_TOKENS, *, key: int = 1) -> jax.Array:
    """Random tokens (B, T)."""
    drawn = np.random.default_rng(key).integers(embedding.vocab, size=(N_BATCH, n_tokens), dtype=np.int32)
    return jax.device_put(drawn)


def in_dtype(side_inputs: SideInputs | None, dtype: Any) -> SideInputs:
    """Side inputs, none if there are none, with the memory in the stream's dtype."""
    side_inputs = SideInputs() if side_inputs is None else side_inputs
    memory = side_inputs.memory
    return replace(side_inputs, memory=None if memory is None else memory.astype(dtype))


def arguments(
    model: AbstractModel, side_inputs: SideInputs | None, dtype: Any, n_tokens: int = N_TOKENS
) -> tuple[Any, ...]:
    """The arguments of `model.apply` between parameters and options: tokens, and side inputs last.

    Args:
        model: a `Model`, or an `EncoderDecoder`, whose source gets the same positions as its target.
        side_inputs: of the tokens; None for none.
        dtype: of the stream.
        n_tokens: T.

    Raises:
        ValueError: another kind of model.
    """
    side_inputs = in_dtype(side_inputs, dtype)
    if isinstance(model, Model):
        return tokens(model.embedding, n_tokens), side_inputs
    if isinstance(model, EncoderDecoder):
        source = tokens(model.source or model.decoder.embedding, n_tokens, key=4)
        both = replace(side_inputs, memory_position=side_inputs.position)
        return source, tokens(model.decoder.embedding, n_tokens), both
    raise ValueError(f"the checks run a Model or an EncoderDecoder; got {type(model).__name__}")


def named(model: AbstractModel) -> str:
    """The recipes and depths of a model's stacks, as messages call it."""
    return " and ".join(f"{stack.recipe!r} in {stack.depth} layers" for stack in model.stacks().values())
