"""Statistics: what a forward pass returns as state ends in the parameters, and only there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.recipe import residual
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily, output

D, DEPTH = 16, 3
NORM = sj.BatchNorm(momentum=0.5)
FORMS = {
    "pre": residual.Pre(norm=NORM),
    "post": residual.Post(norm=NORM),
    "pre_post": residual.PrePost(norm=NORM),
    "branch": residual.BranchNormed(norm=NORM),
    "skip": residual.SkipNormed(norm=NORM),
    "peri": residual.Sandwich(norm=NORM, embedding=True),
    "gated": recipe.gate.FeatureGated(norm=NORM),
    "admin": recipe.admin.SkipWeighted(norm=NORM),
    "two_streams": recipe.two_streams.TwoStreams(norm=NORM),
}


def stack_of(form, **options):
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=24)))
    return sj.Stack.of(layer, depth=DEPTH, d_model=D, recipe=recipe.PreNorm(residual=form), **options)


def statistics(stack, tree):
    """{path: leaf} of the parameters of role `statistic`."""
    declared = jax.tree_util.tree_leaves_with_path(stack.declaration(), is_leaf=sj.parameter.is_spec)
    return {
        sj.parameter.path_name(path): leaf
        for (path, d), leaf in zip(declared, jax.tree.leaves(tree), strict=True)
        if d.spec.role == "statistic"
    }


@pytest.mark.parametrize("name", daily(FORMS, "pre", "peri", "admin"))
def test_every_norm_of_every_form_is_tracked(name):
    """Momentum 1/2 a few times over: at rest, evaluation with running statistics equals the batch's own."""
    stack = stack_of(FORMS[name])
    params = perturbed(stack.init(jax.random.key(0)), size=0.02)
    x = normal(4, 5, D, key=1) + 0.5
    before = statistics(stack, params)

    @jax.jit
    def step(params):
        y, result = stack.apply(params, x)
        return y, stack.update_statistics(params, result.state)

    for _ in range(30):
        y, params = step(params)
    after = statistics(stack, params)
    assert before.keys() == after.keys() and len(after) >= 4
    assert all(np.abs(after[path] - before[path]).max() > 1e-3 for path in after)
    frozen = stack_of(dataclasses.replace(FORMS[name], norm=dataclasses.replace(NORM, training=False)))
    np.testing.assert_allclose(output(frozen, params, x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sj.FeedForward(inner_norm=NORM),
        lambda: sj.Attention(n_heads=2, qk_norm=NORM),
        lambda: sj.Attention(n_heads=2, value_norm=NORM),
        lambda: sj.Attention(n_heads=2, inner_norm=NORM),
        lambda: sj.Embedding(vocab=3, norm=NORM),
        lambda: sj.decoder(depth=1, recipe=recipe.SubNorm(norm=NORM)),
    ],
)
def test_batch_norm_is_refused_where_it_would_not_be_updated(make):
    with pytest.raises(ValueError, match="running statistics"):
        make()


def test_only_statistics_change(x64):
    stack = stack_of(FORMS["pre"])
    params = perturbed(stack.init(jax.random.key(0), jnp.float64))
    new = stack.update_statistics(params, stack.apply(params, normal(2, 5, D))[1].state)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    changed = jax.tree.map(
        lambda d, a, b: (d.spec.role == "statistic") == bool((a != b).any()),
        stack.declaration(),
        params,
        new,
        is_leaf=sj.parameter.is_spec,
    )
    assert all(jax.tree.leaves(changed))


def test_a_stack_without_statistics_keeps_its_parameters():
    stack = stack_of(residual.Pre())
    params = stack.init(jax.random.key(0))
    assert (
        largest_difference(stack.update_statistics(params, stack.apply(params, normal(2, 5, D))[1].state), params) == 0
    )


def test_looped_layers_keep_the_mean(x64):
    stack = stack_of(FORMS["pre"], looped=True)
    params = perturbed(stack.init(jax.random.key(0), jnp.float64), size=0.02)
    state = stack.apply(params, normal(2, 5, D))[1].state
    found = state["0"]["0"]["attention"]["residual"]["norm"]["mean"]
    assert found.shape == (DEPTH, D)
    new = stack.update_statistics(params, state)["segments"]["0"]["0"]["residual"]["attention"]["norm"]["mean"]
    np.testing.assert_allclose(new, found.mean(0), rtol=1e-12)


def test_power_iteration_goes_on_from_call_to_call():
    """A few steps of training from a cold start, then forward passes alone: each sigma becomes the spectral norm."""
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=24)))
    stack = sj.Stack.of(layer, depth=2, d_model=D, recipe=recipe.SigmaReparam())
    optimiser = sj.optim.adamw(stack, learning_rate=1e-3)
    x, target = normal(4, 12, D, key=1), normal(4, 12, D, key=2)

    def loss(params):
        y, result = stack.apply(params, x)
        return jnp.mean(jnp.square(y - target)), result.state

    def step(carry, moves):
        params, state = carry
        (value, seen), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimiser.update(gradients, state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: moves * u, updates))
        return (stack.update_statistics(params, seen), state), value

    cold = stack.init(jax.random.key(0))
    moves = jnp.arange(80) < 20
    (params, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, moves))((cold, optimiser.init(cold)))
    assert losses[20] < losses[0]
    for p in sj.convert.unstack(stack, params):
        for sublayer in ("attention", "feed_forward"):
            for name, beside in p[sublayer]["spectral"].items():
                sigma, _ = recipe.sigma_reparam.spectral_norm(p[sublayer][name], beside["vector"])
                np.testing.assert_allclose(sigma, np.linalg.norm(p[sublayer][name], 2), rtol=1e-2)


def test_the_gradient_of_sigma_is_that_of_the_spectral_norm(x64):
    weight = normal(6, 9, key=3)
    left = jnp.linalg.svd(weight)[0][:, 0]
    ours = jax.grad(lambda w: recipe.sigma_reparam.spectral_norm(w, left)[0])(weight)
    theirs = jax.grad(lambda w: jnp.linalg.norm(w, 2))(weight)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
