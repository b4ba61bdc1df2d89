"""The worked example of a recipe outside the library keeps every promise of those inside it."""

import ast
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import testing
from stackjax.testing import normal
from tests.helpers import output
from tests.recipe.by_hand import N_HEADS, attention, feed_forward

OWN = importlib.import_module("experiments.own_recipe")


@pytest.mark.thorough
def test_conformance():
    testing.check_recipe(OWN.recipe)


def test_formula(x64):
    layer = sj.Layer(
        sublayers=(sj.Attention(n_heads=N_HEADS), sj.FeedForward(d_hidden=24, activation=sj.feed_forward.relu))
    )
    stack = sj.Stack.of(layer, depth=3, d_model=16, recipe=OWN.recipe)
    params = stack.init(jax.random.key(0), jnp.float64)
    x = normal(2, 5, 16, key=1)
    expected, s = np.asarray(x), 0
    for p in jax.tree.map(np.asarray, sj.convert.unstack(stack, params)):
        for name, branch in (("attention", attention), ("feed_forward", feed_forward)):
            s, y = s + 1, branch(p[name], expected)
            y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
            expected = (s / (s + 1)) ** 0.5 * expected + (1 / (s + 1)) ** 0.5 * y
    np.testing.assert_allclose(output(stack, params, x), expected, rtol=1e-5, atol=1e-6)


def test_it_needs_nothing_that_is_private():
    for node in ast.walk(ast.parse(inspect.getsource(OWN))):
        if isinstance(node, (ast.Attribute, ast.Name)):
            assert not (node.attr if isinstance(node, ast.Attribute) else node.id).startswith("_")
