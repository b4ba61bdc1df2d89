"""Value residual against its equation, around any form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.recipe import HyperConnections, PostNorm, PreNorm, StochasticDepth, ValueResidual
from stackjax.testing import normal, perturbed
from tests.helpers import output
from tests.recipe.toy import LAYER, layer_norm, numpy, softmax, toy_stack

ATTENTION = sj.Attention(n_heads=2, n_kv_heads=1)
LAYERS = sj.Layer(sublayers=(ATTENTION, sj.FeedForward(d_hidden=8, activation=sj.feed_forward.relu)))


def attention(p, x, mixed):
    """Two heads on one group of causal attention with the given values (T, K), in NumPy."""
    n_tokens, width = x.shape[0], mixed.shape[-1]
    query = (x @ p["query"]).reshape(n_tokens, 2, width)
    logits = np.einsum("thk,sk->hts", query, x @ p["key"]) / np.sqrt(width)
    logits = np.where(np.tril(np.ones((n_tokens, n_tokens))) > 0, logits, -np.inf)
    return np.einsum("hts,sk->thk", softmax(logits, -1), mixed).reshape(n_tokens, -1) @ p["out"]


RECIPES = {
    "identity": (ValueResidual(), 0.5, 0.5),
    "constant": (ValueResidual(own=1.0, earlier=2.0), 1.0, 2.0),
    "shared": (ValueResidual(own=0.0, earlier=1.0), 0.0, 1.0),
    "learned": (ValueResidual(learned=True), None, None),
}


@pytest.mark.parametrize("name", RECIPES)
def test_forward_is_the_papers(name, x64):
    recipe, own, earlier = RECIPES[name]
    stack = toy_stack(recipe, 3, layer=LAYERS)
    params = perturbed(stack.init(jax.random.key(0), jnp.float64), size=0.3)
    x = normal(5, 8, key=1)
    y = output(stack, params, x)
    h, first = np.asarray(x), None
    for layer in map(numpy, sj.convert.unstack(stack, params)):
        residual, p = layer["residual"], layer["attention"]
        if own is None:
            own_here, earlier_here = residual["attention"]["own_value"], residual["attention"]["earlier_value"]
        else:
            own_here, earlier_here = own, earlier
        normed = layer_norm(residual["attention"]["norm"], h)
        value = normed @ p["value"]
        first = value if first is None else first
        mixed = value if first is value else own_here * value + earlier_here * first
        h = h + attention(p, normed, mixed)
        inner = layer_norm(residual["feed_forward"]["norm"], h)
        h = h + np.maximum(inner @ layer["feed_forward"]["up"], 0) @ layer["feed_forward"]["down"]
    expected = layer_norm(numpy(params["leave"]["inner"]["norm"]), h)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def test_learned_weights_start_where_the_constants_are(x64):
    x = normal(2, 5, 8, key=1)
    outputs = []
    for learned in (False, True):
        stack = toy_stack(ValueResidual(learned=learned, own=0.3, earlier=0.7), 3, layer=LAYERS)
        params = stack.init(jax.random.key(0))
        outputs.append(output(stack, params, x))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(params["segments"]["0"]["0"]["residual"]["attention"]["own_value"], 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    "base", [PostNorm(), HyperConnections(), StochasticDepth(last=1.0)], ids=lambda base: type(base).__name__
)
def test_any_form_with_its_own_values_is_itself(base, x64):
    """own = 1, earlier = 0 changes nothing, whatever is inside."""
    x = normal(2, 5, 8, key=1)
    stacks = [toy_stack(recipe, 3, layer=LAYERS) for recipe in (base, ValueResidual(base=base, own=1.0, earlier=0.0))]
    params = [perturbed(stack.init(jax.random.key(0), jnp.float64)) for stack in stacks]
    outputs = [output(stack, p, x) for stack, p in zip(stacks, params, strict=True)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)


def test_only_the_first_layer_is_first():
    coefficients = toy_stack(ValueResidual(), 4, layer=LAYERS).coefficients()["sublayer"]
    np.testing.assert_array_equal(coefficients["first"], [[1, 1], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(coefficients["own"], 0.5)


def test_a_stack_without_values_is_refused():
    with pytest.raises(ValueError, match="self-attention as the first sublayer"):
        toy_stack(ValueResidual(), 2, layer=LAYER)
    cross = sj.Layer(sublayers=(replace(ATTENTION, cross=True),))
    with pytest.raises(ValueError, match="self-attention as the first sublayer"):
        toy_stack(StochasticDepth(base=ValueResidual()), 2, layer=cross)


def test_values_of_different_width_are_refused():
    wide = sj.Layer(sublayers=(replace(ATTENTION, n_kv_heads=2), LAYERS.sublayers[1]))
    with pytest.raises(ValueError, match="one width"):
        sj.Stack.of(LAYERS, wide, depth=4, d_model=8, recipe=ValueResidual())


def test_attention_without_values_of_its_own_is_refused():
    latent = sj.LatentAttention(n_heads=2, d_head=4, d_latent=4, d_rotary=2)
    with pytest.raises(ValueError, match=r"without values of their own \['LatentAttention'\]"):
        sj.Stack.of(
            LAYERS, sj.Layer(sublayers=(latent, LAYERS.sublayers[1])), depth=4, d_model=8, recipe=ValueResidual()
        )
    beside = sj.Layer(sublayers=(sj.Parallel(sublayers=LAYERS.sublayers),))
    with pytest.raises(ValueError, match=r"without values of their own \['Parallel'\]"):
        sj.Stack.of(sj.Layer(sublayers=LAYERS.sublayers[:1]), beside, depth=4, d_model=8, recipe=ValueResidual())


def test_an_outer_form_is_refused():
    with pytest.raises(ValueError, match="outer form"):
        sj.Stack.of(LAYERS, depth=2, d_model=8, recipe=ValueResidual(base=sj.recipe.ReZero()))


def test_around_residual_streams_of_two():
    stack = sj.Stack.of(LAYERS, depth=2, d_model=8, recipe=ValueResidual(base=sj.recipe.ResiDual()))
    assert jax.eval_shape(stack.apply, stack.init(jax.random.key(0)), normal(2, 5, 8))[0].shape == (2, 5, 8)


BATCH_NORMED = PreNorm(residual=sj.residual.Pre(norm=sj.BatchNorm(momentum=1.0)))


@pytest.mark.parametrize("rule", [ValueResidual(base=BATCH_NORMED), sj.recipe.DenseFormer(base=BATCH_NORMED)])
def test_statistics_of_the_last_norm_are_those_of_the_stream(rule, x64):
    stack = sj.Stack.of(LAYERS, depth=2, d_model=8, recipe=rule)
    params = perturbed(stack.init(jax.random.key(0), jnp.float64), size=0.3)
    _, result = jax.jit(stack.apply, static_argnames="measure")(params, normal(2, 5, 8), measure=last_stream)
    found = result.state["leave"]["inner"]["norm"]["mean"]
    np.testing.assert_allclose(found, result.measure["x"][-1].mean((0, 1)), rtol=1e-9)


def last_stream(trace):
    """x_l of each layer."""
    return {"x": trace.after}


def test_the_same_addition_twice_is_refused():
    with pytest.raises(ValueError, match="already in its base"):
        ValueResidual(base=StochasticDepth(base=ValueResidual()))


def test_base_keeps_its_other_parts():
    deep = ValueResidual(base=sj.recipe.DeepNorm())
    geometry = sj.recipe.Geometry(depth=9, d_model=8)
    assert deep.gain("value", geometry) == sj.recipe.DeepNorm().gain("value", geometry) != 1
    np.testing.assert_allclose(deep.coefficients(geometry)["sublayer"]["alpha"], 18**0.25, rtol=1e-6)
    assert PreNorm().default_init is deep.default_init
