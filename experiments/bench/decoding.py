"""Tokens a second of greedy decoding, beside `transformers` with the same weights."""

import importlib.util
import os
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import decode
from stackjax.interop import hf

from .machine import clock
from .program import Row

NEEDED = ("torch", "transformers", "safetensors")


def missing() -> list[str]:
    """Packages that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def measure(*, d_model: int, depth: int, batch: int, prompt: int, n_tokens: int, rounds: int) -> Row:
    """A random GPT-2 in both, prompt included in the time, compiling left out.

    Args:
        d_model: D.
        depth: L.
        batch: B.
        prompt: tokens that are read.
        n_tokens: that are added.
        rounds: to time, in turn; the median counts.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 256, "n_positions": prompt + n_tokens, "n_embd": d_model, "n_layer": depth}
    theirs: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, n_head=4, initializer_range=0.1)).eval()
    theirs.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, params, _ = hf.load(folder)
    tokens = np.random.default_rng(0).integers(0, 256, (batch, prompt))
    words, mask = torch.tensor(tokens), torch.ones((batch, prompt), dtype=torch.long)
    params, prompts = jax.device_put(params), jnp.asarray(tokens, jnp.int32)

    def ours() -> np.ndarray:
        return np.asarray(decode.generate(model, params, prompts, n_tokens=n_tokens).tokens)

    def reference() -> np.ndarray:
        limits = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0}
        return theirs.generate(words, attention_mask=mask, **limits).numpy()[:, prompt:]

    sides: dict[str, Callable[[], np.ndarray]] = {"stackjax": ours, "transformers": reference}
    first, second = (side() for side in sides.values())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began = clock()
            side()
            seconds[name].append(clock() - began)
    rates = {name: batch * n_tokens / statistics.median(times) for name, times in seconds.items()}
    shape = {"d_model": d_model, "depth": depth, "batch": batch, "prompt": prompt, "n_tokens": n_tokens}
    return {**shape, "same_tokens": bool((first == second).all()), "tokens_per_second": rates}
