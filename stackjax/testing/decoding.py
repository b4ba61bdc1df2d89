"""Decoding: a token at a time, with a cache, as if all had been read at once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import cache, decode
from stackjax.model import Model
from stackjax.seq2seq import EncoderDecoder
from stackjax.sublayer import SideInputs
from stackjax.testing.compare import promise
from stackjax.testing.inputs import PATHS, arguments, drawn, located, named

LENGTHS = (4, 2)
"""Lengths of the two prompts."""


def check_decoding(
    model: Model | EncoderDecoder,
    side_inputs: SideInputs | None = None,
    *,
    paths: bool = False,
    left: bool = True,
    dtype: Any = jnp.float64,
    tolerance: float = 1e-10,
    subject: str | None = None,
) -> None:
    """Ragged prompts, then a token at a time: logits equal those of the full forward pass.

    Args:
        model: a decoder, or an encoder-decoder.
        side_inputs: the memory that a decoder with cross-attention reads; None for none. An encoder-decoder makes its
            own.
        paths: whether tokens have paths beside their index.
        left: whether the prompts are padded on the left.
        dtype: of parameters, stream and cache.
        tolerance: on the difference, relative to the largest logit.
        subject: what messages call it.

    Raises:
        AssertionError: logits that differ, or that cannot be had.
    """
    n_tokens, n_read = len(PATHS), max(LENGTHS)
    lengths = np.array(LENGTHS)[:, None]
    columns = np.arange(n_read) - (n_read - lengths if left else 0)
    decoder = model.decoder if isinstance(model, EncoderDecoder) else model
    apply: Callable[..., Any] = model.apply

    def at(index: Any) -> dict[str, jax.Array]:
        where = located(index)
        return where if paths else {"index": where["index"]}

    with jax.enable_x64(dtype == jnp.float64), promise(subject or named(model), "decoding equals the full forward"):
        params = drawn(model, dtype)
        prompt = at(np.where((columns >= 0) & (columns < lengths), columns, -1))
        steps = at((np.array(LENGTHS) + np.arange(n_tokens - n_read)[:, None])[..., None])
        *inputs, read = arguments(model, side_inputs, dtype, n_tokens)
        read = replace(read, position=at(jnp.arange(n_tokens)) if paths else None)

        @jax.jit
        def run(params: Any) -> tuple[jax.Array, jax.Array]:
            expected, _ = apply(params, *inputs, read, dtype=dtype)
            decoder_params, memory = params, read.memory
            if isinstance(model, EncoderDecoder):
                decoder_params, (memory, _) = params["decoder"], model.encode(params, inputs[0], dtype=dtype)
            begin = SideInputs(position=prompt, memory=memory)
            empty = cache.empty(decoder.stack, decoder_params["stack"], begin, n_tokens, dtype=dtype)

            def extend(held: Any, where: Any) -> tuple[Any, jax.Array]:
                now = jnp.take_along_axis(inputs[-1], where["index"], 1, mode="clip")
                x, held = decode.extend(decoder, decoder_params, now, SideInputs(position=where), held, dtype=dtype)
                wanted = jnp.take_along_axis(expected, where["index"][..., None], 1, mode="clip")
                off = (decoder.logits(decoder_params, x) - wanted) / jnp.max(jnp.abs(expected))
                return held, jnp.where(where["index"][..., None] >= 0, off, 0)

            held, first = extend(empty, prompt)
            return first, jax.lax.scan(extend, held, steps)[1]

        for part, off in zip(("the prompt", "the tokens behind it"), run(params), strict=True):
            worst = float(np.abs(off).max())
            if not worst < tolerance:
                raise AssertionError(
                    f"the logits of {part} differ by {worst:.1e} of the largest; allowed are {tolerance:.0e}"
                )
