"""DenseFormer and DLCL against their equations, and at their start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.recipe import DLCL, DenseFormer, HyperConnections, PlainResidual, PostNorm, PreNorm
from stackjax.testing import normal, perturbed
from tests.helpers import output
from tests.recipe.toy import layer_norm, numpy, toy, toy_run, toy_stack


def block(layer, x):
    """One pre-norm layer in NumPy."""
    for name in ("one", "two"):
        x = x + toy(layer, name, layer_norm(layer["residual"][name]["norm"], x))
    return x


@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_forward_is_the_papers(dilation, period, x64):
    """Y_i = sum_{j <= i, j = i mod k} a_ij X_j where p divides i, else X_i; X_{i+1} = B_{i+1}(Y_i); output Y_d."""
    layers, leave, x, y = toy_run(DenseFormer(dilation=dilation, period=period), depth=5)
    made, current = [x], x
    for i, layer in enumerate(layers, 1):
        made.append(block(layer, current))
        weights = layer["residual"]["outer"]["average"]
        current = made[i]
        if i % period == 0:
            current = sum(weights[j] * made[j] for j in range(i + 1) if (i - j) % dilation == 0)
    np.testing.assert_allclose(y, layer_norm(leave["norm"], current), rtol=0, atol=1e-12)


def test_dlcl_forward_is_the_papers(x64):
    layers, leave, x, y = toy_run(DLCL(), depth=4)
    stack = toy_stack(DLCL(), 4)
    params = perturbed(stack.init(jax.random.key(0), jnp.float64), size=0.3)
    current = layer_norm(numpy(params["enter"]["outer"]["norm"]), x)
    normed = [current]
    for l, layer in enumerate(layers):
        outer = layer["residual"]["outer"]
        normed.append(layer_norm(outer["norm"], block(layer, current)))
        current = sum(outer["average"][k] * normed[k] for k in range(l + 2))
    np.testing.assert_allclose(y, layer_norm(leave["norm"], current), rtol=0, atol=1e-12)


@pytest.mark.parametrize("base", [PreNorm(), PostNorm(), PlainResidual()], ids=lambda base: type(base).__name__)
def test_starts_as_its_base(base, x64):
    x = normal(2, 5, 8, key=1)
    outputs = [
        output(stack, stack.init(jax.random.key(0), jnp.float64), x)
        for stack in (toy_stack(base, 4), toy_stack(DenseFormer(base=base), 4))
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("depth", [1, 6])
def test_initial_weights(depth):
    for recipe, expected in (
        (DenseFormer(), np.eye(depth + 1)[1:]),
        (DLCL(), np.tril(np.ones((depth, depth + 1)), 1) / np.arange(2, depth + 2)[:, None]),
    ):
        params = toy_stack(recipe, depth).init(jax.random.key(0))
        weights = params["segments"]["0"]["0"]["residual"]["outer"]["average"]
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_impossible_combinations_are_refused():
    with pytest.raises(ValueError, match="looped stack shares them"):
        toy_stack(DenseFormer(), 4, looped=True)
    with pytest.raises(ValueError, match="one stream"):
        toy_stack(DenseFormer(base=HyperConnections()), 4)
    with pytest.raises(ValueError, match="at least 1"):
        DenseFormer(dilation=0)

    class Outer(PreNorm):
        def outer(self, layer, geometry):
            return sj.residual.Plain()

    with pytest.raises(ValueError, match="has one already"):
        toy_stack(DenseFormer(base=Outer()), 2)
