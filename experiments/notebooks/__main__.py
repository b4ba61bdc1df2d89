"""Execute notebooks in place, so that their outputs are those of their present source.

python -m experiments.notebooks
python -m experiments.notebooks 02_norms_and_learning_rates
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import tyro
from nbclient import NotebookClient

from ..lab import command_line

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SEAL = "source_sha256"
"""Entry of a notebook's metadata: the digest of the code that its outputs were made by."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Execute notebooks in place.

    Exit status: 0 done; 1 a cell raised an error; 2 bad usage; 130 interrupted.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Their names without the ending; none for all of them."""


def notebooks() -> list[Path]:
    """All notebooks, in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def digest(notebook: Any) -> str:
    """Digest of all code of a notebook."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


def executed(notebook: Any) -> Any:
    """A notebook with the outputs of a run from its first cell to its last, sealed with the digest of its code."""
    os.environ["PYTHONPATH"] = str(ROOT)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        SEAL: digest(notebook),
    }
    return notebook


def prepare(words: Sequence[str], line: str) -> list[Path]:
    """The notebooks that a command line names.

    Raises:
        ValueError: one that is not there.
    """
    options = command_line.parse(words, Options, "experiments.notebooks")
    there = {path.stem: path for path in notebooks()}
    if unknown := set(options.names) - set(there):
        raise ValueError(f"no notebook {min(unknown)!r}; there are {', '.join(there)}")
    return [there[name] for name in options.names or there]


def run(paths: Sequence[Path]) -> int:
    """Execute notebooks and write them."""
    for path in paths:
        nbformat.write(executed(nbformat.read(path, as_version=4)), path)
        print(path.name, flush=True)
    return command_line.OK


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.command("experiments.notebooks", prepare, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
