"""Hyper-connections against their equations, and at their start."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.recipe.hyper_connections import HyperConnected
from stackjax.testing import normal
from tests.helpers import output
from tests.recipe.toy import layer_norm, numpy, toy, toy_run, toy_stack

STATIC = sj.recipe.HyperConnections(residual=HyperConnected(dynamic=False))
DYNAMIC = sj.recipe.HyperConnections(residual=HyperConnected(n=3))


def weights(p, h):
    """A_r (N, N), A_m (N,), b (N,) of one token, h (N, D): eq. (10) to (13), arXiv:2409.19606."""
    mix, read, write = p["mix"], p["read"], p["write"]
    if "dynamic" in p:
        own = p["dynamic"]
        normed = layer_norm(own["norm"], h)
        mix = own["read_scale"] * np.tanh(normed @ own["mix"]) + mix
        read = own["read_scale"] * np.tanh(normed @ own["read"]) + read
        write = own["write_scale"] * np.tanh(normed @ own["write"]) + write
    return mix, read, write


@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_forward_is_the_papers(recipe, x64):
    layers, leave, x, y = toy_run(recipe)
    n = recipe.residual.n
    for b, t in np.ndindex(2, 5):
        h = np.tile(x[b, t], (n, 1))
        for layer in layers:
            for name in ("one", "two"):
                p = layer["residual"][name]
                mix, read, write = weights(p, h)
                branch = toy(layer, name, layer_norm(p["norm"], read @ h))
                h = mix.T @ h + np.outer(write, branch)
        np.testing.assert_allclose(y[b, t], layer_norm(leave["norm"], h.sum(0)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_starts_as_pre_norm(recipe, x64):
    stack, plain = toy_stack(recipe, 3), toy_stack(sj.recipe.PreNorm(), 3)
    params, reference = (s.init(jax.random.key(0), jnp.float64) for s in (stack, plain))
    x = normal(2, 5, 8, key=1)
    # Layer norm forgets the factor N of the sum, up to its eps.
    np.testing.assert_allclose(output(stack, params, x), output(plain, reference, x), atol=2e-5)


def test_sublayers_read_one_stream_after_the_other():
    stack = toy_stack(STATIC, 3)
    layers = [numpy(p) for p in sj.convert.unstack(stack, stack.init(jax.random.key(0)))]
    lanes = [int(p["residual"][name]["read"].argmax()) for p in layers for name in ("one", "two")]
    assert lanes == [0, 1, 2, 3, 0, 1]


def test_decay_reaches_the_dynamic_weights_alone():
    stack = toy_stack(DYNAMIC, 2)
    params = jax.tree.map(jnp.ones_like, stack.init(jax.random.key(0)))
    optimiser = sj.optim.adamw(stack, learning_rate=1.0, weight_decay=0.5)
    updates, _ = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    form = updates["segments"]["0"]["0"]["residual"]["one"]
    dynamic = form.pop("dynamic")
    for name in ("mix", "read", "write"):
        np.testing.assert_allclose(dynamic[name], -0.5, rtol=1e-6)
        np.testing.assert_array_equal(form[name], 0)


def test_streams_of_different_number_do_not_meet():
    class Mixed(sj.recipe.HyperConnections):
        def form(self, sublayer, slot, layer, geometry):
            return replace(super().form(sublayer, slot, layer, geometry), n=2 + layer)

    with pytest.raises(ValueError, match="different streams"):
        toy_stack(Mixed(), 2)
