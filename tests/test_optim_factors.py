"""Factors on learning rates: by role, by layer and by side, from zero for what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax.testing import largest_difference
from tests.test_optim import model, run, start


def distances(tx, params, gradients):
    return jax.tree.map(jnp.subtract, run(tx, params, gradients), params)


def test_factors_multiply_learning_rates(x64):
    described = model()
    params, gradients = start(described)
    tx = sj.optim.adamw(described, learning_rate=0.1, weight_decay=0.2)
    layers = [0.0, 0.5, 2.0]
    rates = sj.optim.factors(described, layers=layers, roles={"up": 3.0}, paths={"head/*": 0.0, "*/query": 0.5})
    after = distances(sj.optim.with_rates(described, tx, rates), params, gradients[:1])
    whole = distances(tx, params, gradients[:1])

    def check(path, d, got, plain):
        name = sj.parameter.path_name(path)
        factor = 0.0 if name.startswith("head") else {"up": 3.0, "query": 0.5}.get(d.spec.role, 1.0)
        factor = factor * d.spread(layers) if d.layers else factor
        np.testing.assert_allclose(got, factor * plain, rtol=1e-6, atol=1e-12, err_msg=name)
        if d.stacked:
            assert not np.any(got[0])

    jax.tree_util.tree_map_with_path(check, described.declaration(), after, whole)
    assert not np.any(after["head"]["unembed"])


@pytest.mark.thorough
@pytest.mark.parametrize("make", [sj.optim.adamw, sj.optim.muon])
def test_frozen_layers_stay_and_the_others_stay_on_the_sphere(x64, make):
    described = sj.decoder(vocab=7, d_model=8, depth=3, n_heads=2, recipe=sj.recipe.NGPT())
    params, gradients = start(described)
    params = described.project(params)
    gradients[0]["stack"]["segments"]["0"]["0"]["attention"]["out"] *= jnp.array([jnp.nan, 1.0, 1.0])[:, None, None]
    rates = sj.optim.factors(described, layers=[0.0, 1.0, 0.5])
    clipped = optax.chain(
        sj.optim.clip_by_layer_norm(described, 1.0), make(described, learning_rate=0.1, weight_decay=0.1)
    )
    after = run(sj.optim.with_rates(described, clipped, rates), params, gradients)
    for old, new in zip(*(jax.tree.leaves(tree["stack"]["segments"]) for tree in (params, after)), strict=True):
        np.testing.assert_array_equal(old[0], new[0])
        assert np.all(np.any(old[1:] != new[1:], tuple(range(1, old.ndim))))
    assert largest_difference(described.project(after), after) < 1e-10


def test_layer_decay():
    described = model(depth=3)
    rates = sj.optim.layer_decay(described, 0.5)
    assert float(rates["embedding"]["token"]) == 0.5**4
    assert float(rates["head"]["unembed"]) == 1.0 == float(rates["stack"]["leave"]["inner"]["norm"]["scale"])
    for leaf in jax.tree.leaves(rates["stack"]["segments"]):
        np.testing.assert_array_equal(leaf.ravel(), [0.125, 0.25, 0.5])
    with pytest.raises(ValueError, match="one stack"):
        sj.optim.layer_decay(sj.encoder_decoder(d_model=8, depth=1, n_heads=2), 0.5)


def test_factors_of_an_encoder_decoder_are_by_side():
    described = sj.encoder_decoder(vocab=7, d_model=8, depth=1, encoder_depth=2, n_heads=2)
    rates = sj.optim.factors(described, layers={"encoder": [0.1, 0.2], "decoder": [0.3]})
    sides = {"encoder": rates["encoder"]["segments"], "decoder": rates["decoder"]["stack"]["segments"]}
    for side, layers in (("encoder", [0.1, 0.2]), ("decoder", [0.3])):
        for leaf in jax.tree.leaves(sides[side]):
            np.testing.assert_allclose(leaf.ravel(), layers, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [1.0, 1.0]}, "3 layers"),
        ({"roles": {"querry": 0.1}}, "querry"),
        ({"paths": {"*/nothing/*": 0.1}}, "nothing"),
    ],
)
def test_factors_that_speak_of_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sj.optim.factors(model(), **options)
