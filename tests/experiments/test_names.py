"""Words on the command line to objects."""

import functools
import importlib
import sys
from pathlib import Path

import pytest

import stackjax as sj
from experiments import length_extrapolation
from experiments.lab import names
from stackjax import recipe
from stackjax.position import Learned
from tests import cases


def test_every_name_makes_its_kind():
    for name in recipe.NAMES:
        assert isinstance(names.recipe_named(name), recipe.Recipe)
    for name in names.POSITIONS:
        names.position_named(name, 16)
    assert names.position_named("learned", 16) == Learned(n_positions=16)


def test_one_name_for_one_recipe():
    """Every recipe of the library has a name, and the tests call it by that; but for the one that needs a loop."""
    classes = {kind for kind in vars(recipe).values() if isinstance(kind, type) and issubclass(kind, recipe.Recipe)}
    assert classes - {recipe.Recipe, recipe.Around, recipe.InputInjection} == {
        type(rule) for rule in cases.RECIPES.values()
    }
    for name in recipe.NAMES:
        assert type(cases.RECIPES[name]) is type(names.recipe_named(name)), name
    beside = {"hybrid_norm_star", "static_hyper_connections", "weighted"}  # variants, and one that needs numbers
    assert set(cases.RECIPES) - set(recipe.NAMES) == beside


@pytest.mark.parametrize("table", [cases.POSITIONS, length_extrapolation.encodings(16)], ids=["cases", "extrapolation"])
def test_one_name_for_one_position(table):
    for name in names.POSITIONS:
        assert type(table[name]) is type(names.position_named(name, 16)), name


@pytest.mark.parametrize("path", ["tests.experiments.own:instance", "tests.experiments.own:Broken"])
def test_dotted_paths_give_instances_and_call_classes(path):
    assert isinstance(names.recipe_named(path), recipe.PreNorm)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pre_nrom", "did you mean pre_norm"),
        ("xyzzy", "known are"),
        ("tests.experiments.own:not_a_recipe", "cannot be made"),
        ("tests.experiments.own:missing", "cannot be imported"),
        ("no.such.module:thing", "cannot be imported"),
        ("stackjax.position:Rotary", "is no recipe"),
        (":x", "cannot be imported"),
    ],
)
def test_wrong_names_say_what_to_do(name, said):
    with pytest.raises(ValueError, match=said):
        names.recipe_named(name)


@pytest.mark.parametrize("path", ["json:dumps", "json:__name__", "tests.experiments.own:instance"])
def test_metrics_are_functions_of_three_arguments(path):
    with pytest.raises(ValueError, match=r"must be a function \(task, params, batch\) -> \{name: array\}; it is"):
        names.metrics_named(path)


def test_descriptions_are_equal_exactly_for_equal_recipes():
    assert names.describe(recipe.DeepNorm()) == names.describe(recipe.DeepNorm())
    assert names.describe(recipe.CompleteP(alpha=0.5)) != names.describe(recipe.CompleteP())
    assert "0x" not in str(names.describe(recipe.CompleteP()))
    inits = [functools.partial(gauss, std=std) for std in (0.02, 0.02, 2.0)]
    one, again, other = (names.describe(recipe.PreNorm(default_init=init)) for init in inits)
    assert one == again != other


def gauss(spec, std):
    return sj.parameter.Normal(std)


def test_functions_without_a_name_of_their_own_are_refused():
    """Two of one factory would share the name, and the results."""
    with pytest.raises(ValueError, match=r"<lambda> has no name .*functools\.partial"):
        names.describe(recipe.PreNorm(default_init=lambda spec: sj.parameter.Normal(1.0)))


def test_a_change_of_ones_own_code_is_another_recipe(tmp_path, monkeypatch):
    """Comments are none, and what the module's file holds later does not reach a class that is there."""
    source = Path(importlib.import_module("experiments.own_recipe").__file__).read_text()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path, seen = tmp_path / "mine_once.py", []
    for text in (source, source + "# a comment\n", source.replace("s / (s + 1)", "s / (s + 2)")):
        path.write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "mine_once", raising=False)
        mine = names.recipe_named("mine_once:recipe")
        seen.append(names.describe(mine))
        path.write_text("")
        assert names.describe(mine) == seen[-1]
    assert seen[0] == seen[1] != seen[2]


def test_code_that_cannot_be_read_is_refused():
    space = {"__name__": "a_cell"}
    exec("def init(spec):\n    return spec\n", space)
    with pytest.raises(ValueError, match=r"the code of <function init at .*> cannot be read"):
        names.describe(recipe.PreNorm(default_init=space["init"]))
