"""Look into a checkpoint: what does each of its layers do to a text?

    python -m experiments.x_ray path/to/checkpoint --text story.txt --out story.html
    python -m experiments.x_ray --random gpt2

Writes one HTML page that needs no network.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.lab import command_line, store
from experiments.lab.command_line import OK, USAGE
from experiments.x_ray import picture, reading, subject
from experiments.x_ray.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look into a checkpoint: what does each of its layers do to a text?

    Exit status: 0 the page is written, 2 bad usage.
    """

    folder: Annotated[str | None, tyro.conf.Positional] = None
    """A Hugging Face folder: config.json, safetensors, and tokenizer.json if it is not to read bytes."""
    random: str | None = None
    """Instead of a folder, a small model at its init: gpt2, bert, llama, qwen3, gemma2, mixtral, gpt_oss or t5."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=True)
    try:
        options = command_line.parse(arguments, Options, "experiments.x_ray")
        with console.status("loading"):
            seen, out = _prepare(options)
        path = _look(seen, out, "python -m experiments.x_ray " + shlex.join(arguments), console)
    except (ValueError, OSError) as error:
        print(f"x_ray: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    print(path)
    return OK


def _prepare(options: Options) -> tuple[Subject, Path]:
    """The model and text to look into, and the path of the page."""
    if (options.folder is None) == (options.random is None):
        raise ValueError("give a folder, or --random and an architecture")
    if min(options.context, options.windows) < 1:
        raise ValueError("--context and --windows are at least 1")
    dtype = jnp.dtype(options.dtype)
    if options.folder is not None:
        found = subject.of_folder(options.folder, dtype)
    else:
        found = subject.of_random(str(options.random), options.seed, dtype)
    out = Path(options.out or f"runs/x_ray/{options.random or found[0]}.html")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    return subject.prepare(found, options.text, context=options.context, windows=options.windows, dtype=dtype), out


def _look(seen: Subject, out: Path, command: str, console: Console) -> Path:
    """Measure, and write the page."""
    columns = TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=reading.steps(seen) + 1)
        numbers = reading.read(seen, lambda doing: bar.update(task, advance=1, description=doing))
        bar.update(task, advance=1, description="drawing")
        store.write(out, picture.html(seen, numbers, command))
        bar.update(task, description="done")
    return out


if __name__ == "__main__":
    sys.exit(main())
