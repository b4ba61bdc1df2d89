"""Words on the command line to objects."""

import pytest

from experiments.lab import names
from stackjax import recipe
from stackjax.position import Learned


def test_every_name_makes_its_kind():
    for name in names.RECIPES:
        assert isinstance(names.recipe_named(name), recipe.Recipe)
    for name in names.POSITIONS:
        names.position_named(name, 16)
    assert names.position_named("learned", 16) == Learned(n_positions=16)


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


def test_descriptions_are_equal_exactly_for_equal_recipes():
    assert names.describe(recipe.DeepNorm()) == names.describe(recipe.DeepNorm())
    assert names.describe(recipe.CompleteP(alpha=0.5)) != names.describe(recipe.CompleteP())
    assert "0x" not in str(names.describe(recipe.CompleteP()))
