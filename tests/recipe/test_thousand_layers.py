"""A thousand layers of every recipe: finite values and gradients at birth, in the compile time of a few."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from tests.helpers import normal
from tests.test_conformance import RECIPES

DEPTH = 1000
BEYOND_FLOAT32 = {"plain", "sigma_reparam", "shaped"}
"""Those that grow by a factor a layer: the control by sqrt(3), sigma-reparametrised weights without norms by a few
percent, shaped attention once the depth is far beyond the width."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_finite(name):
    layer = sj.Layer(subs=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=24)))
    stack = sj.Stack.of(layer, depth=DEPTH, d_model=16, recipe=RECIPES[name])
    x = normal(1, 16, 16, key=1)
    params = stack.calibrate(stack.init(jax.random.key(0)), x, remat="nested")

    @jax.jit
    def run(params):
        def loss(params):
            y, _ = stack.apply(params, x, remat="nested")
            return jnp.mean(y[..., 0]), y

        return jax.grad(loss, has_aux=True)(params)

    gradients, y = run(params)
    finite = all(np.isfinite(leaf).all() for leaf in (y, *jax.tree.leaves(gradients)))
    assert finite == (name not in BEYOND_FLOAT32)
