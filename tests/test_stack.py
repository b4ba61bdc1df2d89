"""The stack: however it is run, the same numbers; whatever its depth, the same program."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.recipe.base import with_coefficients
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily, output

D, T = 16, 5
LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2, position=sj.position.Rotary()), sj.FeedForward(d_hidden=24)))
LOCAL = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=2), sj.FeedForward(d_hidden=24)))
FORWARD = sj.Layer(sublayers=(sj.FeedForward(d_hidden=8),))


def stack(*layers, depth, recipe=sj.recipe.PreNorm(), **options):
    return sj.Stack.of(*(layers or (LAYER,)), depth=depth, d_model=D, recipe=recipe, **options)


def drawn(stack, dtype=jnp.float64, key=0):
    return perturbed(stack.init(jax.random.key(key), dtype))


WAYS = (
    {"loop": True},
    {},
    {"unroll": 2},
    {"remat": "layer"},
    {"remat": "nested"},
    {"remat": jax.checkpoint_policies.save_only_these_names("attention_heads", "feed_forward_hidden")},
    {"remat": "nested", "loop": True},
)


@pytest.mark.parametrize("depth", daily([0, 1, 2, 6, 7], 0, 6))
def test_every_way_to_run_it_is_the_same(x64, depth):
    """With a cheap layer; the conformance test does it with every kind."""
    deep = stack(FORWARD, depth=depth)
    params, x, weights = drawn(deep), normal(2, T, D), normal(2, T, D, key=1)

    def loss(params, x, taps, way):
        y, result = deep.apply(params, x, taps=taps, measure=sj.probe.stream, key=jax.random.key(2), **way)
        return jnp.sum(weights * y), (y, result.measure)

    def run(params, x, way):
        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, jnp.zeros(depth + 1), way)

    reference, *others = jax.jit(lambda *inputs: [run(*inputs, way) for way in WAYS])(params, x)
    for way, other in zip(WAYS[1:], others, strict=True):
        assert largest_difference(other, reference) < 1e-10, way


def test_jit_and_no_jit_are_the_same(x64):
    deep = stack(depth=2)
    params, x = drawn(deep), normal(2, T, D)
    assert largest_difference(deep.apply(params, x)[0], jax.jit(deep.apply)(params, x)[0]) < 1e-12


def test_depth_zero_is_the_final_norm(x64):
    deep = stack(depth=0)
    params, x = drawn(deep), normal(2, T, D)
    np.testing.assert_array_equal(output(deep, params, x), sj.norm.layer_norm(params["leave"]["inner"]["norm"], x))


def test_a_stack_is_its_layers_one_after_another(x64):
    """Pre-norm by hand, from the public pure functions."""
    deep = stack(depth=3)
    params, x = drawn(deep), normal(2, T, D)
    attention, forward = LAYER.sublayers
    h = x
    for own in sj.convert.unstack(deep, params):
        for sublayer in (attention, forward):
            normed = sj.norm.layer_norm(own["residual"][sublayer.name]["norm"], h)
            h = h + sublayer.apply(own[sublayer.name], normed, sj.SideInputs())[0]
    expected = sj.norm.layer_norm(params["leave"]["inner"]["norm"], h)
    np.testing.assert_allclose(output(deep, params, x), expected, rtol=1e-10, atol=1e-12)


def test_lanes_equal_single_runs(x64):
    """A vmap over residual multipliers and seeds."""
    deep = stack(FORWARD, depth=6, recipe=sj.recipe.PostNorm())
    alphas, keys, x = jnp.array([0.5, 1.0, 3.0]), jax.random.split(jax.random.key(0), 3), normal(2, T, D)

    @jax.jit
    def run(alpha, key):
        params = deep.init(key, jnp.float64)

        def loss(params):
            coefficients = with_coefficients(deep.coefficients(), alpha=alpha)
            return jnp.sum(deep.apply(params, x, coefficients=coefficients, remat="nested")[0][..., 0])

        return jax.value_and_grad(loss)(params)

    lanes = jax.jit(jax.vmap(run))(alphas, keys)
    for i in range(3):
        assert largest_difference(jax.tree.map(lambda a, i=i: a[i], lanes), run(alphas[i], keys[i])) < 1e-10


def test_seed_lanes_draw_the_same_bits():
    deep, keys = stack(depth=2), jax.random.split(jax.random.key(0), 2)
    lanes = jax.vmap(deep.init)(keys)
    for i, key in enumerate(keys):
        single = jax.tree.leaves(deep.init(key))
        assert all(np.array_equal(lane[i], own) for lane, own in zip(jax.tree.leaves(lanes), single, strict=True))


def test_every_leading_axis(x64):
    deep = stack(depth=2)
    params, x = drawn(deep), normal(2, 3, T, D)
    y = output(deep, params, x)
    assert y.shape == x.shape
    np.testing.assert_allclose(y[1, 2], output(deep, params, x[1, 2]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_in_is_dtype_out(dtype):
    deep = stack(depth=2, recipe=sj.recipe.DeepNorm())
    y, result = jax.jit(lambda p, x: deep.apply(p, x, measure=sj.probe.standard))(
        deep.init(jax.random.key(0)), normal(2, T, D, dtype=dtype)
    )
    assert y.dtype == dtype and {x.dtype for x in result.measure.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.thorough
def test_measures_come_in_the_order_of_the_layers(x64):
    """Segments of different patterns, and NaN where a layer has no attention."""
    layers = [LAYER, LOCAL, LAYER, LOCAL, FORWARD, FORWARD, FORWARD, LAYER]
    deep = stack(*layers, depth=8)
    assert [(segment.n, len(segment.layers)) for segment in deep.segments] == [(2, 2), (3, 1), (1, 1)]
    params, x = drawn(deep), normal(2, T, D)
    _, result = jax.jit(lambda p, x: deep.apply(p, x, measure=sj.probe.standard))(params, x)
    singles = {layer: stack(layer, depth=1) for layer in (LAYER, LOCAL, FORWARD)}

    @partial(jax.jit, static_argnums=0)
    def through(one, params, x):
        return one.apply(params, x, measure=lambda trace: {"after": trace.after})[1].measure["after"][0]

    rms, h = [], x
    for layer, own in zip(layers, sj.convert.unstack(deep, params), strict=True):
        one = singles[layer]
        h = through(one, sj.convert.restack(one, [own], params), h)
        rms.append(np.sqrt(np.mean(np.square(h))))
    np.testing.assert_allclose(result.measure["stream_rms"], rms, rtol=1e-9)
    missing = np.isnan(result.measure["attention_entropy/attention"])
    assert list(missing) == [i in (4, 5, 6) for i in range(8)]


def test_dropout_needs_a_key_and_differs_by_layer_and_sublayer():
    sublayers = tuple(dataclasses.replace(sublayer, dropout=0.5) for sublayer in LAYER.sublayers)
    deep = stack(sj.Layer(sublayers=sublayers), depth=3)
    params, x = deep.init(jax.random.key(0)), normal(2, T, D)

    def dropped(trace):
        return {name: seen["output"] == 0 for name, seen in trace.intermediates.items()}

    run = jax.jit(lambda key: deep.apply(params, x, key=key, measure=dropped))
    (y, result), (again, _), (other, _) = (run(jax.random.key(i)) for i in (1, 1, 2))
    assert np.array_equal(y, again) and not np.allclose(y, other)
    masks = [np.asarray(mask[layer]) for mask in result.measure.values() for layer in range(3)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)
    clean = output(deep, params, x)
    np.testing.assert_array_equal(clean, output(stack(depth=3), params, x))


def test_probes_and_taps_agree_on_a_stream_of_several_arrays(x64):
    deep = stack(depth=3, recipe=sj.recipe.HyperConnections())
    params, x, weights = drawn(deep), normal(2, T, D), normal(2, T, D, key=1)
    stream = jax.eval_shape(deep.enter, params, x)
    perturbations = jax.tree.map(lambda s: jnp.zeros((3, *s.shape), s.dtype), stream)

    def loss(perturbations, taps):
        return jnp.sum(weights * deep.apply(params, x, perturbations=perturbations, taps=taps)[0])

    full, squares = jax.jit(jax.grad(loss, (0, 1)))(perturbations, jnp.zeros(4))
    np.testing.assert_allclose(squares[:-1], jnp.sum(full**2, (1, 2, 3, 4)), rtol=1e-12)


def test_state_of_batch_norm_and_its_way_back():
    norm = sj.BatchNorm(momentum=1.0)
    pre, post, sandwich = (form(norm=norm) for form in (sj.residual.Pre, sj.residual.Post, sj.residual.Sandwich))
    for form, looped in ((pre, False), (pre, True), (post, False), (sandwich, False)):
        deep = stack(FORWARD, depth=3, recipe=sj.recipe.PreNorm(residual=form), looped=looped)
        params, x = deep.init(jax.random.key(0)), normal(4, T, D)
        y, result = jax.jit(deep.apply)(params, x)
        new = deep.update_statistics(params, result.state)
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), new, params)
        expected = jax.tree.map(lambda d: d.spec.role == "statistic", deep.declaration(), is_leaf=sj.parameter.is_spec)
        assert changed == expected, form
        if not looped:
            # With momentum 1 the running statistics are the batch's, so evaluation repeats training.
            frozen = dataclasses.replace(form, norm=dataclasses.replace(norm, training=False))
            deep = stack(FORWARD, depth=3, recipe=sj.recipe.PreNorm(residual=frozen))
            np.testing.assert_allclose(jax.jit(deep.apply)(new, x)[0], y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ((), {"depth": 3}, "at least one layer"),
        ((LAYER,), {"depth": -1}, "depth must be 0 or more; got -1"),
        ((LAYER, LOCAL), {"depth": 3, "looped": True}, "whole patterns; got depth=3, pattern=2"),
    ],
)
def test_mistakes(layers, options, message):
    with pytest.raises(ValueError, match=message):
        sj.Stack.of(*layers, d_model=D, recipe=sj.recipe.PreNorm(), **options)
    with pytest.raises(ValueError, match="d_model must be 1 or more"):
        sj.Stack.of(LAYER, depth=1, d_model=0, recipe=sj.recipe.PreNorm())
    with pytest.raises(ValueError, match="distinct names"):
        sj.Layer(sublayers=(sj.FeedForward(), sj.FeedForward()))


def test_streams_of_different_kinds_cannot_meet():
    class Mixed(sj.recipe.PreNorm):
        def form(self, sublayer, slot, layer, geometry):
            return sj.recipe.HyperConnections().residual if slot else self.residual

    with pytest.raises(ValueError, match="different streams cannot meet"):
        stack(depth=2, recipe=Mixed())


@pytest.mark.parametrize(
    "options",
    [{"taps": jnp.zeros(3)}, {"coefficients": stack(depth=4).coefficients()}, {"perturbations": jnp.zeros((2, T, D))}],
)
def test_shapes_of_another_depth_are_refused(options):
    deep = stack(depth=3)
    with pytest.raises(ValueError, match=r"must (have a first axis|begin with the axes)"):
        deep.apply(deep.init(jax.random.key(0)), normal(T, D), **options)


def test_unknown_remat():
    deep = stack(depth=1)
    with pytest.raises(ValueError, match="remat must be"):
        deep.apply(deep.init(jax.random.key(0)), normal(T, D), remat="all")


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ((LAYER,), {"unroll": 2}),
        pytest.param((LAYER, LOCAL), {}, marks=pytest.mark.thorough),
        pytest.param((LAYER,), {"loop": True}, marks=pytest.mark.thorough),
    ],
)
def test_a_layer_is_recomputed_also_where_no_loop_parts_the_backward_pass_from_the_forward_pass(layers, options):
    deep = stack(*layers, depth=2)
    params, x = drawn(deep, jnp.float32), normal(2, T, D, dtype=jnp.float32)

    def flops(remat):
        def loss(params):
            return jnp.sum(deep.apply(params, x, remat=remat, **options)[0] ** 2)

        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]

    assert flops("layer") > 1.15 * flops("none")
