"""Edits while decoding: generation is steered by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from tests.test_edit import D, T, run, small


@pytest.mark.thorough
def test_generation_is_steered_and_a_new_direction_compiles_nothing(x64):
    model, params, tokens = small()

    def steer(direction, layer, stream):
        return stream + jnp.where(layer == 2, direction, 0)

    def generate(scale):
        direction = scale * jax.random.normal(jax.random.key(3), (D,))
        edit = {"feed_forward/stream": jax.tree_util.Partial(steer, direction)}
        new = sj.decode.generate(model, params, tokens, n_tokens=4, edit=edit, dtype=jnp.float64).tokens
        both = jnp.concatenate((tokens, new), 1)
        return new, jnp.argmax(run(model, params, both, edit=edit)[:, T - 1 : -1], -1)

    plain, _ = generate(0.0)
    compiled = sj.decode._generate._cache_size()
    steered, expected = generate(10.0)
    assert sj.decode._generate._cache_size() == compiled
    np.testing.assert_array_equal(steered, expected)
    assert np.any(steered != plain)
    with pytest.raises(ValueError, match="an edit names sites"):
        sj.decode.generate(model, params, tokens, n_tokens=1, edit={"attention/head": steer})
