"""Stochastic depth against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe, residual
from stackjax.recipe import DenseFormer, HyperConnections, PostNorm, PreNorm, StochasticDepth
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily, output
from tests.recipe.toy import layer_norm, toy, toy_run, toy_stack


def test_evaluation_scales_branches_by_their_probability(x64):
    """Eq. (5), arXiv:1603.09382."""
    layers, leave, x, y = toy_run(StochasticDepth(last=0.4), depth=2)
    for layer, keeps in zip(layers, ((0.85, 0.7), (0.55, 0.4)), strict=True):
        for name, keep in zip(("one", "two"), keeps, strict=True):
            x = x + keep * toy(layer, name, layer_norm(layer["residual"][name]["norm"], x))
    np.testing.assert_allclose(y, layer_norm(leave["norm"], x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "form", [residual.Sandwich(), residual.BranchNormed(), recipe.ngpt.Sphere()], ids=lambda form: type(form).__name__
)
def test_a_norm_of_the_branch_does_not_undo_it(form, x64):
    """Eq. (5) around forms that normalise f: p multiplies what they add, and a dropped branch adds nothing."""
    base = recipe.PlainResidual(residual=form)
    stack, x = toy_stack(StochasticDepth(base=base), 2), normal(2, 5, 8, key=1)
    params = perturbed(stack.init(jax.random.key(0), jnp.float64))
    coefficients = stack.coefficients()
    expected = recipe.base.with_coefficients(coefficients, beta=coefficients["sublayer"]["keep"])
    plain = toy_stack(base, 2)
    expected = {**expected, "sublayer": {n: x for n, x in expected["sublayer"].items() if n != "keep"}}
    y = output(stack, params, x)
    np.testing.assert_allclose(y, output(plain, params, x, coefficients=expected), rtol=1e-12)
    assert largest_difference(y, output(plain, params, x)) > 1e-3
    never = recipe.base.with_coefficients(coefficients, keep=0.0)
    dropped = output(stack, params, x, coefficients=never, key=jax.random.key(0))
    np.testing.assert_allclose(dropped, stack.leave(params, stack.enter(params, x)), rtol=1e-9, atol=1e-12)


def test_without_a_skip_it_is_refused():
    with pytest.raises(ValueError, match="needs a skip"):
        toy_stack(StochasticDepth(base=recipe.WithoutResidual()), 2)


@pytest.mark.parametrize(("depth", "last"), [(1, 0.5), (10, 0.5), (1000, 0.2)])
def test_probabilities_fall_linearly_with_depth(depth, last):
    """Eq. (4): p_s = 1 - s/S (1 - p_S)."""
    keep = np.asarray(toy_stack(StochasticDepth(last=last), depth).coefficients()["sublayer"]["keep"]).reshape(-1)
    s = np.arange(1, 2 * depth + 1)
    np.testing.assert_allclose(keep, 1 - s / (2 * depth) * (1 - last), atol=1e-6)


def branch_sizes(trace):
    """For each example, how far each sublayer moved it."""
    return {"moved": jnp.abs(trace.after - trace.before).max((-2, -1))}


@pytest.mark.parametrize(
    "base", daily([PreNorm(), HyperConnections()], PreNorm()), ids=lambda base: type(base).__name__
)
@pytest.mark.parametrize("each", ["batch", "example"])
def test_training_drops_branches_as_often_as_it_says(each, base):
    layer = sj.Layer(sublayers=toy_stack(PreNorm(), 1).segments[0].layers[0].sublayers[:1])
    stack = toy_stack(StochasticDepth(last=0.25, each=each, base=base), 200, layer=layer)
    params = stack.init(jax.random.key(0))
    x = normal(8, 3, 8)
    run = jax.jit(lambda key: stack.apply(params, x, key=key, measure=branch_sizes)[1].measure["moved"] > 0)
    kept = np.stack([run(jax.random.key(i)) for i in range(20)])
    assert kept.shape == (20, 200, 8)
    together = (kept == kept[..., :1]).all()
    assert together == (each == "batch")
    draws = kept[..., 0] if each == "batch" else kept.mean(-1)
    expected = np.asarray(stack.coefficients()["sublayer"]["keep"])[:, 0]
    # Means over blocks of 50 layers and 20 keys: 1,000 draws or more, five standard errors.
    found = draws.mean(0).reshape(4, 50).mean(1)
    np.testing.assert_allclose(found, expected.reshape(4, 50).mean(1), atol=5 * 0.5 / 1000**0.5)


@pytest.mark.parametrize(
    "base",
    daily([PreNorm(), PostNorm(), HyperConnections(), DenseFormer()], PostNorm(), HyperConnections()),
    ids=lambda base: type(base).__name__,
)
def test_keeping_all_is_the_base(base, x64):
    x, outputs = normal(2, 5, 8, key=1), []
    for rule in (base, StochasticDepth(base=base, last=1.0)):
        stack = toy_stack(rule, 3)
        params = perturbed(stack.init(jax.random.key(0), jnp.float64))
        outputs.append(output(stack, params, x, key=jax.random.key(5)))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-12, atol=1e-14)


def test_a_dropped_stack_is_its_ends(x64):
    """Every branch dropped: the stream arrives as it came."""
    stack = toy_stack(StochasticDepth(base=sj.recipe.PlainResidual()), 3)
    params, x = stack.init(jax.random.key(0), jnp.float64), normal(2, 5, 8)
    never = sj.recipe.base.with_coefficients(stack.coefficients(), keep=0.0)
    np.testing.assert_array_equal(output(stack, params, x, coefficients=never, key=jax.random.key(0)), x)


def test_bad_probability_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        StochasticDepth(last=1.5)
