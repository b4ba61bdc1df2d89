"""The subject of an X-ray: a checkpoint, and a text as its tokens."""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.x_ray.small import CONFIGS
from stackjax.attention import Attention
from stackjax.interop import hf
from stackjax.model import Model
from stackjax.seq2seq import EncoderDecoder
from stackjax.stack import Stack
from stackjax.sublayer import Params

MASKED = 0.15
"""Share of its tokens that a bidirectional model has to guess, as BERT was trained."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A vocabulary: the way from text to tokens, and back.

    Args:
        name: for people.
        read: text -> token ids.
        spell: a token id -> what it stands for.
        mask: the token that hides another.
    """

    name: str
    read: Callable[[str], list[int]]
    spell: Callable[[int], str]
    mask: int = 0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, its weights and the text that it reads.

    Args:
        name: for people.
        model: the description.
        params: its weights.
        text: what is read, for people.
        vocabulary: of the text.
        inputs: (B, T) tokens for each argument of `model.apply`: of a model one, of an encoder-decoder source and
            target.
        targets: (B, T) what the logits are to say; -1 where nothing is asked.
        dtype: of the stream.
    """

    name: str
    model: Model | EncoderDecoder
    params: Params
    text: str
    vocabulary: Vocabulary
    inputs: tuple[np.ndarray, ...]
    targets: np.ndarray
    dtype: Any = jnp.float32

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks by side, the one that makes the logits last; the side of a lone stack is the empty text."""
        if isinstance(self.model, Model):
            return {"": self.model.stack}
        return {"encoder": self.model.encoder, "decoder": self.model.decoder.stack}

    @property
    def decoder(self) -> Model:
        """The model that makes the logits."""
        return self.model if isinstance(self.model, Model) else self.model.decoder

    @property
    def task(self) -> str:
        """The question that the loss asks, in words."""
        if isinstance(self.model, EncoderDecoder):
            return "the encoder reads the first half of each window, the decoder guesses each next token of the second"
        if is_causal(self.model.stack):
            return "each next token is guessed"
        return f"{MASKED:.0%} of the tokens are hidden and guessed"


def of_folder(folder: str, dtype: Any) -> tuple[str, hf.Checkpoint, Vocabulary]:
    """A checkpoint's name, itself and its vocabulary.

    Raises:
        ValueError: a folder that holds none, or one that is not understood.
    """
    checkpoint = hf.load(folder, dtype=dtype)
    return Path(folder).resolve().name, checkpoint, _vocabulary(Path(folder))


def of_random(kind: str, seed: int, dtype: Any) -> tuple[str, hf.Checkpoint, Vocabulary]:
    """A small model at its init, with its name and vocabulary.

    Raises:
        ValueError: an architecture that there is no small one of.
    """
    if kind not in CONFIGS:
        raise ValueError(f"--random knows {', '.join(CONFIGS)}; got {kind!r}")
    model = hf.describe(CONFIGS[kind])
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(seed), dtype)
    return f"{kind}, random", hf.Checkpoint(model, params, CONFIGS[kind]), BYTES


def prepare(
    found: tuple[str, hf.Checkpoint, Vocabulary], path: str | None, *, context: int, windows: int, dtype: Any
) -> Subject:
    """A checkpoint with a text to read, as windows spread evenly over it; short texts make short windows.

    Args:
        found: by `of_folder` or `of_random`.
        path: of the text; None is the manual of Python, which comes with Python.
        context: T.
        windows: B.
        dtype: of the stream.

    Raises:
        ValueError: a text or a vocabulary that is too small.
    """
    name, checkpoint, vocabulary = found
    model, text = checkpoint.model, _manual() if path is None else Path(path).read_text(errors="replace")
    two_sided = isinstance(model, EncoderDecoder)
    embedding = model.decoder.embedding if two_sided else model.embedding
    tokens = np.array(vocabulary.read(text), np.int32)
    context = min(context, embedding.position.limit or context, len(tokens) - 1)
    if context < 4:
        raise ValueError(f"the text has {len(tokens)} tokens, which is too short to see anything; give a longer --text")
    if tokens.max() >= embedding.vocab:
        raise ValueError(
            f"the checkpoint's vocabulary of {embedding.vocab} does not hold the text's {vocabulary.name}; put its "
            "tokenizer.json into the folder"
        )
    starts = np.linspace(0, len(tokens) - context - 1, windows).astype(int)
    whole = tokens[starts[:, None] + np.arange(context + 1)]
    inputs, targets = _exercise(checkpoint, whole, vocabulary.mask)
    return Subject(
        name=name,
        model=model,
        params=checkpoint.params,
        text="Python's manual" if path is None else Path(path).name,
        vocabulary=vocabulary,
        inputs=inputs,
        targets=targets,
        dtype=dtype,
    )


def is_causal(stack: Stack) -> bool:
    """True if no token sees a later one."""
    sublayers = (sublayer for segment in stack.segments for layer in segment.layers for sublayer in layer.sublayers)
    return all(sublayer.causal for sublayer in sublayers if isinstance(sublayer, Attention))


def _exercise(checkpoint: hf.Checkpoint, whole: np.ndarray, mask: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Inputs and targets from windows of (B, T + 1) tokens."""
    if isinstance(checkpoint.model, EncoderDecoder):
        start = checkpoint.config.get("decoder_start_token_id") or 0
        source, target = np.split(whole, [whole.shape[1] // 2], -1)
        return (source, np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start)), target
    if is_causal(checkpoint.model.stack):
        return (whole[:, :-1],), whole[:, 1:]
    tokens = whole[:, :-1]
    hidden = np.random.default_rng(0).random(tokens.shape) < MASKED
    hidden[:, 1] = True
    return (np.where(hidden, mask, tokens),), np.where(hidden, tokens, -1)


def _manual() -> str:
    """Text of Python's `help()` on the language."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError("this Python comes without its manual; give a --text") from None
    return "\n".join(topics.values())


def _spell_byte(token: int) -> str:
    return chr(token) if 32 < token < 127 else {10: "↵", 32: "␣"}.get(token, f"x{token:02x}")


BYTES = Vocabulary(name="UTF-8 bytes", read=lambda text: list(text.encode()), spell=_spell_byte)


def _vocabulary(folder: Path) -> Vocabulary:
    """The folder's tokenizer.json, or bytes where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return BYTES
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        raise ValueError(f"to read {path}, install the package tokenizers") from None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error

    def spell(token: int) -> str:
        return tokenizer.decode([token], skip_special_tokens=False).replace(" ", "␣").replace("\n", "↵")

    hidden = next(filter(None, map(tokenizer.token_to_id, ("[MASK]", "<mask>"))), 0)
    kind = json.loads(path.read_text())["model"]["type"]
    return Vocabulary(
        name=f"{kind} tokens",
        read=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        spell=spell,
        mask=hidden,
    )
