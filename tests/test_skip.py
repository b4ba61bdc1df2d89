"""Leaving layers out is the same as not having them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from tests.helpers import largest_difference, perturbed

RECIPES = [sj.recipe.PreNorm(), sj.recipe.PostNorm(), sj.recipe.HyperConnections()]
DEPTH = 4


def model_and_params(rule, depth):
    forward = sj.FeedForward(d_hidden=24)
    model = sj.decoder(vocab=11, d_model=16, depth=depth, n_heads=2, recipe=rule, feed_forward=forward)
    return model, perturbed(model.init(jax.random.key(0)))


def without(params, layers):
    """The parameters of a shallower model."""
    own = params["stack"]["segments"]["0"]["0"]
    kept = jax.tree.map(lambda leaf: leaf[np.array(layers)], own)
    return {**params, "stack": {**params["stack"], "segments": {"0": {"0": kept}}}}


@pytest.mark.parametrize("rule", RECIPES, ids=lambda rule: type(rule).__name__)
def test_left_out_is_not_there(rule):
    model, params = model_and_params(rule, DEPTH)
    tokens = jnp.arange(10).reshape(2, 5)
    skipping = dataclasses.replace(model, stack=sj.skip.skippable(model.stack))
    assert jax.tree.structure(skipping.declaration()) == jax.tree.structure(model.declaration())

    @jax.jit
    def run(numbers):
        return skipping.apply(params, tokens, schedule=sj.skip.keep(model.stack.schedule(), numbers))[0]

    assert largest_difference(run(jnp.ones(DEPTH)), model.apply(params, tokens)[0]) < 1e-5
    for layers in ([0, 1, 3], [0, 1]):
        shallow, _ = model_and_params(rule, len(layers))
        expected, _ = shallow.apply(without(params, layers), tokens)
        numbers = jnp.isin(jnp.arange(DEPTH), jnp.array(layers)).astype(float)
        assert largest_difference(run(numbers), expected) < 1e-5


def test_the_numbers_are_data():
    model, params = model_and_params(sj.recipe.PreNorm(), DEPTH)
    tokens = jnp.arange(10).reshape(2, 5)
    skipping = dataclasses.replace(model, stack=sj.skip.skippable(model.stack))

    @jax.jit
    def losses(masks):
        def one(numbers):
            schedule = sj.skip.keep(model.stack.schedule(), numbers)
            return sj.loss.next_token(skipping.apply(params, tokens, schedule=schedule)[0], tokens)

        return jax.lax.map(one, masks)

    found = losses(1 - jnp.eye(DEPTH))
    assert found.shape == (DEPTH,) and len(set(np.asarray(found).tolist())) == DEPTH
