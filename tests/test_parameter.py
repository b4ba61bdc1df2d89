"""Parameters: declared once, drawn by name and layer, counted and scaled by role."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import parameter
from stackjax.testing import normal

LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=24, gated=True, bias=True)))


def stack(depth, recipe=sj.recipe.PreNorm(), **options):
    return sj.Stack.of(LAYER, depth=depth, d_model=16, recipe=recipe, **options)


@pytest.mark.thorough
def test_a_shallow_stack_is_a_prefix_of_a_deep_one_bit_for_bit():
    shallow, deep = (stack(depth).init(jax.random.key(3)) for depth in (3, 7))
    for a, b in zip(jax.tree.leaves(shallow["segments"]), jax.tree.leaves(deep["segments"]), strict=True):
        assert np.array_equal(a, b[:3])
    assert not np.array_equal(*deep["segments"]["0"]["0"]["attention"]["query"][:2])


def test_the_draw_does_not_depend_on_how_layers_are_scanned():
    other = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=3), *LAYER.sublayers[1:]))
    plain = sj.Stack.of(LAYER, depth=4, d_model=16, recipe=sj.recipe.PreNorm())
    mixed = sj.Stack.of(LAYER, other, depth=4, d_model=16, recipe=sj.recipe.PreNorm())
    key = jax.random.key(0)
    for a, b in zip(
        sj.convert.unstack(plain, plain.init(key)), sj.convert.unstack(mixed, mixed.init(key)), strict=True
    ):
        assert all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_model_draws_its_stack_as_the_stack_draws_itself():
    model = sj.decoder(vocab=5, d_model=16, depth=2, n_heads=2)
    key = jax.random.key(1)
    inside, alone = model.init(key)["stack"], model.stack.init(key)
    assert all(map(np.array_equal, jax.tree.leaves(inside), jax.tree.leaves(alone)))


def test_different_names_draw_differently():
    own = stack(1).init(jax.random.key(0))["segments"]["0"]["0"]["attention"]
    assert not np.array_equal(own["query"], own["key"])


def test_gains_by_role_and_by_layer():
    class Ramp(sj.recipe.PreNorm):
        def gain(self, role, geometry):
            return {"value": 3.0, "up": 1.0 + jnp.arange(geometry.depth)}.get(role, 1.0)

    plain, ramp = (
        stack(3, recipe).init(jax.random.key(0))["segments"]["0"]["0"] for recipe in (sj.recipe.PreNorm(), Ramp())
    )
    np.testing.assert_array_equal(ramp["attention"]["value"], 3 * plain["attention"]["value"])
    np.testing.assert_array_equal(
        ramp["feed_forward"]["up"], plain["feed_forward"]["up"] * np.array([1, 2, 3.0])[:, None, None]
    )
    np.testing.assert_array_equal(ramp["attention"]["query"], plain["attention"]["query"])


def test_a_gain_for_each_layer_of_a_loop_is_refused():
    class Ramp(sj.recipe.PreNorm):
        def gain(self, role, geometry):
            return 2.0 + jnp.arange(geometry.depth) if role == "up" else 1.0

    with pytest.raises(ValueError, match="Ramp scales up differently in each layer"):
        stack(3, Ramp(), looped=True)
    assert stack(1, Ramp(), looped=True).depth == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype_of_the_draw(dtype):
    assert {x.dtype for x in jax.tree.leaves(stack(2).init(jax.random.key(0), dtype))} == {jnp.dtype(dtype)}


def test_counts():
    d, f, depth = 16, 24, 3
    attention, forward, norms = 4 * d * d, 3 * d * f + 2 * f + d, 4 * d
    assert stack(depth).n_params == depth * (attention + forward + norms) + 2 * d
    assert stack(0).n_params == 2 * d
    assert stack(depth, looped=True).n_params == attention + forward + norms + 2 * d
    assert sum(x.size for x in jax.tree.leaves(stack(depth).init(jax.random.key(0)))) == stack(depth).n_params


def test_statistics_do_not_count():
    batch = sj.recipe.PreNorm(residual=sj.residual.Pre(norm=sj.BatchNorm()))
    assert stack(3, batch).n_params == stack(3).n_params


def test_shapes_are_declared():
    declared = stack(3).declaration()
    drawn = jax.eval_shape(stack(3).init, jax.random.key(0))
    shapes = jax.tree.map(lambda d: d.shape, declared, is_leaf=parameter.is_spec)
    assert shapes == jax.tree.map(lambda x: x.shape, drawn)


@pytest.mark.parametrize(
    ("init", "std"),
    [
        (parameter.xavier, (2 / (300 + 500)) ** 0.5),
        (parameter.FanIn(), 300**-0.5),
        (parameter.FanIn(2.0), (2 / 300) ** 0.5),
        (parameter.Normal(0.02), 0.02),
    ],
)
def test_laws(init, std):
    for shape in ((300, 500), (2, 300, 500)):
        x = init(jax.random.key(0), shape, jnp.int32(0))
        assert x.shape == shape
        np.testing.assert_allclose(np.std(x), std, rtol=0.01)
        np.testing.assert_allclose(np.mean(x), 0, atol=0.02 * std)


def test_constant_laws():
    args = (jax.random.key(0), (2, 3), jnp.int32(0))
    assert np.all(parameter.zeros(*args) == 0) and np.all(parameter.ones(*args) == 1)
    assert np.all(parameter.Constant(0.3)(*args) == np.float32(0.3))


def test_linear_keeps_the_dtype_of_x():
    params = {"up": normal(4, 3), "up_bias": normal(3, key=1), "down": normal(4, 3, key=2)}
    x = normal(2, 4, key=3)
    np.testing.assert_allclose(parameter.linear(params, "up", x), x @ params["up"] + params["up_bias"], rtol=1e-6)
    np.testing.assert_allclose(parameter.linear(params, "down", x), x @ params["down"], rtol=1e-6)
    assert parameter.linear(params, "up", x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_spread_reaches_the_right_layers():
    declared = parameter.Declared(spec=parameter.Spec(shape=(2, 5), role="up"), name="up", layers=(1, 3), stacked=True)
    spread = declared.spread(jnp.arange(4.0))
    assert spread.shape == (2, 1, 1) and list(spread.ravel()) == [1, 3]
    assert declared.spread(7.0).shape == ()
    for numbers in (jnp.ones(3), jnp.ones((4, 1))):
        with pytest.raises(
            ValueError, match="up needs one number, or one for each layer of the stack, of which there are 4 or more"
        ):
            declared.spread(numbers)
