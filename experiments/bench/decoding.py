"""Tokens a second of greedy decoding, beside `transformers` with the same weights."""

import importlib.util
import os
import statistics
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import decode
from stackjax.interop import hf

from .machine import clock
from .program import Row

QUICK: dict[str, Any] = {"d_model": 16, "n_heads": 4, "depth": 2, "vocab": 256, "n_tokens": 4, "rounds": 1}
USUAL: dict[str, Any] = {"d_model": 256, "n_heads": 4, "depth": 8, "vocab": 256, "n_tokens": 128, "rounds": 3}
"""Sizes of `SideBySide`."""

NEEDED = ("torch", "transformers", "safetensors")


def missing() -> list[str]:
    """Packages that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


class SideBySide:
    """A random GPT-2 in both libraries, on the device that each finds.

    Args:
        d_model: D.
        n_heads: H.
        depth: L.
        vocab: V.
        n_positions: tokens, prompt included.
        n_tokens: that are added to a prompt.
        rounds: to time, in turn; the median counts.
        dtype: of weights and stream.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        depth: int,
        vocab: int,
        n_positions: int,
        n_tokens: int,
        rounds: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.manual_seed(0)
        self.size: Row = {"d_model": d_model, "depth": depth, "n_tokens": n_tokens, "dtype": dtype}
        self.vocab, self.n_tokens, self.rounds, self.dtype = vocab, n_tokens, rounds, dtype
        sizes: dict[str, Any] = {"vocab_size": vocab, "n_positions": n_positions, "n_embd": d_model, "n_layer": depth}
        config = transformers.GPT2Config(**sizes, n_head=n_heads, initializer_range=0.1 * (256 / d_model) ** 0.5)
        theirs: Any = transformers.GPT2LMHeadModel(config).eval()
        theirs.generation_config.eos_token_id = None
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            self.model, params, _ = hf.load(folder)
        self.params = jax.device_put(jax.tree.map(lambda x: jnp.asarray(x, dtype), params))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.theirs = theirs.to(self.device, getattr(torch, dtype))

    def measure(self, *, batch: int, prompt: int) -> Row:
        """Tokens a second of greedy decoding, the prompt included in the time, compiling left out.

        Args:
            batch: B.
            prompt: tokens that are read.
        """
        import torch  # pyright: ignore[reportMissingImports]

        tokens = np.random.default_rng(0).integers(0, self.vocab, (batch, prompt))
        words = torch.tensor(tokens, device=self.device)
        prompts = jnp.asarray(tokens, jnp.int32)

        def ours() -> np.ndarray:
            found = decode.generate(self.model, self.params, prompts, n_tokens=self.n_tokens, dtype=self.dtype)
            return np.asarray(found.tokens)

        def reference() -> np.ndarray:
            n: dict[str, Any] = {"max_new_tokens": self.n_tokens, "min_new_tokens": self.n_tokens}
            mask = torch.ones_like(words)
            found = self.theirs.generate(words, attention_mask=mask, **n, do_sample=False, pad_token_id=0)
            return found.cpu().numpy()[:, prompt:]

        sides: dict[str, Callable[[], np.ndarray]] = {"stackjax": ours, "transformers": reference}
        first, second = (side() for side in sides.values())
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(self.rounds):
            for name, side in sides.items():
                began = clock()
                side()
                seconds[name].append(clock() - began)
        rates = {name: batch * self.n_tokens / statistics.median(times) for name, times in seconds.items()}
        same = float((first == second).mean())
        return {**self.size, "batch": batch, "prompt": prompt, "same_tokens": same, "tokens_per_second": rates}
