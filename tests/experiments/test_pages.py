"""Every recipe and position has its page, and each page is what the code and the committed results now make of it."""

import ast
import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.lab import names
from experiments.pages import __main__ as pages
from experiments.pages import implementation, position_page, readings, recipe_chart, recipe_page
from stackjax import recipe
from tests.helpers import daily

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
AGAIN = "run python -m experiments.pages --out experiments/results"
LARGEST = 60_000


def rows(folder, key):
    found = json.loads((RESULTS / folder / "result.json").read_text())["rows"]
    return {row[key]: row for row in found}


RECIPES, POSITIONS = rows("recipes", "recipe"), rows("positions", "position")


def test_measurements_are_of_what_the_library_has():
    for measured, abouts in ((RECIPES, pages.about_recipes(False)), (POSITIONS, pages.about_positions(False))):
        assert list(measured) == list(abouts), AGAIN
        for name, about in abouts.items():
            assert {key: measured[name][key] for key in about} == about, f"{name}: {AGAIN}"


@pytest.fixture(scope="module")
def written():
    return pages.written(RECIPES, POSITIONS)


@pytest.mark.thorough
def test_every_page_is_up_to_date(written):
    stale = [
        path for path, text in written.items() if not (RESULTS / path).exists() or (RESULTS / path).read_text() != text
    ]
    assert stale == [], AGAIN
    there = {
        str(path.relative_to(RESULTS))
        for folder in ("recipes", "positions")
        for path in (RESULTS / folder).glob("*.md")
    }
    assert there == set(written)


@pytest.mark.thorough
def test_every_figure_shows_the_numbers_of_its_page():
    drawn = pages.drawn(RECIPES, POSITIONS)
    for path, (points, _) in drawn.items():
        text = (RESULTS / path).read_text()
        assert text.endswith(pages.mark(points)), f"{path}: {AGAIN}"
        assert text.startswith("<svg") and len(text) < LARGEST, path
    figures = (path for folder in ("recipes", "positions") for path in (RESULTS / folder / "figures").iterdir())
    assert {str(path.relative_to(RESULTS)) for path in figures} == set(drawn)


def test_another_number_makes_another_page():
    """The comparisons above can fail."""
    changed = copy.deepcopy(RECIPES)
    changed["rezero"]["stream_gradient"][0] *= 1.01
    page, other = (recipe_page.page("rezero", births["rezero"], births["pre_norm"]) for births in (RECIPES, changed))
    assert page == (RESULTS / "recipes" / "rezero.md").read_text() != other
    points = recipe_chart.figure_data("rezero", changed)
    assert pages.mark(points) != pages.mark(recipe_chart.figure_data("rezero", RECIPES))


@pytest.mark.thorough
def test_a_profile_at_birth_is_measured_again():
    measured = pages.measured_recipe(pages.about_recipes(False)["deepnorm"], quick=False)
    for measure in ("stream_rms", "stream_gradient"):
        np.testing.assert_allclose(measured[measure], RECIPES["deepnorm"][measure], rtol=2e-3)


@pytest.mark.parametrize("name", daily(["alibi", "rotary", "tree_bias"], "tree_bias"))
def test_a_matrix_is_measured_again(name):
    measured = pages.measured_position(pages.about_positions(False)[name])
    np.testing.assert_allclose(measured["matrix"], POSITIONS[name]["matrix"], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", daily(recipe.NAMES, "pre_norm", "deepnorm", "hyper_connections", "stochastic_depth", "ngpt")
)
def test_the_lines_of_a_recipe_are_code_and_hold_its_update(name):
    source = implementation.of_recipe(recipe.NAMES[name]())
    tree = ast.parse(source)
    defined = [node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert type(recipe.NAMES[name]()).__name__ in defined and {"update", "apply"} & set(defined)
    assert not any(
        ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    )
    assert not set(defined) & set(implementation.LEFT_OUT) and len(source.splitlines()) < 110


def test_the_numbers_of_a_page_are_those_of_the_atlas():
    """Read from the other file of the atlas, by hand: chosen on some windows, reported on others."""
    cells = [cell for cell in readings.cells() if (cell["recipe"], cell["depth"]) == ("deepnorm", 32)]
    by_rate = {}
    for cell in cells:
        by_rate.setdefault(cell["learning_rate"], []).append((cell["choice_loss"], cell["report_loss"]))
    means = [np.mean(losses, 0) for losses in by_rate.values() if len(losses) == 3]
    _, best = min(map(tuple, means))
    page = (RESULTS / "recipes" / "deepnorm.md").read_text()
    assert re.search(rf"^\| 32 \| .*\| {best:.3f} \[", page, re.MULTILINE)
    rise = re.search(r"\| alibi \| .* \| ([\d.]+) \|$", (RESULTS / "positions" / "alibi.md").read_text(), re.MULTILINE)
    by_length = {row["length"]: row["loss"] for row in readings.lengths(["alibi"])}
    assert float(rise.group(1)) == round(by_length[512] - by_length[64], 2)


def test_failures_are_told():
    said = {name: recipe_page.failures(name, readings.points(name), RECIPES[name]) for name in recipe.NAMES}
    assert "counting single bytes" in said["post_norm"] and "diverged" in said["plain"]
    assert "not finite" in said["sigma_reparam"] and "it did not" in said["complete_p"]


def test_pages_of_positions_have_the_names_of_the_command_line():
    assert set(names.POSITIONS) <= set(position_page.NAMES.values()) == set(POSITIONS)


@pytest.mark.thorough
def test_quick(tmp_path):
    assert pages.main(["--quick", "--out", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "recipes").glob("*.md")} == {"README.md", "pre_norm.md", "deepnorm.md"}
    before = (tmp_path / "recipes" / "result.json").read_text()
    (tmp_path / "recipes" / "deepnorm.md").unlink()
    assert pages.main(["--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "recipes" / "deepnorm.md").exists()
    assert json.loads(before)["rows"] == json.loads((tmp_path / "recipes" / "result.json").read_text())["rows"]
