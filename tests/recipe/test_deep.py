"""A thousand layers of every recipe with a wider stream, a longer memory or a shorter training, and looped ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from tests.helpers import largest_difference, normal, perturbed

RECIPES = {
    "hyper_connections": recipe.HyperConnections(),
    "manifold_hyper_connections": recipe.ManifoldHyperConnections(),
    "value_residual": recipe.ValueResidual(learned=True),
    "stochastic_depth": recipe.StochasticDepth(each="example"),
    "dense_former": recipe.DenseFormer(),
    "dlcl": recipe.DLCL(),
    "attention_residuals": recipe.AttentionResiduals(),
    "block_attention_residuals": recipe.AttentionResiduals(blocks=8),
    "ngpt": recipe.NGPT(),
}
LAYER = sj.Layer(subs=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=8)))


def gradients(stack, params, x, **options):
    """Loss and gradients of a stack, with all its randomness."""

    def loss(params, taps):
        y, _ = stack.apply(params, x, key=jax.random.key(2), taps=taps, **options)
        return jnp.mean(y**3)

    taps = jnp.zeros(stack.depth + 1)
    return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, taps)


@pytest.mark.parametrize("name", RECIPES)
def test_a_thousand_layers_have_finite_gradients(name):
    stack = sj.Stack.of(LAYER, depth=1000, d_model=8, recipe=RECIPES[name])
    loss, (grads, taps) = gradients(stack, stack.init(jax.random.key(0)), normal(1, 4, 8), remat="layer")
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert (np.asarray(taps) > 0).all()


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("dense_former", "dlcl")])
def test_looped_layers_equal_layers_with_equal_parameters(name, x64):
    """One copy used 3 times is 3 equal copies, and its gradient is the sum of theirs."""
    shared, own = (
        sj.Stack.of(LAYER, depth=3, d_model=8, recipe=RECIPES[name], looped=looped) for looped in (True, False)
    )
    params = perturbed(shared.init(jax.random.key(0), jnp.float64))
    segments = jax.tree.map(lambda a: jnp.stack([a] * 3), params["segments"])
    x = normal(2, 4, 8)
    one = gradients(shared, params, x)
    three = gradients(own, {**params, "segments": segments}, x)
    summed = jax.tree.map(lambda a: a.sum(0), three[1][0]["segments"])
    assert largest_difference(one, (three[0], ({**three[1][0], "segments": summed}, three[1][1]))) < 1e-10
