"""Common claims about deep Transformers, each put to a test it could fail.

    python -m experiments.claims
    python -m experiments.claims --only staircase
    python -m experiments.claims --quick

Runs what has not been run, saves each part as it ends, and writes one page. Killed at any moment, the same command goes
on; where everything has been run it only writes the page, in seconds.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..lab import command_line
from . import report, suite
from .claim import Claim


@dataclass(frozen=True, kw_only=True)
class Options:
    """Put common claims about deep Transformers to their tests, and write the verdicts on one page.

    Exit status: 0 done, whatever the verdicts; 1 something failed; 2 bad usage; 130 interrupted.
    """

    out: str = "runs/claims"
    """Folder of the numbers and the page."""
    quick: bool = False
    """A small version of everything, to see that it runs; its numbers mean nothing."""
    only: tuple[str, ...] = ()
    """Claims to run; none means all of them. The page holds all."""
    report_only: bool = False
    """Run nothing; write the page from the numbers that are there."""


def prepare(options: Options) -> tuple[Options, list[Claim]]:
    """The options, and the claims to run.

    Raises:
        ValueError: a claim that does not exist, or numbers that are damaged.
    """
    claims = suite.named(options.only)
    for claim in suite.CLAIMS:
        suite.done(Path(options.out), claim, options.quick)
    return options, claims


def run(work: tuple[Options, list[Claim]], command: str) -> Path:
    """Run what is missing and write the page; returns it."""
    options, claims = work
    out, command = Path(options.out), command.replace(" --report-only", "")
    failed: list[str] = []
    try:
        if not options.report_only:
            failed = suite.run(out, claims, options.quick)
    except KeyboardInterrupt:
        print(f"\nInterrupted; the page: {report.write_all(out, options.quick, command)}")
        print(f"This goes on from there:\n  {command}")
        raise SystemExit(command_line.INTERRUPTED) from None
    page = report.write_all(out, options.quick, command)
    if failed:
        print(f"{page}\nFailed, and not on the page: {'; '.join(failed)}", file=sys.stderr)
        raise SystemExit(command_line.FAILED)
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    quick = replace(Options(), quick=True, out="runs/claims_quick")
    program = "experiments.claims"
    return command_line.main(program, usual=Options(), quick=quick, prepare=prepare, run=run, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
