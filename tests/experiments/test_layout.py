"""An experiment is one file or one folder, and `lab` holds what two or more of them import."""

import ast
import json
import re
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "experiments"
NO_COMMANDS = {"lab", "notebooks", "results", "__pycache__"}
EXPERIMENTS = sorted(
    path.stem for path in ROOT.iterdir() if path.name not in NO_COMMANDS and not path.name.startswith("_")
)


def module_of(path):
    """Dotted name of a file below `experiments`, a package's own included."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in ROOT.rglob("*.py")}


def package_of(module):
    """The package from which a module's relative imports count."""
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def imports(module):
    """Modules of `experiments` that a file imports, anywhere in it."""
    return imported(FILES[module].read_text(), package_of(module)) - {module}


def imported(source, package):
    """Modules of `experiments` that code in a package imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            path = resolve_name("." * node.level + (node.module or ""), package)
            found |= {path, *(f"{path}.{alias.name}" for alias in node.names)}
    return found & set(FILES) - {"experiments"}


def code_of(notebook):
    """The Python of a notebook, without what only IPython reads."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    return re.sub(r"^( *)%.*$", r"\1pass", "\n".join("".join(cell["source"]) for cell in cells), flags=re.MULTILINE)


NOTEBOOKS = {path.stem: imported(code_of(path), "experiments") for path in (ROOT / "notebooks").glob("*.ipynb")}


IMPORTS = {module: imports(module) for module in FILES}


def reached(experiment):
    """Modules that an experiment or a notebook needs, those that it needs only through others included."""
    wanted = {module for module in FILES if module.split(".")[1:2] == [experiment]} | NOTEBOOKS.get(experiment, set())
    while more := {name for module in wanted for name in IMPORTS[module]} - wanted:
        wanted |= more
    return wanted


@pytest.mark.parametrize("module", FILES)
def test_imports_among_experiments_are_relative(module):
    """An installed laboratory has another name, `stackjax.experiments`."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        named += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not any(name.split(".")[0] == "experiments" for name in named), ast.unparse(node)


def test_every_experiment_is_a_command():
    assert len(EXPERIMENTS) > 10
    for name in EXPERIMENTS:
        command = FILES.get(f"experiments.{name}.__main__") or FILES[f"experiments.{name}"]
        assert '__name__ == "__main__"' in command.read_text() or name.startswith("own_"), name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_imports_itself_and_the_lab(name):
    for module in FILES:
        if module.split(".")[1:2] == [name]:
            others = {imported for imported in IMPORTS[module] if imported.split(".")[1] not in (name, "lab")}
            assert not others, module


def test_the_lab_imports_no_experiment():
    for module in FILES:
        if module.startswith("experiments.lab"):
            assert all(imported.startswith("experiments.lab") for imported in IMPORTS[module]), module


def test_the_lab_holds_what_two_or_more_import():
    """Experiments or notebooks. What belongs together, a folder of the lab, counts as one."""
    users = [*EXPERIMENTS, *NOTEBOOKS]
    used = {name: {".".join(module.split(".")[:3]) for module in reached(name)} for name in users}
    parts = {".".join(module.split(".")[:3]) for module in FILES if module.startswith("experiments.lab.")}
    assert {part for part in parts if sum(part in modules for modules in used.values()) < 2} == set()
