"""Stacked parameters to one tree per layer, and back."""

import jax
import numpy as np
import pytest

import stackjax as sj

FULL = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=8)))
LOCAL = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=2), sj.FeedForward(d_hidden=8)))

STACKS = {
    "one layer repeated": ((FULL,), {"depth": 5}),
    "a pattern": ((LOCAL, LOCAL, FULL), {"depth": 8}),
    "looped": ((LOCAL, FULL), {"depth": 4, "looped": True}),
    "no layer": ((FULL,), {"depth": 0}),
}


@pytest.mark.parametrize("name", STACKS)
def test_there_and_back(name):
    layers, options = STACKS[name]
    stack = sj.Stack.of(*layers, d_model=8, recipe=sj.recipe.PreNorm(), **options)
    params = stack.init(jax.random.key(0))
    split = sj.convert.unstack(stack, params)
    assert len(split) == stack.depth
    again = sj.convert.restack(stack, split, params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(params)))
    for index, own in enumerate(split):
        layer = layers[index % len(layers)]
        shapes = jax.tree.map(lambda spec: spec.shape, layer.sublayers[0].spec(8), is_leaf=sj.parameter.is_spec)
        assert jax.tree.map(lambda x: x.shape, own["attention"]) == shapes


def test_layers_come_in_order():
    stack = sj.Stack.of(LOCAL, FULL, depth=6, d_model=8, recipe=sj.recipe.PreNorm())
    params = stack.init(jax.random.key(0))
    own = params["segments"]["0"]
    queries = [layer["attention"]["query"] for layer in sj.convert.unstack(stack, params)]
    for index, query in enumerate(queries):
        np.testing.assert_array_equal(query, own[str(index % 2)]["attention"]["query"][index // 2])


def test_the_wrong_number_of_layers():
    stack = sj.Stack.of(FULL, depth=3, d_model=8, recipe=sj.recipe.PreNorm())
    params = stack.init(jax.random.key(0))
    with pytest.raises(ValueError, match="has 3 layers; got 2"):
        sj.convert.restack(stack, sj.convert.unstack(stack, params)[:2], params)
