"""A thousand layers of every recipe: finite values and gradients at birth, or a name on the list of those without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import normal
from tests.cases import RECIPES

DEPTH = 1000
LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=24)))

BEYOND_FLOAT32 = {"plain", "sigma_reparam", "shaped"}
"""Those that grow by a factor a layer: the control by sqrt(3), sigma-reparametrised weights without norms by a few
percent, shaped attention once the depth is far beyond the width."""

VANISHES = {"no_residual"}
"""Those whose gradient is gone, in float32, before it reaches the first layer: the control."""

SAMPLE = {"deepnorm": (), "hyper_connections": pytest.mark.thorough, "plain": pytest.mark.thorough}
"""One that is run every time, and two with `-m thorough`; all the others with `-m slow`."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=SAMPLE.get(name, pytest.mark.slow)) for name in RECIPES])
def test_a_thousand_layers(name):
    stack = sj.Stack.of(LAYER, depth=DEPTH, d_model=16, recipe=RECIPES[name])
    x = normal(1, 8, 16, key=1)
    params = stack.calibrate(stack.init(jax.random.key(0)), x, remat="nested")

    @jax.jit
    def run(params):
        def loss(params, taps):
            y, _ = stack.apply(params, x, key=jax.random.key(2), taps=taps, remat="nested")
            return jnp.mean(y[..., 0] ** 3), y

        return jax.grad(loss, (0, 1), has_aux=True)(params, jnp.zeros(DEPTH + 1))

    (gradients, squares), y = run(params)
    finite = all(np.isfinite(leaf).all() for leaf in (y, squares, *jax.tree.leaves(gradients)))
    assert finite == (name not in BEYOND_FLOAT32)
    if finite:
        assert (np.asarray(squares)[0] > 0) == (name not in VANISHES), "what reaches the first layer"
