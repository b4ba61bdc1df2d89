"""The feed-forward network against NumPy, and its promise to look at one token at a time."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import feed_forward
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily

D, F = 6, 10
erf = np.vectorize(math.erf)

ACTIVATIONS = {
    feed_forward.relu: lambda x: np.maximum(x, 0),
    feed_forward.squared_relu: lambda x: np.maximum(x, 0) ** 2,
    feed_forward.gelu: lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    feed_forward.gelu_tanh: lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    feed_forward.silu: lambda x: x / (1 + np.exp(-x)),
    feed_forward.identity: lambda x: x,
}


def drawn(sublayer):
    specs = sj.parameter.declare(sublayer.spec(D))
    return perturbed(sj.parameter.realise(jax.random.key(0), specs, dtype=jnp.result_type(float)))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda f: f.__name__)
def test_parity(x64, activation, gated):
    sublayer = sj.FeedForward(d_hidden=F, activation=activation, gated=gated, bias=True, inner_norm=sj.RMSNorm())
    params, x = drawn(sublayer), normal(2, 3, D)
    p, h = jax.tree.map(np.asarray, params), np.asarray(x)
    up = h @ p["up"] + p["up_bias"]
    hidden = ACTIVATIONS[activation](h @ p["gate"] + p["gate_bias"]) * up if gated else ACTIVATIONS[activation](up)
    hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6) * p["inner_norm"]["scale"]
    expected = hidden @ p["down"] + p["down_bias"]
    np.testing.assert_allclose(sublayer.apply(params, x, sj.SideInputs())[0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("d_model", "gated", "width"), [(16, False, 64), (12, True, 32), (16, True, 48), (768, True, 2048)]
)
def test_default_width(d_model, gated, width):
    assert sj.FeedForward(gated=gated).width(d_model) == width


@pytest.mark.parametrize("shape", [(D,), (4, D), (2, 3, 4, D)])
def test_leading_axes(shape):
    sublayer = sj.FeedForward(d_hidden=F, gated=True)
    params, x = drawn(sublayer), normal(*shape)
    rows = jnp.stack([sublayer.apply(params, row, sj.SideInputs())[0] for row in x.reshape(-1, D)])
    np.testing.assert_allclose(sublayer.apply(params, x, sj.SideInputs())[0].reshape(-1, D), rows, rtol=1e-5, atol=1e-6)


def test_one_token_at_a_time():
    sublayer = sj.FeedForward(d_hidden=F)
    params, x = drawn(sublayer), normal(3, D)
    jacobian = jax.jacobian(lambda x: sublayer.apply(params, x, sj.SideInputs())[0])(x)
    for t, s in ((0, 1), (1, 0), (2, 1)):
        assert not np.any(jacobian[t, :, s])
    assert np.any(jacobian[1, :, 1])


def test_dropout_needs_a_key_and_keeps_the_mean():
    sublayer = sj.FeedForward(d_hidden=F, dropout=0.25)
    params, x = drawn(sublayer), normal(2000, D)
    clean, _ = sublayer.apply(params, x, sj.SideInputs())
    noisy, _ = sublayer.apply(params, x, sj.SideInputs(key=jax.random.key(0)))
    dropped = np.asarray(noisy == 0)
    np.testing.assert_allclose(dropped.mean(), 0.25, atol=0.02)
    np.testing.assert_allclose(np.asarray(noisy)[~dropped], np.asarray(clean)[~dropped] / 0.75, rtol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_is_a_probability_below_one(rate):
    with pytest.raises(ValueError, match="dropout"):
        sj.FeedForward(dropout=rate)
    with pytest.raises(ValueError, match="dropout"):
        sj.Attention(n_heads=2, dropout=rate)


@pytest.mark.parametrize("axes", daily([1, 2, 3], 2))
@pytest.mark.parametrize("gated", [False, True])
def test_in_blocks_it_is_the_same(axes, gated, x64):
    shape = (2, 3, 11, D)[-axes - 1 :] if axes > 1 else (11, D)
    whole = sj.FeedForward(d_hidden=F, gated=gated, bias=True, inner_norm=sj.RMSNorm())
    params, x, weights = drawn(whole), normal(*shape), normal(*shape, key=1)

    def run(sublayer):
        def total(params, x):
            return jnp.sum(weights * sublayer.apply(params, x, sj.SideInputs())[0])

        return jax.jit(jax.value_and_grad(total, (0, 1)))(params, x)

    expected = run(whole)
    for block in (1, 4, 11, 20):
        assert largest_difference(run(dataclasses.replace(whole, block=block)), expected) < 1e-15 * F * 66


def test_a_block_bounds_the_hidden_layer_that_is_kept():
    def temporary_bytes(block):
        sublayer = sj.FeedForward(d_hidden=1024, block=block)
        params = jax.eval_shape(lambda: sj.parameter.realise(jax.random.key(0), sj.parameter.declare(sublayer.spec(8))))
        x = jax.ShapeDtypeStruct((2, 2048, 8), jnp.float32)
        gradient = jax.grad(lambda params, x: jnp.sum(sublayer.apply(params, x, sj.SideInputs())[0] ** 2), (0, 1))
        return jax.jit(gradient).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(64) < temporary_bytes(None) / 8


def test_a_block_has_a_token():
    with pytest.raises(ValueError, match="block must be positive"):
        sj.FeedForward(block=0)
