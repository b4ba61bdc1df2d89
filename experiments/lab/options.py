"""Options that several experiments share, and what becomes of their words."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import tyro

from stackjax.recipe import Recipe

from . import data, names
from .corpus import Corpus
from .made import TASKS, Made

Recipes = Annotated[
    Mapping[str, Recipe],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME ...]",
        instance_from_str=lambda words: names.recipes(*words),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=list,
    ),
]
"""Recipes by the names that stand for them in tables and files: on a command line, words; in Python, any names."""

MeshAxes = Annotated[
    str | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[AXIS=SIZE ...]",
        instance_from_str=" ".join,
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: (value or "").split(),
    ),
]
"""Axes of a mesh of devices with their sizes, such as "data=4 model=2", see `names.mesh_sizes`; None for no mesh."""


LARGEST = 2**31 - 1
"""The largest number that is counted to."""


def one_or_more(options: Any, *fields: str) -> None:
    """Check options that count something, each a number or a tuple of them.

    Raises:
        ValueError: one of them is below 1, or beyond `LARGEST`.
    """
    at_least(1, options, *fields)


def at_least(least: int, options: Any, *fields: str) -> None:
    """Refuse a number below its least.

    Raises:
        ValueError: one of them is below it, or beyond `LARGEST`.
    """
    for name in fields:
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number <= LARGEST:
                rule = f"{least} or more" if number < least else f"{LARGEST} or less"
                raise ValueError(f"--{name.replace('_', '-')} must be {rule}; got {number}")


def some(options: Any, *fields: str) -> None:
    """Check options that are lists.

    Raises:
        ValueError: one of them is empty.
    """
    for name in fields:
        if not getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} needs at least one value")


def positive(options: Any, *fields: str) -> None:
    """Check options that are finite numbers above zero.

    Raises:
        ValueError: one of them is not.
    """
    for name in fields:
        if not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be positive; got {getattr(options, name):g}")


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON: a recipe by its name, all else as it was said."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: list(value) if isinstance(value, Mapping) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a small model and of its batches."""

    d_model: int = 64
    """Width D."""
    n_heads: int = 4
    """Attention heads H, a divisor of the width."""
    context: int = 32
    """Tokens T of a window that are predicted."""
    batch: int = 8
    """Windows B in a batch."""

    def __post_init__(self):
        one_or_more(self, "d_model", "n_heads", "context", "batch")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Options of every experiment that writes a finding."""

    out: str
    """Folder of the result: finding.md, result.json and figures."""
    quick: bool = False
    """A small version of everything, to see that it runs; its numbers mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Training(Finding, Sizes):
    """Options of an experiment that trains small models and writes a finding."""

    FEWEST_STEPS: ClassVar[int] = 1

    data: str | None = None
    """A file, folder or glob of text; None is Python's standard library."""
    steps: int = 300
    """Updates of a run."""
    seeds: int = 3
    """Runs, which differ in init and in the order of the data."""
    learning_rate: float = 3e-3
    """Learning rate at its peak."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "seeds")
        positive(self, "learning_rate")
        at_least(self.FEWEST_STEPS, self, "steps")


@dataclass(frozen=True, kw_only=True)
class Text:
    """Options of the text to train on."""

    data: str | None = None
    """A file, folder or glob of text, of records (.jsonl, .ndjson, .json), or of .bin token files; all but these may
    be packed (.gz). None is Python's standard library."""
    text_field: str = "text"
    """Name of the field that holds a record's text."""
    token_dtype: Literal["uint8", "uint16", "uint32"] = "uint16"
    """Type of the tokens in .bin files."""
    vocab: int | None = None
    """Vocabulary of .bin files; None is the largest token and one."""

    def corpus(self, task: str) -> Corpus | Made:
        """The data of a task: this text, or examples that are made by rule.

        Raises:
            ValueError: the text cannot be used, or the task needs none.
        """
        if task == "text":
            return data.load(self.data, text_field=self.text_field, token_dtype=self.token_dtype, vocab=self.vocab)
        if self != Text():
            raise ValueError(f"--task {task} makes its own data; leave out what says which text is read")
        return TASKS[task]
