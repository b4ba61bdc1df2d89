"""Options from a command line, and what is wrong with them in one line."""

import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")
USAGE = 2


def parse(kind: type[T], prog: str, arguments: Sequence[str]) -> T:
    """Options of a kind.

    Args:
        kind: a dataclass.
        prog: what the command is called.
        arguments: of the command line.

    Raises:
        ValueError: anything wrong with them, in one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=arguments)
    except SystemExit as stop:
        if stop.code != USAGE:
            raise
        raise ValueError(f"{_first_words(said.getvalue())} (see --help)") from None


def _first_words(box: str) -> str:
    """What a box of the option parser says below its title and above its next rule, in one line."""
    _, *lines = [line.strip(" │╭╮╰╯") for line in box.splitlines() if line.strip()]
    below = itertools.dropwhile(_is_rule, lines)
    return re.sub(r"^Error parsing [a-z]+: ", "", " ".join(itertools.takewhile(lambda line: not _is_rule(line), below)))


def _is_rule(line: str) -> bool:
    return re.fullmatch("[─-]+", line) is not None
