"""Normalisation: parity with the papers' formulas, and who may influence whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import norm
from stackjax.testing import normal, perturbed

D = 8


def as_numpy(params):
    return {name: np.asarray(value, np.float64) for name, value in params.items()}


def numpy_layer_norm(p, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def numpy_rms_norm(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def numpy_dynamic_tanh(p, x):
    return p["scale"] * np.tanh(p["alpha"] * x) + p["bias"]


def numpy_batch_norm(p, x):
    rows = x.reshape(-1, x.shape[-1])
    return (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * p["scale"] + p["bias"]


NORMS = {
    "layer": (sj.LayerNorm(), numpy_layer_norm),
    "rms": (sj.RMSNorm(), numpy_rms_norm),
    "tanh": (sj.DynamicTanh(alpha=0.7), numpy_dynamic_tanh),
    "batch": (sj.BatchNorm(), numpy_batch_norm),
    "none": (sj.NoNorm(), lambda p, x: x),
}
BY_TOKEN = ["layer", "rms", "tanh", "none"]


def drawn(kind, dtype=jnp.float32):
    specs = kind.spec(D)
    params = {name: spec.init(jax.random.key(0), spec.shape, 0).astype(dtype) for name, spec in specs.items()}
    return perturbed(params, size=0.3)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 4, 3, D)])
def test_parity(x64, name, shape):
    if name == "batch" and len(shape) == 1:
        pytest.skip("one vector has no batch")
    kind, reference = NORMS[name]
    params = drawn(kind, jnp.float64)
    x = 3 * normal(*shape) + 1
    np.testing.assert_allclose(
        kind.apply(params, x), reference(as_numpy(params), np.asarray(x)), rtol=1e-12, atol=1e-12
    )


def test_scale_and_bias_are_optional(x64):
    x = normal(3, D)
    bare = sj.LayerNorm(scale=False, bias=False)
    assert bare.spec(D) == {} and sj.RMSNorm(scale=False).spec(D) == {}
    assert set(sj.LayerNorm(bias=False).spec(D)) == {"scale"}
    ones, zeros = np.ones(D), np.zeros(D)
    np.testing.assert_allclose(
        bare.apply({}, x), numpy_layer_norm({"scale": ones, "bias": zeros}, np.asarray(x)), rtol=1e-12
    )
    np.testing.assert_allclose(
        sj.RMSNorm(scale=False).apply({}, x), numpy_rms_norm({"scale": ones}, np.asarray(x)), rtol=1e-12
    )


@pytest.mark.parametrize("name", BY_TOKEN)
def test_no_other_token_or_example_matters(name):
    kind, _ = NORMS[name]
    params, x = drawn(kind), normal(2, 3, D)
    changed = x.at[0, 1].set(1e6).at[1].set(-5.0)
    before, after = kind.apply(params, x), kind.apply(params, changed)
    assert np.array_equal(before[0, 0], after[0, 0]) and np.array_equal(before[0, 2], after[0, 2])


def test_batch_norm_mixes_examples():
    params, x = drawn(sj.BatchNorm()), normal(2, 3, D)
    before, after = (sj.BatchNorm().apply(params, y) for y in (x, x.at[1].add(1.0)))
    assert not np.allclose(before[0], after[0])


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_scale_invariance(x64, name):
    kind = dataclasses.replace(NORMS[name][0], eps=0.0)
    params, x = drawn(kind, jnp.float64), normal(3, D)
    np.testing.assert_allclose(kind.apply(params, 1e4 * x), kind.apply(params, x), rtol=1e-12)
    if name == "layer":
        np.testing.assert_allclose(kind.apply(params, x + 3), kind.apply(params, x), rtol=1e-10)


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_gradient_is_orthogonal_to_x(x64, name):
    """A function that ignores the length of x has a gradient without a component along x."""
    kind = dataclasses.replace(NORMS[name][0], eps=0.0)
    params, x, c = drawn(kind, jnp.float64), normal(5, D), normal(5, D, key=1)
    gradient = jax.grad(lambda x: jnp.sum(c * kind.apply(params, x)))(x)
    assert np.abs(np.sum(gradient * x, -1)).max() < 1e-12 < np.abs(gradient).max()


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_low_precision_in_and_out_but_not_inside(name, dtype):
    kind, reference = NORMS[name]
    params, x = drawn(kind), (100 * normal(4, D)).astype(dtype)
    y = kind.apply(params, x)
    assert y.dtype == dtype
    expected = reference(as_numpy(params), np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-6)


@pytest.mark.parametrize("kind", [sj.LayerNorm(), sj.RMSNorm()])
def test_float16_does_not_overflow_in_the_squares(kind):
    x = jnp.full((2, D), 3e4, jnp.float16).at[:, 0].set(-3e4)
    assert np.isfinite(np.asarray(kind.apply(drawn(kind), x), np.float32)).all()


def test_batch_norm_running_statistics(x64):
    params, x = drawn(sj.BatchNorm(), jnp.float64), normal(4, 3, D)
    _, new = norm.batch_norm(params, x, training=True, momentum=0.25)
    rows = np.asarray(x).reshape(-1, D)
    np.testing.assert_allclose(new["mean"], 0.75 * params["mean"] + 0.25 * rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(new["variance"], 0.75 * params["variance"] + 0.25 * rows.var(0), rtol=1e-12)
    running = {**params, "variance": jnp.abs(params["variance"])}
    y, same = norm.batch_norm(running, x, training=False)
    expected = (np.asarray(x) - running["mean"]) / np.sqrt(running["variance"] + 1e-5) * params["scale"] + params[
        "bias"
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert np.array_equal(same["mean"], running["mean"])


def test_batch_norm_statistics_pass_no_gradient():
    params, x = drawn(sj.BatchNorm()), normal(4, D)
    gradient = jax.grad(lambda x: jnp.sum(sj.BatchNorm().state(params, x)["variance"]))(x)
    assert not np.any(gradient)


def test_running_statistics_are_refused_where_nothing_carries_them():
    for make in (
        lambda: sj.FeedForward(inner_norm=sj.BatchNorm()),
        lambda: sj.Attention(n_heads=2, qk_norm=sj.BatchNorm()),
        lambda: sj.Attention(n_heads=2, inner_norm=sj.BatchNorm()),
        lambda: sj.Embedding(vocab=3, norm=sj.BatchNorm()),
        lambda: sj.Attention(n_heads=2, value_norm=sj.BatchNorm()),
    ):
        with pytest.raises(ValueError, match="running statistics"):
            make()
