"""One sweep by one process, by Ray and by Slurm: are the numbers the same, bit for bit?

    python -m experiments.schedulers

`experiments.depth_sweep` runs the same grid in every way, each in a folder of its own below `--out`, which the machines
of a cluster must share. Of each cell everything is compared that is no time and no memory: outcome, all losses, and
every look into the layers. Ray's cluster is that of RAY_ADDRESS or one begun here; sbatch reads its options from
SBATCH_PARTITION and the like. A scheduler that is not there is left out, and the finding says so.

The control runs the learning rates one after another instead of all at once, which is the same arithmetic in another
order: if its cells were equal too, the comparison would not see the last bits.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .lab import command_line, environment, finding, store
from .lab.command_line import FAILED, OK, UNDONE
from .lab.finding import Estimate, Prediction
from .lab.options import Finding, plain
from .lab.results import COLUMNS, Results

PROGRAM = f"{__package__}.depth_sweep"
GRID: Mapping[str, str] = {
    "recipes": "pre_norm post_norm deepnorm rezero",
    "depths": "0 1 2 4",
    "learning-rates": "3e-3 1e-2 3e-2 1e30",
    "d-model": "32",
    "n-heads": "2",
    "context": "32",
    "steps": "60",
    "eval-every": "20",
    "eval-batches": "8",
}
"""Options of the sweep: 64 cells, a quarter of them at a learning rate with which nothing can be learned."""
SMALL: Mapping[str, str] = {"recipes": "pre_norm", "depths": "0 1", "d-model": "8", "context": "8", "steps": "20"}
"""Options that make it small."""
CONTROL = "local, one lane at a time"
AT_ONCE = ("--lanes", "vmap")
WAYS: Mapping[str, tuple[str, ...]] = {
    "local": AT_ONCE,
    CONTROL: ("--lanes", "loop"),
    "ray": (*AT_ONCE, "--scheduler", "ray"),
    "slurm": (*AT_ONCE, "--scheduler", "slurm"),
}
"""Words that are added to those of the sweep, by way."""
UNLIKE = {"cell", "origin", "compile_seconds", "step_seconds", "temp_bytes"}
"""Columns of results.csv that are not compared."""


@dataclass(frozen=True, kw_only=True)
class Options(Finding):
    """Run one sweep in every way that is there, and compare the numbers.

    Exit status: 0 done; 2 bad usage; 130 interrupted.
    """

    out: str = "runs/schedulers"
    """Folder of the result: finding.md, result.json and the results.csv of each way; shared by the machines of a
    cluster."""


USUAL = Options()
QUICK = replace(USUAL, quick=True)

Numbers = dict[tuple[Any, ...], dict[str, Any]]
"""All that was recorded of each cell, by recipe, depth, learning rate and seed."""


def recorded(results: Results) -> Numbers:
    """The numbers of a sweep that are compared."""
    return {
        tuple(cell[name] for name in ("recipe", "depth", "learning_rate", "seed")): {
            **{name: cell[name] for name in COLUMNS if name not in UNLIKE},
            "metrics": results.metrics(cell),
            "layers": results.layers(cell),
        }
        for cell in results.cells
    }


def compared(numbers: Numbers, local: Numbers) -> dict[str, Any]:
    """Counts of a sweep's cells, and of those in which every bit is that of the local sweep.

    Args:
        numbers: of the sweep.
        local: of the local one.
    """
    cells = numbers.values()
    statuses = [cell["status"] for cell in cells]
    both = [(numbers[name]["train_loss"], local[name]["train_loss"]) for name in numbers.keys() & local.keys()]
    return {
        "cells": len(numbers),
        "wanted": len(local),
        "equal": sum(json.dumps(numbers.get(name)) == json.dumps(cell) for name, cell in local.items()),
        "numbers": sum(map(_count, cells)),
        "largest_difference": max((abs(a - b) for a, b in both if None not in (a, b)), default=None),
        **{status: statuses.count(status) for status in ("ok", "diverged", "failed", "unfinished")},
    }


def _count(value: Any) -> int:
    """Numbers in a JSON value."""
    if isinstance(value, dict | list):
        return sum(map(_count, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float)


def swept(words: Sequence[str], folder: Path) -> tuple[Results | None, dict[str, Any]]:
    """The results of the sweep that these words describe, run in a process of its own; None if it cannot be run.

    Args:
        words: of its command line.
        folder: for its files.

    Returns:
        The results; and its exit status, the last line that it says on standard error, and its seconds in all.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, *words, "--out", str(folder)],
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stderr=subprocess.PIPE,
        text=True,
    )
    said = command_line.one_line((done.stderr.splitlines() or [""])[-1])
    row = {"exit": done.returncode, "said": said, "seconds": time.perf_counter() - began}
    return Results.of(folder) if done.returncode in (OK, FAILED, UNDONE) else None, row


def predictions(rows: Sequence[dict[str, Any]]) -> tuple[Prediction, ...]:
    """The prediction of each way that could be run, beside the local one."""
    return tuple(
        Prediction(
            claim=f"{'control: ' * control}{row['way']}: cells that are not those of the local sweep",
            found=Estimate.exact(row["wanted"] - row["equal"]),
            relation="above" if control else "below",
            threshold=0.5,
        )
        for row in rows
        if row["way"] != "local" and "cells" in row
        for control in (row["way"] == CONTROL,)
    )


def prepare(options: Options) -> Options:
    """The options, which cannot be wrong."""
    return options


def run(options: Options, command: str) -> Path:
    """Run the sweep in every way and write the finding; returns its page."""
    asked = {**GRID, **(SMALL if options.quick else {})}
    out, rows, local = Path(options.out), [], None
    grid = [word for name, values in asked.items() for word in (f"--{name}", *values.split())]
    grid += ["--no-extend-rates", "--no-hops"]
    with tempfile.TemporaryDirectory(dir=out, prefix="sweeps-") as folder:
        for way, words in WAYS.items():
            print(f"\n{way}", flush=True)
            name = way.replace(",", "").replace(" ", "-")
            results, row = swept([*grid, *words], Path(folder) / name)
            if results is None and local is None:
                raise OSError(f"the local sweep cannot be run: {row['said']}")
            if results is not None:
                numbers = recorded(results)
                local = numbers if local is None else local
                row |= compared(numbers, local)
                store.write(out / name / "results.csv", results.csv())
            rows.append({"way": way, **row})
    there = [row for row in rows if "cells" in row]
    lines = [
        {
            "way": row["way"],
            "cells": row["cells"],
            "ok": row["ok"],
            "diverged": row["diverged"],
            "failed": row["failed"] + row["unfinished"],
            "numbers": f"{row['numbers']:,}",
            "cells equal to the local ones": f"{row['equal']} of {row['wanted']}",
            "largest difference of a training loss at the end": f"{row['largest_difference'] or 0:.1g}",
            "seconds": f"{row['seconds']:.0f}",
        }
        for row in there
    ]
    left_out = [f"Left out: {row['way']} ({row['said']})." for row in rows if row not in there]
    text = (
        f"`depth_sweep {shlex.join([*grid, *AT_ONCE])}`: by one process (local), and with `--scheduler ray` and "
        "`--scheduler slurm`, each way in processes of its own that compile everything anew. A cell is one run: a "
        "recipe, depth, learning rate and seed. The cells of one recipe and depth are the lanes of a program: "
        "`--lanes vmap` computes them all at once, the control has `--lanes loop`, which computes one after another. "
        "Every number that a cell records, but times and memory, is compared: outcome, losses of every step and "
        "evaluation, and measurements in every layer. Seconds are those of the whole command on a machine that others "
        "used too."
    )
    return finding.write(
        out,
        question="Do Ray and Slurm give the numbers of one process?",
        setting={**plain(options), **asked},
        predictions=predictions(rows),
        rows=rows,
        figures={},
        text="\n\n".join([f"{finding.QUICK * options.quick}{text}", *left_out, finding.table(lines)]),
        provenance=environment.provenance(command, seeds=[0]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program = "experiments.schedulers"
    return command_line.main(program, usual=USUAL, quick=QUICK, prepare=prepare, run=run, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
