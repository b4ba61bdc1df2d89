"""The command line of an experiment: bad usage is one line and exit status 2, and nothing is computed or written."""

import contextlib
import io
import itertools
import re
import shlex
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from . import compile_cache
from .data.found import printable

OK, FAILED, USAGE, UNDONE, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: everything is done; something failed; bad usage; something is left undone; interrupted."""

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
    complaint = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=shlex.join(invocation(program)), args=arguments, **given)
    except SystemExit as stop:
        if stop.code != USAGE:
            raise
        raise ValueError(f"{_first_words(complaint.getvalue())} (see --help)") from None


def invocation(program: str) -> list[str]:
    """Words that begin the command again: those of a checkout, or those of the installed console script.

    Args:
        program: its module, `experiments.x`.
    """
    in_checkout = __name__.startswith("experiments.")
    return ["python", "-m", program] if in_checkout else ["stackjax", _name(program).replace("_", "-")]


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


class Undone(Exception):
    """Some of the work is held by other workers, and this one has done the rest; the message says by whom."""


def command(
    program: str,
    prepare: Callable[[Sequence[str], str], Work],
    work: Callable[[Work], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """The whole of a command.

    Args:
        program: its module.
        prepare: from the words, and the line that they are, to all that the work needs: everything is checked here and
            nothing written; a ValueError or OSError is bad usage.
        work: does it and returns the exit status.
        arguments: words of the command line; None takes the process's own.

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    line = shlex.join([*invocation(program), *words])
    try:
        with warnings_afterwards(_name(program)):
            prepared = prepare(words, line)
    except (ValueError, OSError) as error:
        return refuse(program, error)
    try:
        return work(prepared)
    except KeyboardInterrupt:
        print(f"\nInterrupted. To begin again:\n  {line}", file=sys.stderr)
        return INTERRUPTED
    except Undone as left:
        print(left)
        return UNDONE
    except OSError as error:
        print(f"{_name(program)}: stopped, and what was done is kept: {one_line(error)}", file=sys.stderr)
        return FAILED


def refuse(program: str, error: Exception) -> int:
    """Say in one line what is wrong with a command, or with what it names; returns the exit status."""
    print(f"{_name(program)}: {one_line(error) or type(error).__name__}", file=sys.stderr)
    return USAGE


def _name(program: str) -> str:
    return program.rpartition(".")[2]


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

    def checked(words: Sequence[str], line: str) -> tuple[Work, str]:
        options: Any = parse(words, type(usual), program, quick if "--quick" in words else usual)
        check_folder(options.out)
        work = prepare(options)
        make_folder(options.out)
        return work, line

    def done(prepared: tuple[Work, str]) -> int:
        compile_cache.enable()
        print(run(*prepared))
        return OK

    return command(program, checked, done, arguments)


def check_folder(folder: str | Path, option: str = "--out") -> None:
    """Refuse a folder for results that is none. Looks, and makes nothing: for the beginning of all checks.

    Args:
        folder: its path.
        option: that named it.

    Raises:
        ValueError: no path, a file, or a path that the system does not know.
    """
    if not str(folder).strip():
        raise ValueError(f"{option} must name a folder; got {str(folder)!r}")
    with _refusing(f"{option} {folder}"):
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ValueError(f"{option} {folder} is not a folder")


def make_folder(folder: str | Path, option: str = "--out") -> None:
    """Make the folder of a result, and see that files can be made in it: the last check before the work begins.

    Args:
        folder: its path.
        option: that named it.

    Raises:
        ValueError: it cannot be, and nothing is left behind.
    """
    check_folder(folder, option)
    missing: list[Path] = []
    try:
        with _refusing(f"{option} {folder}"):
            missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder, prefix="."):
                pass
    except ValueError:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def check_file(file: str | Path, option: str = "--out") -> None:
    """`check_folder` for a result that is one file.

    Args:
        file: its path.
        option: that named it.

    Raises:
        ValueError: a folder, or a file below one.
    """
    with _refusing(f"{option} {file}"):
        if not Path(file).name or Path(file).is_dir():
            raise ValueError(f"{option} {file} is a folder; name a file")
    check_folder(Path(file).parent, option)


@contextlib.contextmanager
def _refusing(option: str) -> Iterator[None]:
    """Say of which option the system complains."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{option} cannot be written: {error.strerror}: {error.filename}") from error


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells if Ctrl-C was pressed or the process asked to end; a second time ends it at once."""
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
    """The text of the option parser's box, below its title and above its next rule, in one line."""
    _, *lines = [line.strip(" │╭╮╰╯") for line in box.splitlines() if line.strip()]
    below = itertools.dropwhile(_is_rule, lines)
    return re.sub(
        r"^Error parsing [A-Za-z]+: ", "", " ".join(itertools.takewhile(lambda line: not _is_rule(line), below))
    )


def _is_rule(line: str) -> bool:
    return re.fullmatch("[─-]+", line) is not None
