"""The exit after l layers is the end of a stack whose other layers are left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import largest_difference
from stackjax.testing.inputs import arguments, drawn
from tests.cases import KINDS, POSITIONS, RECIPES
from tests.helpers import daily

L = 4
CASES = [
    *(("pre_norm", kind) for kind in ("decoder", "local_global", "looped")),
    *((recipe, "decoder") for recipe in ("deepnorm", "resi_dual", "hyper_connections", "ngpt")),
    ("dense_former", "decoder"),
]


def described(recipe="pre_norm", kind="decoder", depth=L):
    return KINDS[kind](RECIPES[recipe], POSITIONS["rotary"], depth)


@pytest.mark.parametrize(("recipe", "kind"), daily(CASES, ("hyper_connections", "decoder")))
def test_an_exit_is_the_end_behind_fewer_layers(x64, recipe, kind):
    model = described(recipe, kind)
    params, (tokens, side_inputs) = drawn(model), arguments(model, None, jnp.float64)
    skipping = dataclasses.replace(model, stack=sj.skip.skippable(model.stack))

    @jax.jit
    def shorter(numbers):
        coefficients = sj.skip.keep(model.stack.coefficients(), numbers)
        return skipping.apply(params, tokens, side_inputs, coefficients=coefficients, dtype=jnp.float64)[0]

    options = {"measure": sj.probe.stream, "dtype": jnp.float64}
    found, result = jax.jit(lambda: sj.exits.logits(model, params, tokens, side_inputs, **options))()
    assert found.shape == (L + 1, *tokens.shape, 11)
    assert set(result.measure) == {"stream_rms", "cosine", "token_similarity"}
    expected = jnp.stack([shorter((jnp.arange(L) < l).astype(float)) for l in range(L + 1)])
    assert largest_difference(found, expected) < 1e-10
    np.testing.assert_allclose(found[-1], model.apply(params, tokens, side_inputs, dtype=jnp.float64)[0], rtol=1e-9)
    assert min(largest_difference(found[l], found[l + 1]) for l in range(L)) > 1e-3


@pytest.mark.thorough
def test_a_loss_of_all_exits_and_its_gradient(x64):
    model = described("hyper_connections")
    params, (tokens, side_inputs) = drawn(model), arguments(model, None, jnp.float64)
    weights = jnp.arange(L + 1) / L

    def loss(logits):
        return sj.loss.next_token(logits, tokens)

    def together(params):
        return jnp.vdot(weights, sj.exits.losses(model, params, tokens, loss, side_inputs, dtype=jnp.float64))

    def apart(params):
        logits, _ = sj.exits.logits(model, params, tokens, side_inputs, dtype=jnp.float64)
        return sum(weight * loss(one) for weight, one in zip(weights, logits, strict=True))

    one, other = jax.jit(lambda: [jax.value_and_grad(f)(params) for f in (together, apart)])()
    assert largest_difference(one, other) < 1e-10
    assert all(np.any(slope) for slope in jax.tree.leaves(one[1]["stack"]["segments"]))


def test_without_layers_there_is_one_exit():
    model = described(depth=0)
    params, (tokens, side_inputs) = drawn(model, jnp.float32), arguments(model, None, jnp.float32)
    found, _ = sj.exits.logits(model, params, tokens, side_inputs)
    np.testing.assert_array_equal(found, model.apply(params, tokens, side_inputs)[0][None])


def test_an_end_that_reads_all_layers_has_no_exits():
    model = described("attention_residuals")
    params, (tokens, side_inputs) = drawn(model, jnp.float32), arguments(model, None, jnp.float32)
    with pytest.raises(ValueError, match="the end of this recipe reads what all layers made"):
        sj.exits.logits(model, params, tokens, side_inputs)
    with pytest.raises(ValueError, match="model must be an instance of Model"):
        sj.exits.logits(model.stack, params["stack"], tokens)
