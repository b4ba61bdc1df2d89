"""Table of how far stackjax is from `transformers`, architecture by architecture, for the README.

    python -m experiments.parity_table

Needs the extra `oracle`. Random small checkpoints go through both; the largest error over all seeds counts. The table
also takes its place in README.md, between `<!-- parity table -->` and `<!-- end of parity table -->`.

Killed at any time, the same command goes on: each comparison that has ended is kept in the folder's `runs/`, and is
made again where the commit, a package or the device is another one. Where the commit does not say what the code is
(changes that are in no commit, architectures of your own), nothing is kept and nothing read.
"""

import importlib
import inspect
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from stackjax.interop import hf

from ..lab import command_line, environment, names, store
from ..lab.command_line import FAILED, OK
from ..lab.options import one_or_more
from . import cases

BARS = {"logits": 1e-5, "hidden": 1e-5, "gradients": 1e-4}
"""Largest errors that pass: what `compare.errors` defines."""
ORACLE = ("torch", "transformers")
"""Packages that are compared with."""
BEGIN, END = "<!-- parity table -->", "<!-- end of parity table -->"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare architectures with `transformers` and write result.json and finding.md.

    Exit status: 0 all within the bars, 1 some not, 2 bad usage, 130 interrupted.
    """

    out: str = "experiments/results/parity_table"
    """Folder for the two files."""
    readme: str = "README.md"
    """File that takes the table between its marks, if all architectures were compared and it has them."""
    seeds: int = 3
    """Random configurations of each architecture."""
    only: tuple[str, ...] = ()
    """Names of architectures; all if empty."""
    architectures: str | None = None
    """Compare architectures of your own instead: the dotted path `module:NAME` of {model_type: hf.Architecture}."""

    def __post_init__(self):
        one_or_more(self, "seeds")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.command("experiments.parity_table", prepared, work, arguments)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The comparisons that have ended, a file for each.

    Args:
        folder: of the files.
        code: commit, versions and device that make their numbers.
        kept: whether files are written and read: whether the commit says what the code is.
    """

    folder: Path
    code: dict[str, Any]
    kept: bool

    def read(self, name: str, seed: int) -> dict[str, float] | None:
        """The errors of one comparison; None if it has not ended, or other code made it.

        Args:
            name: of the case.
            seed: of the configuration.

        Raises:
            ValueError: the file is damaged.
        """
        record = store.read_sealed(self._file(name, seed)) if self.kept else None
        return record["errors"] if record is not None and record["code"] == self.code else None

    def write(self, name: str, seed: int, errors: dict[str, float]) -> None:
        """Keep the errors of one comparison, in the place of those that other code made."""
        if self.kept:
            store.write_sealed(self._file(name, seed), {"code": self.code, "errors": errors})

    def _file(self, name: str, seed: int) -> Path:
        return self.folder / f"{name}-{seed}.json"


def prepared(words: Sequence[str], line: str) -> tuple[Options, dict[str, Any], Runs]:
    """The options, the origin of what is to come, and the comparisons that have ended.

    Raises:
        ValueError: bad options, a damaged file of an earlier run, or the oracle is not installed.
    """
    options = command_line.parse(words, Options, "experiments.parity_table")
    try:
        importlib.import_module(f"{__package__}.compare")
    except ImportError as error:
        raise ValueError(f"{error}; install the extra `oracle`") from error
    known, _ = subjects(options)
    if unknown := set(options.only) - set(known):
        raise ValueError(f"--only knows {', '.join(known)}; got {min(unknown)}")
    around(Path(options.readme))
    origin = environment.provenance(line, seeds=range(options.seeds), packages=ORACLE)
    code = {part: origin[part] for part in ("commit", "versions", "device")}
    kept = origin["clean_tree"] is True and options.architectures is None
    runs = Runs(folder=Path(options.out) / "runs", code=code, kept=kept)
    for name in options.only or known:
        for seed in range(options.seeds):
            runs.read(name, seed)
    command_line.make_folder(options.out)
    return options, origin, runs


def work(made: tuple[Options, dict[str, Any], Runs]) -> int:
    """Compare, and write down what came of it; returns the exit status."""
    options, origin, runs = made
    rows = measure(options, runs)
    record = {**origin, "bars": BARS, "rows": rows}
    text = f"{markdown(rows)}\n{caption(record)}\n"
    store.write(Path(options.out) / "result.json", json.dumps(record, indent=1) + "\n")
    store.write(Path(options.out) / "finding.md", text)
    if not (options.only or options.architectures):
        splice(Path(options.readme), text)
    print(text, end="")
    return OK if all(passes(row) for row in rows) else FAILED


def subjects(options: Options) -> tuple[dict[str, cases.Case], Mapping[str, hf.Architecture]]:
    """The cases that may be compared, by name, and the descriptions, by model_type."""
    if options.architectures is None:
        return cases.CASES, hf.ARCHITECTURES
    own = names.architectures_named(options.architectures)
    return {kind: cases.of_architecture(kind, found) for kind, found in own.items()}, own


def measure(options: Options, runs: Runs) -> list[dict[str, Any]]:
    """A row for each architecture; what has been compared is not compared again."""
    from . import compare

    known, architectures = subjects(options)
    console, rows = Console(stderr=True), []
    for name in options.only or known:
        case, errors = known[name], []
        for seed in range(options.seeds):
            found = runs.read(name, seed)
            if found is None:
                console.print(f"{case.title}, seed {seed + 1} of {options.seeds}", style="dim")
                with tempfile.TemporaryDirectory() as at:
                    found = compare.compare(case, seed, Path(at), architectures)
                runs.write(name, seed, found)
            errors.append(found)
        row = {"name": name, "title": case.title, **size(compare.draw_config(case), architectures), **worst(errors)}
        rows.append(row)
        console.print(markdown(rows[-1:]).splitlines()[-1], soft_wrap=True)
    return rows


def caption(record: dict[str, Any]) -> str:
    """Caption that says what the numbers of the table are, and where they come from."""
    versions, n = record["versions"], len(record["seeds"])
    configurations = "one random small configuration" if n == 1 else f"{n} random small configurations"
    return (
        "Lines of the function that describes the architecture, without the helpers that kin share, and rows of its "
        f"table of tensors. Largest errors over {configurations} of each, with ragged, padded batches in float32: "
        "logits over the largest logit; hidden states after every layer over the layer's largest entry; each "
        f"parameter's gradient, norm over norm. Made by `{record['command']}` with transformers "
        f"{versions['transformers']}, torch {versions['torch']} and jax {versions['jax']}."
    )


def splice(readme: Path, text: str) -> None:
    """Put the table between its marks, where there are any."""
    parts = around(readme)
    if parts is not None:
        store.write(readme, f"{parts[0]}{BEGIN}\n{text}{END}{parts[1]}")


def around(readme: Path) -> tuple[str, str] | None:
    """Text before and behind the marks; None where there are none.

    Raises:
        ValueError: the file is no text.
    """
    try:
        whole = readme.read_text() if readme.is_file() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"--readme {readme} is no UTF-8 text: {error.reason}") from error
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    return (before, after) if begin and end else None


def worst(runs: list[dict[str, float]]) -> dict[str, float | None]:
    """The largest error of each kind, and the least of the yes-or-no answers; None for what was not compared."""
    found = {name: (max if name in BARS else min)(run[name] for run in runs) for name in runs[0]}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def passes(row: dict[str, Any]) -> bool:
    """True if all errors are within the bars, and all answers yes."""
    within = all(row[name] is None or row[name] <= bar for name, bar in BARS.items())
    return within and row["decoding"] in (None, 1) and row["round_trip"] == 1


def size(fields: dict[str, Any], architectures: Mapping[str, hf.Architecture] = hf.ARCHITECTURES) -> dict[str, int]:
    """Lines of code of the function that describes a config.json's architecture, and rows of its table of tensors."""
    describe = architectures[fields["model_type"]].describe
    return {"lines": code_lines(describe), "tensors": len(describe(hf.Config(fields))[1])}


def code_lines(function: Callable) -> int:
    """Lines of a function that are neither blank nor its docstring."""
    both = (inspect.getsource(function), function.__doc__ or "")
    lines, documentation = (sum(bool(line.strip()) for line in text.splitlines()) for text in both)
    return lines - documentation


HEADS = {
    "title": "architecture",
    "lines": "lines",
    "tensors": "tensors",
    "logits": "logits",
    "hidden": "hidden states",
    "gradients": "gradients",
    "decoding": "64 greedy tokens",
    "round_trip": "round trip",
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table: sizes of the description, and the largest errors."""
    lines = ["| " + " | ".join(HEADS.values()) + " |", "|" + "|".join([" --- "] + [" ---: "] * (len(HEADS) - 1)) + "|"]
    lines += ["| " + " | ".join(_cell(name, row[name]) for name in HEADS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in BARS:
        return f"{value:.1e}"
    if name in ("decoding", "round_trip"):
        return {"decoding": "equal", "round_trip": "exact"}[name] if value == 1 else "**differs**"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
