"""Look into a checkpoint: what does each of its layers do to a text?

    python -m experiments.x_ray path/to/checkpoint --text story.txt --out story.html
    python -m experiments.x_ray --random gpt2

Writes one HTML page that needs no network.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stackjax.interop import hf

from ..lab import command_line, names, store
from ..lab.command_line import OK
from ..lab.options import at_least, one_or_more
from . import picture, reading, subject
from .subject import Subject

PROGRAM = "experiments.x_ray"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look into a checkpoint: what does each of its layers do to a text?

    Exit status: 0 the page is written, 2 bad usage, 130 interrupted.
    """

    folder: Annotated[str | None, tyro.conf.Positional] = None
    """A Hugging Face folder: config.json, safetensors, and a tokenizer unless the vocabulary is of bytes."""
    random: str | None = None
    """Instead of a folder, a small model at its init: gpt2, bert, llama, qwen3, gemma2, mixtral, gpt_oss or t5."""
    architectures: str | None = None
    """Architectures of your own beside those that are built in: `module:NAME` of {model_type: hf.Architecture}."""
    text: str | None = None
    """A text file to read; None is the manual of Python, which comes with Python."""
    context: int = 128
    """Tokens of a window."""
    windows: int = 4
    """Number of windows, spread evenly over the text."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights and the stream."""
    seed: int = 0
    """Seed of the random weights."""
    out: str | None = None
    """The page; None is runs/x_ray/NAME.html."""

    def __post_init__(self):
        one_or_more(self, "context", "windows")
        at_least(0, self, "seed")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.command(PROGRAM, prepared, look, arguments)


def prepared(words: Sequence[str], line: str) -> tuple[Subject, Path, str]:
    """The model and text to look into, the path of the page, and the command that asks for it.

    Raises:
        ValueError: what cannot be.
    """
    options = command_line.parse(words, Options, PROGRAM)
    if bool(options.folder) == bool(options.random):
        raise ValueError("give a folder, or --random and an architecture")
    if options.text is not None and not Path(options.text).is_file():
        raise ValueError(f"--text {options.text}: no such file")
    added = {} if options.architectures is None else names.architectures_named(options.architectures)
    dtype = jnp.dtype(options.dtype)
    if options.out:
        command_line.check_file(options.out)
    with Console(stderr=True).status("loading"):
        if options.folder:
            loaded = subject.of_folder(options.folder, dtype, {**hf.ARCHITECTURES, **added})
        else:
            loaded = subject.of_random(str(options.random), options.seed, dtype)
        seen = subject.prepare(loaded, options.text, context=options.context, windows=options.windows, dtype=dtype)
    out = Path(options.out or f"runs/x_ray/{options.random or loaded[0]}.html")
    command_line.check_file(out)
    command_line.make_folder(out.parent)
    return seen, out, line


def look(made: tuple[Subject, Path, str]) -> int:
    """Measure, and write the page; returns the exit status."""
    seen, out, line = made
    columns = TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=reading.steps(seen) + 1)
        try:
            numbers = reading.read(seen, lambda doing: bar.update(task, advance=1, description=doing))
        except ValueError as error:
            bar.stop()
            return command_line.refuse(PROGRAM, error)
        bar.update(task, advance=1, description="drawing")
        store.write(out, picture.html(seen, numbers, line))
        bar.update(task, description="done")
    print(out)
    return OK


if __name__ == "__main__":
    sys.exit(main())
