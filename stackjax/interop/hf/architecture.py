"""The parts of an architecture's description."""

from collections.abc import Callable
from dataclasses import dataclass

from stackjax.interop.hf.config import Config
from stackjax.interop.hf.inert import Inert
from stackjax.interop.hf.mapping import Table
from stackjax.model import Model
from stackjax.seq2seq import EncoderDecoder


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture of checkpoints, in stackjax's terms.

    Args:
        describe: config -> the model, and the table of where its parameters are.
        classes: of the `transformers` models whose checkpoints these are.
        renames: (pattern, replacement) pairs that bring older names of tensors to the present ones.
        aliases: (name, canonical name) of tensors that are the same parameter, and may both be in a file.
        zeros: tensors that a file may leave out, and that are then zero.
        inert: options and tensors that change nothing.
    """

    describe: Callable[[Config], tuple[Model | EncoderDecoder, Table]]
    classes: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    zeros: tuple[str, ...] = ()
    inert: Inert = Inert()
