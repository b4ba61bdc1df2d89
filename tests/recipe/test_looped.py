"""One layer used over and over, under the recipes with a wider stream, a longer memory or a shorter training."""

import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily

RECIPES = {
    "hyper_connections": recipe.HyperConnections(),
    "manifold_hyper_connections": recipe.ManifoldHyperConnections(),
    "value_residual": recipe.ValueResidual(learned=True),
    "stochastic_depth": recipe.StochasticDepth(each="example"),
    "attention_residuals": recipe.AttentionResiduals(),
    "block_attention_residuals": recipe.AttentionResiduals(blocks=8),
    "ngpt": recipe.NGPT(),
}
LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=8)))


def gradients(stack, params, x, **options):
    """Loss and gradients of a stack, with all its randomness."""

    def loss(params, taps):
        y, _ = stack.apply(params, x, key=jax.random.key(2), taps=taps, **options)
        return jnp.mean(y**3)

    taps = jnp.zeros(stack.depth + 1)
    return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, taps)


@pytest.mark.thorough
@pytest.mark.parametrize("name", daily(RECIPES, "hyper_connections", "ngpt"))
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
