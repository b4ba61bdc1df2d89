"""The subject of an X-ray: a checkpoint, and a text as its tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.attention import Attention
from stackjax.embedding import Embedding
from stackjax.interop import hf
from stackjax.interop.hf.folder import locate
from stackjax.model import Model
from stackjax.seq2seq import EncoderDecoder
from stackjax.stack import Stack
from stackjax.sublayer import Params

from ..lab.data import text_file
from . import vocabulary as vocabularies
from .small import CONFIGS
from .vocabulary import BYTES, Vocabulary

MASKED = 0.15
"""Share of its tokens that a bidirectional model has to guess, as BERT was trained."""
SHORTEST = 5
"""Tokens of text in a window below which there is nothing to see."""


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


def of_folder(
    folder: str, dtype: Any, architectures: Mapping[str, hf.Architecture] = hf.ARCHITECTURES
) -> tuple[str, hf.Checkpoint, Vocabulary]:
    """A checkpoint's name, itself and its vocabulary.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        architectures: the descriptions, by model_type.

    Raises:
        ValueError: a folder that holds none, or one that is not understood.
    """
    path = locate(folder)
    checkpoint = hf.load(path, dtype=dtype, architectures=architectures)
    vocab = _embedding(checkpoint.model).vocab
    return path.resolve().name, checkpoint, vocabularies.of_folder(path, checkpoint.config["model_type"], vocab)


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
    loaded: tuple[str, hf.Checkpoint, Vocabulary], path: str | None, *, context: int, windows: int, dtype: Any
) -> Subject:
    """A checkpoint with a text to read, as windows spread evenly over it; short texts make short windows.

    Args:
        loaded: by `of_folder` or `of_random`.
        path: of the text; None is the manual of Python, which comes with Python.
        context: T.
        windows: B.
        dtype: of the stream.

    Raises:
        ValueError: a text or a vocabulary that is too small.
    """
    name, checkpoint, vocabulary = loaded
    embedding = _embedding(checkpoint.model)
    tokens = np.array(vocabulary.read(_manual() if path is None else _text(path)), np.int32)
    context = min(context, embedding.position.limit or context)
    length = min(context + 1 - _n_added(checkpoint.model, vocabulary), len(tokens))
    if len(tokens) < SHORTEST:
        raise ValueError(f"the text has {len(tokens)} tokens, which is too short to see anything; give a longer --text")
    if length < SHORTEST:
        raise ValueError(f"a window of {context} tokens is too short to see anything; give a larger --context")
    if max(tokens.max(), *vocabulary.before, *vocabulary.after, 0) >= embedding.vocab:
        raise ValueError(
            f"the checkpoint's vocabulary of {embedding.vocab} does not hold the text's {vocabulary.name}; put its "
            "tokenizer.json into the folder"
        )
    starts = np.linspace(0, len(tokens) - length, windows).astype(int)
    inputs, targets = _exercise(checkpoint, tokens[starts[:, None] + np.arange(length)], vocabulary)
    return Subject(
        name=name,
        model=checkpoint.model,
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


def _embedding(model: Model | EncoderDecoder) -> Embedding:
    return (model if isinstance(model, Model) else model.decoder).embedding


def _n_added(model: Model | EncoderDecoder, vocabulary: Vocabulary) -> int:
    """Tokens of a window that are not the text's: a text that goes on has a beginning, and no end."""
    goes_on = isinstance(model, Model) and is_causal(model.stack)
    return len(vocabulary.before) + (0 if goes_on else len(vocabulary.after))


def _exercise(
    checkpoint: hf.Checkpoint, text: np.ndarray, vocabulary: Vocabulary
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Inputs and targets as the model was trained on, from windows (B, N) of a text's tokens."""
    before, after = (np.tile(np.array(ids, np.int32), (len(text), 1)) for ids in (vocabulary.before, vocabulary.after))
    n_before, n_after = before.shape[1], after.shape[1]
    if isinstance(checkpoint.model, EncoderDecoder):
        start = checkpoint.config.get("decoder_start_token_id") or 0
        source, target = np.split(text, [text.shape[1] // 2], -1)
        source = np.concatenate((before, source, after), -1)
        return (source, np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start)), target
    if is_causal(checkpoint.model.stack):
        whole = np.concatenate((before, text), -1)
        return (whole[:, :-1],), np.where(np.arange(1, whole.shape[1]) < n_before, -1, whole[:, 1:])
    tokens = np.concatenate((before, text[:, :-1], after), -1)
    hidden = np.random.default_rng(0).random(tokens.shape) < MASKED
    hidden[:, n_before + 1] = True
    hidden[:, :n_before] = hidden[:, tokens.shape[1] - n_after :] = False
    return (np.where(hidden, vocabulary.mask, tokens),), np.where(hidden, tokens, -1)


def _text(path: str) -> str:
    try:
        return text_file.read(Path(path))
    except text_file.NotReadable as reason:
        raise ValueError(f"--text {path}: {reason}") from None


def _manual() -> str:
    """Text of Python's `help()` on the language."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError("this Python comes without its manual; give a --text") from None
    return "\n".join(topics.values())
