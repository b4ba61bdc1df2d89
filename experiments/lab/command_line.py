"""The command line of an experiment: bad usage is one line and exit status 2, before anything is written."""

import contextlib
import io
import itertools
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from experiments.lab import compile_cache
from experiments.lab.data.found import printable

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

T = TypeVar("T")
Work = TypeVar("Work")


def parse(arguments: Sequence[str], kind: type[T], program: str, default: T | None = None) -> T:
    """Options from the command line.

    Args:
        arguments: the words.
        kind: a dataclass of options.
        program: its module, for the help.
        default: what is not said; None takes the defaults of the fields.

    Raises:
        ValueError: anything wrong with them, in one line.
    """
    said = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"python -m {program}", args=arguments, **given)
    except SystemExit as stop:
        if stop.code != USAGE:
            raise
        raise ValueError(f"{_first_words(said.getvalue())} (see --help)") from None


def one_line(text: object) -> str:
    """A message as one line of printable characters, whatever the names of files in it are."""
    return printable(" ".join(str(text).split()))


@contextlib.contextmanager
def warnings_afterwards(program: str) -> Iterator[None]:
    """Say what is warned of within, a line each on standard error, when it has ended well; a refusal stands alone.

    Args:
        program: its name.
    """
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        print(f"{program}: warning: {one_line(warning.message)}", file=sys.stderr)


def one_or_more(options: Any, *names: str) -> None:
    """Check options that count something.

    Raises:
        ValueError: one of them is below 1.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more; got {getattr(options, name)}")


def main(
    program: str,
    *,
    usual: T,
    quick: T,
    prepare: Callable[[T], Work],
    run: Callable[[Work, str], Path],
    arguments: Sequence[str] | None = None,
) -> int:
    """The whole of an experiment that writes a finding.

    Args:
        program: its module.
        usual: its options, with `out`, the folder of the result.
        quick: the options that `--quick` stands for; words beside it still win.
        prepare: checks the options and reads the data; writes nothing, and a ValueError that it raises is bad usage.
        run: does the work, for the command that it gets, and returns the page with the finding.
        arguments: words of the command line; None takes the process's own.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    name = program.rpartition(".")[2]
    try:
        options = parse(arguments, type(usual), program, quick if "--quick" in arguments else usual)
        out: Any = options
        if Path(out.out).exists() and not Path(out.out).is_dir():
            raise ValueError(f"--out {out.out} is not a folder")
        with warnings_afterwards(name):
            work = prepare(options)
    except ValueError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return USAGE
    compile_cache.enable()
    print(run(work, shlex.join(["python", "-m", program, *arguments])))
    return OK


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether someone pressed Ctrl-C, or asked the process to end. A second time ends it at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_words(box: str) -> str:
    """What a box of the option parser says below its title and above its next rule, in one line."""
    _, *lines = [line.strip(" │╭╮╰╯") for line in box.splitlines() if line.strip()]
    below = itertools.dropwhile(_is_rule, lines)
    return re.sub(
        r"^Error parsing [A-Za-z]+: ", "", " ".join(itertools.takewhile(lambda line: not _is_rule(line), below))
    )


def _is_rule(line: str) -> bool:
    return re.fullmatch("[─-]+", line) is not None
