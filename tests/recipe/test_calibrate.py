"""Profiling before the first step: Admin's skip weights, and the singular vectors of sigma-reparametrisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.testing import largest_difference, normal
from tests.recipe.by_hand import attention, feed_forward, norm

D, DEPTH = 16, 5
SUBS = (sj.Attention(n_heads=2), sj.FeedForward(d_hidden=24, activation=sj.feed_forward.relu))
LAYER = sj.Layer(sublayers=SUBS)


def stack_of(rule, *layers, **options):
    return sj.Stack.of(*(layers or (LAYER,)), depth=DEPTH, d_model=D, recipe=rule, **options)


def weights_by_hand(layers, x):
    """w_1 = 1, w_s² = Var[x_0] + sum_{j < s} Var[f_j(x_{j-1})], profiled with all w = 1."""
    total, weights = x.var(), []
    for p in layers:
        for name, branch in (("attention", attention), ("feed_forward", feed_forward)):
            weights.append(np.sqrt(total) if weights else 1.0)
            y = branch(p[name], x)
            x = norm(p["residual"][name]["norm"], x + y)
            total = total + y.var()
    return np.array(weights).reshape(-1, 2)


def skip_weights(stack, params):
    return np.array(
        [[p["residual"][sublayer.name]["skip"] for sublayer in SUBS] for p in sj.convert.unstack(stack, params)]
    )


@pytest.mark.thorough
def test_admin_profiles_as_its_paper_says(x64):
    stack = stack_of(recipe.Admin())
    x = 3 * normal(2, 7, D, key=1)
    params = stack.init(jax.random.key(0), jnp.float64)
    calibrated = jax.jit(stack.calibrate)(params, x)
    expected = weights_by_hand(jax.tree.map(np.asarray, sj.convert.unstack(stack, params)), np.asarray(x))
    found = skip_weights(stack, calibrated)
    np.testing.assert_allclose(found, expected[..., None] * np.ones(D), rtol=1e-6)
    assert largest_difference(stack.calibrate(calibrated, x), calibrated) < 1e-12
    untouched = jax.tree.map(
        lambda d, a, b: np.array_equal(a, b) or d.name.endswith("/skip"),
        stack.declaration(),
        params,
        calibrated,
        is_leaf=sj.parameter.is_spec,
    )
    assert all(jax.tree.leaves(untouched))


@pytest.mark.thorough
def test_admin_on_segments_and_on_a_model(x64):
    """Layers of two kinds, scanned as a pattern, and a model's stack get what a single scan would."""
    window = sj.Layer(sublayers=(dataclasses.replace(SUBS[0], window=16), SUBS[1]))
    x = normal(2, 7, D, key=1)
    one, two = stack_of(recipe.Admin()), stack_of(recipe.Admin(), LAYER, window)
    assert len(two.segments) == 2
    params = one.init(jax.random.key(0), jnp.float64)
    layers = sj.convert.unstack(one, params)
    calibrated = two.calibrate(sj.convert.restack(two, layers, params), x)
    np.testing.assert_allclose(skip_weights(two, calibrated), skip_weights(one, one.calibrate(params, x)), rtol=1e-12)

    model = sj.decoder(vocab=11, d_model=D, depth=3, n_heads=2, recipe=recipe.Admin())
    params = model.init(jax.random.key(0), jnp.float64)
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 11)
    whole = model.calibrate(params, tokens, dtype=jnp.float64)
    x = model.embedding.apply(params["embedding"], tokens, dtype=jnp.float64)
    assert largest_difference(whole["stack"], model.stack.calibrate(params["stack"], x)) < 1e-12


def test_admin_evens_out_the_branches(x64):
    """After calibration each branch holds the share Var f_s / (w_s² + Var f_s) of its sum, which falls like 1/s."""
    stack = stack_of(recipe.Admin())
    x = normal(4, 16, D, key=1)
    params = stack.calibrate(stack.init(jax.random.key(0), jnp.float64), x)

    def share(trace):
        found = {}
        for name, seen in trace.intermediates.items():
            found[name] = jnp.var(seen["output"])
        return found

    variances = stack.apply(params, x, measure=share)[1].measure
    flat = np.stack([variances["attention"], variances["feed_forward"]], 1).reshape(-1)
    w = skip_weights(stack, params)[..., 0].reshape(-1)
    np.testing.assert_allclose(w[1:] ** 2, x.var() + np.cumsum(flat)[:-1], rtol=0.15)


@pytest.mark.thorough
def test_admin_in_an_encoder_decoder(x64):
    """The encoder as a stack of its own would be, then the decoder on what that encoder makes of the source."""
    model = sj.encoder_decoder(vocab=11, d_model=D, depth=2, encoder_depth=3, n_heads=2, recipe=recipe.Admin())
    params = model.init(jax.random.key(0), jnp.float64)
    source, tokens = (jax.random.randint(jax.random.key(i), (2, n), 0, 11) for i, n in ((1, 7), (2, 5)))
    where = {"index": jnp.arange(-2, 5)[None].clip(-1)}
    found = model.calibrate(params, source, tokens, sj.SideInputs(memory_position=where), dtype=jnp.float64)

    reader = dataclasses.replace(model.decoder, stack=model.encoder)
    own = {**params["decoder"], "stack": params["encoder"]}
    expected = reader.calibrate(own, source, sj.SideInputs(position=where), dtype=jnp.float64)["stack"]
    assert largest_difference(found["encoder"], expected) < 1e-12
    memory, _ = model.encode({**params, "encoder": expected}, source, sj.SideInputs(position=where), dtype=jnp.float64)
    side_inputs = sj.SideInputs(memory=memory, memory_position=where)
    written = model.decoder.calibrate(params["decoder"], tokens, side_inputs, dtype=jnp.float64)
    assert largest_difference(found["decoder"], written) < 1e-12
    assert largest_difference(written["stack"], params["decoder"]["stack"]) > 0.1


def test_admin_cannot_be_looped():
    stack = stack_of(recipe.Admin(), looped=True)
    with pytest.raises(ValueError, match="cannot share parameters"):
        stack.calibrate(stack.init(jax.random.key(0)), normal(2, 3, D))


@pytest.mark.parametrize("name", ["PreNorm", "DeepNorm", "CompleteP"])
def test_others_leave_parameters_alone(name):
    stack = stack_of(getattr(recipe, name)())
    params = stack.init(jax.random.key(0))
    assert stack.calibrate(params, normal(2, 3, D)) is params


@pytest.mark.parametrize("looped", [False, True])
def test_sigma_is_exact_after_calibration(looped, x64):
    stack = stack_of(recipe.SigmaReparam(), looped=looped)
    params = stack.init(jax.random.key(0), jnp.float64)
    calibrated = jax.jit(stack.calibrate)(params, normal(2, 3, D))
    for before, p in zip(sj.convert.unstack(stack, params), sj.convert.unstack(stack, calibrated), strict=True):
        for sublayer in SUBS:
            for name, beside in p[sublayer.name]["spectral"].items():
                weight, exact = p[sublayer.name][name], np.linalg.svd(p[sublayer.name][name])[1][0]
                sigma, vector = recipe.sigma_reparam.spectral_norm(weight, beside["vector"])
                np.testing.assert_allclose(sigma, exact, rtol=1e-9)
                np.testing.assert_allclose(vector, beside["vector"], atol=1e-9)
                rough, _ = recipe.sigma_reparam.spectral_norm(weight, before[sublayer.name]["spectral"][name]["vector"])
                assert rough < 0.99 * exact
