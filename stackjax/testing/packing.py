"""Padding and packing in a whole stack: packed documents do not meet, and no loss counts what stands at padding."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.model import Model
from stackjax.sublayer import SideInputs
from stackjax.testing.compare import check_equal, promise
from stackjax.testing.inputs import N_BATCH, N_TOKENS, drawn, in_dtype, named, normal

LENGTHS = (3, 2)
"""Lengths of the documents that are packed."""

N_READ = 2
"""Tokens of the memory that each of them reads."""


def check_documents(model: Model, *, subject: str | None = None) -> None:
    """Two documents in one row, told apart by `segment`, have the outputs that each has by itself.

    Args:
        model: any. Where it reads a memory, that holds two documents, too.
        subject: what messages call it.

    Raises:
        AssertionError: outputs that differ.
    """
    with jax.enable_x64(True), promise(subject or named(model), "packed documents do not see each other"):
        params, d_model = drawn(model)["stack"], model.stack.d_model
        layers = [layer for segment in model.stack.segments for layer in segment.layers]
        reads = any(sublayer.reads_memory for layer in layers for sublayer in layer.sublayers)
        run = jax.jit(lambda x, side_inputs: model.stack.apply(params, x, side_inputs)[0])

        def placed(lengths: tuple[int, ...]) -> dict[str, jax.Array]:
            """Positions of documents of these lengths in one row."""
            index = jnp.concatenate([jnp.arange(length) for length in lengths])
            segment = jnp.repeat(jnp.arange(len(lengths)), jnp.array(lengths))
            return {"index": index[None], "segment": segment[None]}

        def beside(lengths: tuple[int, ...], memory: jax.Array) -> SideInputs:
            side_inputs = SideInputs(position=placed(lengths))
            if not reads:
                return side_inputs
            return replace(side_inputs, memory=memory, memory_position=placed((N_READ,) * len(lengths)))

        texts = [normal(1, length, d_model, key=length) for length in LENGTHS]
        memories = [normal(1, N_READ, d_model, key=10 + length) for length in LENGTHS]
        apart = [
            run(text, beside((length,), memory)) for text, length, memory in zip(texts, LENGTHS, memories, strict=True)
        ]
        packed = run(jnp.concatenate(texts, 1), beside(LENGTHS, jnp.concatenate(memories, 1)))
        check_equal({"the output": packed}, {"the output": jnp.concatenate(apart, 1)}, 1e-9)


def check_losses(model: Model, side_inputs: SideInputs | None = None, *, subject: str | None = None) -> None:
    """The stack's losses are the same, whatever stands at padded tokens, those of index -1.

    Args:
        model: any; one without losses passes.
        side_inputs: the memory that it reads; None for none.
        subject: what messages call it.

    Raises:
        AssertionError: a loss that changes.
    """
    with jax.enable_x64(True), promise(subject or named(model), "padding does not count in losses"):
        params, d_model = drawn(model)["stack"], model.stack.d_model
        index = jnp.array([range(N_TOKENS), [-1, -1, *range(N_TOKENS - 2)]])
        padded = replace(in_dtype(side_inputs, jnp.float64), position={"index": index})
        run = jax.jit(lambda x: model.stack.apply(params, x, padded)[1].loss)
        x, other = (normal(N_BATCH, N_TOKENS, d_model, key=key) for key in (1, 2))
        before: dict[str, Any] = run(x)
        check_equal(run(jnp.where(index[..., None] < 0, other, x)), before, 1e-9)
