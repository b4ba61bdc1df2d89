"""Every notebook is committed with the outputs of its present source, and gives them again."""

import ast
import copy
import importlib

import nbformat
import numpy as np
import pytest

from experiments.lab import notebook as lab

runner = importlib.import_module("experiments.notebooks.__main__")

AGAIN = "run python -m experiments.notebooks"
LARGEST = 60_000
"""Characters of an output."""
TOLERANCE = 0.1
"""By how much numbers that are made again may differ, of the span of their column; the training of a small model on
another machine or version ends within this. Columns over more than two decades are compared by their logarithms, and
measured times, a column named `seconds`, not at all."""
SHORT = ("01_residual_and_gradients", "04_positions")
PATHS = runner.notebooks()


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(notebook):
    """The numbers behind every figure: {column: text}."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return [table for output in outputs for table in output.get("metadata", {}).get("numbers", ())]


def values(text):
    """A column's numbers; None if it holds words."""
    try:
        return np.array([float(word) for word in text.split()])
    except ValueError:
        return None


def scaled(column):
    """A column as it is compared: by logarithms where it spans more than two decades."""
    return np.log(column) if (column > 0).all() and column.max() > 100 * column.min() else column


def differences(committed, again):
    """Columns of the figures that differ, each with the share of its span by which."""
    tables = list(zip(figures(committed), figures(again), strict=True))
    assert tables
    found = []
    for one, other in tables:
        assert set(one) == set(other)
        for name in set(one) - {"seconds"}:
            a, b = values(one[name]), values(other[name])
            if a is None or b is None:
                found += [(name, one[name])] if one[name] != other[name] else []
                continue
            a, b = scaled(a), scaled(b)
            span = max(np.ptp(a), 1e-3 * np.abs(a).max(), 1e-9)
            if a.shape != b.shape or np.abs(a - b).max() > TOLERANCE * span:
                found.append((name, a.shape, b.shape))
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_those_of_the_present_source(path):
    notebook = read(path)
    assert notebook.metadata.get(runner.SEAL) == runner.digest(notebook), f"{AGAIN} {path.stem}"
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert all(len(str(output.get("data", output))) < LARGEST for output in outputs)
    last = code(notebook)[-1]
    assert any(kind.startswith("image/") for output in last.outputs for kind in output.get("data", {}))
    assert figures(notebook)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_long_runs_found_is_what_is_committed_now(path, capsys):
    """The cells that read committed results give what they gave, to the letter, with nothing else of the notebook."""
    imports = [
        ast.unparse(node)
        for cell in code(read(path))[1:]
        for node in ast.parse(cell.source).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    cells = [cell for cell in code(read(path)) if "committed." in cell.source]
    assert cells
    for cell in cells:
        exec("\n".join([*imports, cell.source]), {})
        assert capsys.readouterr().out == "".join(output.text for output in cell.outputs), f"{AGAIN} {path.stem}"


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.thorough if p.stem in SHORT else pytest.mark.slow) for p in PATHS],
    ids=lambda path: path.stem,
)
def test_figures_come_out_again(path):
    notebook = read(path)
    assert differences(notebook, runner.executed(copy.deepcopy(notebook))) == []


def test_other_numbers_are_another_figure():
    """The comparison above can fail."""
    notebook = read(PATHS[0])
    other = copy.deepcopy(notebook)
    table = figures(other)[0]
    name = next(name for name, text in table.items() if name == "value")
    first, *rest = table[name].split()
    table[name] = " ".join([str(1e6 * float(first)), *rest])
    assert [found[0] for found in differences(notebook, other)] == ["value"]
    assert differences(notebook, copy.deepcopy(notebook)) == []
    code(other)[1].source += " "
    assert runner.digest(other) != runner.digest(notebook)


def test_columns_are_short():
    assert lab._column([1.23456, 2, 3.0]) == "1.235 2 3" and lab._column(["a", "a", "b"]) == "a 2x, b 1x"
