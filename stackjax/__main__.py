"""The command `stackjax`: runs an experiment by its name, from any folder.

    stackjax depth-sweep --depths 4 16 64 --out runs/mine
    stackjax claims --help

`stackjax depth-sweep` is `python -m experiments.depth_sweep` of a checkout, wherever it was installed, also where the
working folder has a package `experiments` of its own.
"""

import ast
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Sequence

HOME = "stackjax.experiments"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: the name of an experiment and its options; None takes the process's own.
    """
    name, *words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    known = experiments()
    if name in ("-h", "--help"):
        width = max(map(len, known))
        lines = (f"  {spoken:<{width}}  {first_line(module)}" for spoken, module in known.items())
        print("usage: stackjax EXPERIMENT [OPTIONS]; an experiment's own options: stackjax EXPERIMENT --help\n")
        print("\n".join(lines))
        return 0
    if name.replace("_", "-") not in known:
        print(f"stackjax: experiments are {', '.join(known)}; got {name} (see --help)", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())
    try:
        experiment = importlib.import_module(known[name.replace("_", "-")])
    except ModuleNotFoundError as error:
        print(f'stackjax: {error}; install the laboratory: pip install "stackjax[experiments]"', file=sys.stderr)
        return 2
    if arguments is not None:
        return experiment.main(words)
    sys.argv[1:] = words
    return experiment.main()


def experiments() -> dict[str, str]:
    """Modules of the experiments that are commands, by name; none is imported."""
    home = importlib.import_module(HOME)
    found = {}
    for module in pkgutil.iter_modules(home.__path__, f"{HOME}."):
        command = f"{module.name}.__main__" if module.ispkg else module.name
        if importlib.util.find_spec(command) and "\ndef main(" in _source(command):
            found[module.name.rpartition(".")[2].replace("_", "-")] = command
    return found


def first_line(module: str) -> str:
    """The head of a module's docstring, read without importing it."""
    return (ast.get_docstring(ast.parse(_source(module))) or "").partition("\n")[0]


def _source(module: str) -> str:
    loader = getattr(importlib.util.find_spec(module), "loader", None)
    return getattr(loader, "get_source", lambda _: None)(module) or ""


if __name__ == "__main__":
    sys.exit(main())
