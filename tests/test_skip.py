"""Leaving layers out is the same as not having them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import largest_difference, perturbed
from tests.helpers import daily, output

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


@pytest.mark.parametrize("rule", daily(RECIPES, RECIPES[-1]), ids=lambda rule: type(rule).__name__)
def test_left_out_is_not_there(rule):
    model, params = model_and_params(rule, DEPTH)
    tokens = jnp.arange(10).reshape(2, 5)
    skipping = dataclasses.replace(model, stack=sj.skip.skippable(model.stack))
    assert jax.tree.structure(skipping.declaration()) == jax.tree.structure(model.declaration())

    @jax.jit
    def run(numbers):
        return skipping.apply(params, tokens, coefficients=sj.skip.keep(model.stack.coefficients(), numbers))[0]

    assert largest_difference(run(jnp.ones(DEPTH)), output(model, params, tokens)) < 1e-5
    for layers in ([0, 1, 3], [0, 1]):
        shallow, _ = model_and_params(rule, len(layers))
        expected = output(shallow, without(params, layers), tokens)
        numbers = jnp.isin(jnp.arange(DEPTH), jnp.array(layers)).astype(float)
        assert largest_difference(run(numbers), expected) < 1e-5


def test_the_numbers_are_data():
    model, params = model_and_params(sj.recipe.PreNorm(), DEPTH)
    tokens = jnp.arange(10).reshape(2, 5)
    skipping = dataclasses.replace(model, stack=sj.skip.skippable(model.stack))

    @jax.jit
    def losses(masks):
        def one(numbers):
            coefficients = sj.skip.keep(model.stack.coefficients(), numbers)
            return sj.loss.next_token(skipping.apply(params, tokens, coefficients=coefficients)[0], tokens)

        return jax.lax.map(one, masks)

    found = losses(1 - jnp.eye(DEPTH))
    assert found.shape == (DEPTH,) and len(set(np.asarray(found).tolist())) == DEPTH


@pytest.mark.parametrize("whole", daily(["model", "stack"], "model"))
def test_losses_without_each_layer(whole):
    model, params = model_and_params(sj.recipe.PreNorm(), DEPTH)
    tokens = jnp.arange(10).reshape(2, 5)
    batch = tokens if whole == "model" else jax.random.normal(jax.random.key(1), (2, 5, 16))

    def loss(y):
        return jnp.mean(y**2)

    for depth, layers in ((DEPTH, range(DEPTH)), *((DEPTH - 1, [m for m in range(DEPTH) if m != l]) for l in (0, 2))):
        own, _ = model_and_params(sj.recipe.PreNorm(), depth)
        kept = without(params, list(layers))
        expected = loss(
            output(own if whole == "model" else own.stack, kept if whole == "model" else kept["stack"], batch)
        )
        found = sj.skip.losses(
            model if whole == "model" else model.stack, params if whole == "model" else params["stack"], batch, loss
        )
        value = found[0] if depth == DEPTH else found[1][next(l for l in range(DEPTH) if l not in layers)]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert found[1].shape == (DEPTH,)
