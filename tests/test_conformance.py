"""Every recipe, every position, every stack kind keeps the promises that `stackjax.testing` checks; `cases` lists them.

Every run has an unusual recipe with one position, and one position and a few stack kinds with one recipe. Behind the
marker `thorough` are the other positions and kinds and the recipes that stand for the rest; all recipes, depths 0 and
1, and the product, sampled by a seed, are behind `slow`.
"""

import itertools
import random

import jax.numpy as jnp
import pytest

from stackjax import position, recipe, testing
from stackjax.testing.inputs import in_order
from tests.cases import BY_COST, KINDS, POSITIONS, RECIPES, REFUSED, UNUSUAL
from tests.helpers import daily


def plain(kind, depth=2):
    """A model of this kind with the recipe and the position that the kinds are tried with."""
    return KINDS[kind](recipe.PreNorm(), position.Rotary(), depth)


@pytest.mark.parametrize("name", BY_COST)
def test_recipe(name):
    testing.check_recipe(RECIPES[name], depth=6 + list(RECIPES).index(name) % 2)


@pytest.mark.parametrize("name", daily([name for name in RECIPES if name not in UNUSUAL], "deepnorm"))
def test_low_precision_stays(name):
    testing.check_dtype(KINDS["decoder"](RECIPES[name], position.Rotary(), 3))


@pytest.mark.parametrize("name", daily(POSITIONS, "rotary"))
def test_position(name):
    testing.check_position(POSITIONS[name])


@pytest.mark.parametrize("depth", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("kind", daily(KINDS, "local_global"))
def test_kind(kind, depth):
    testing.check_scan(plain(kind, depth), subject=f"{kind} of {depth} layers")


@pytest.mark.parametrize("kind", daily([kind for kind in KINDS if kind != "encoder"], "local_global", "latent"))
def test_decoding_kind(kind):
    testing.check_decoding(plain(kind), subject=kind)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["local_global", "latent", "encoder_decoder"])
def test_decoding_in_float32(kind):
    testing.check_decoding(plain(kind), left=False, dtype=jnp.float32, tolerance=1e-5, subject=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_pair_is_made_or_refused(name, kind):
    if kind in REFUSED.get(name, ()):
        with pytest.raises(ValueError, match=r"."):
            KINDS[kind](RECIPES[name], position.Rotary(), 6).declaration()
        return
    assert KINDS[kind](RECIPES[name], position.Rotary(), 6).declaration()


PRODUCT = [
    (rule, where, kind)
    for rule, where, kind in itertools.product(RECIPES, POSITIONS, KINDS)
    if kind not in REFUSED.get(rule, ()) and kind not in REFUSED.get(where, ())
]


@pytest.mark.slow
@pytest.mark.parametrize("case", random.Random(0).sample(PRODUCT, min(len(PRODUCT), 200)), ids="-".join)
def test_product(case):
    rule, where, kind = case
    side_inputs = in_order() if where.startswith("tree") else None
    testing.check_scan(KINDS[kind](RECIPES[rule], POSITIONS[where], 6), side_inputs, subject="-".join(case))
