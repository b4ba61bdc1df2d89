"""Flax's own tools on our trees: names and masks by traverse_util, files by serialization, empty branches included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization, traverse_util

import stackjax as sj

MODEL = sj.decoder(vocab=7, d_model=8, depth=2, n_heads=2)
PARAMS = MODEL.init(jax.random.key(0))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_flat_names_and_back():
    flat = traverse_util.flatten_dict(PARAMS, sep="/", keep_empty_nodes=True)
    assert flat["stack/segments/0/0/attention/query"].shape == (2, 8, 8)
    assert flat["stack/shared"] is traverse_util.empty_node
    same(traverse_util.unflatten_dict(flat, sep="/"), PARAMS)


def test_masks_by_path_equal_masks_by_role():
    by_path = traverse_util.path_aware_map(lambda path, _: path[-1] in ("bias", "scale"), PARAMS)
    roles = ("norm", "final_norm", "bias")
    by_role = jax.tree.map(lambda d: d.spec.role in roles, MODEL.declaration(), is_leaf=sj.parameter.is_spec)
    assert by_path == by_role
    tx = optax.masked(optax.set_to_zero(), by_path)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS))
    assert not np.any(updates["stack"]["leave"]["inner"]["norm"]["scale"]) and np.all(updates["head"]["unembed"] == 1)


@pytest.mark.parametrize("make", [sj.optim.adamw, sj.optim.muon])
def test_training_states_survive_the_disk(make):
    tx = optax.chain(optax.clip_by_global_norm(1.0), make(MODEL, learning_rate=0.1))
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = tx.update(gradient, tx.init(PARAMS), PARAMS)
    carry = {"params": PARAMS, "state": state, "step": jnp.int32(3)}
    blank = jax.tree.map(jnp.zeros_like, carry)
    same(serialization.from_bytes(blank, serialization.to_bytes(carry)), carry)
    same(serialization.from_state_dict(blank, serialization.to_state_dict(carry)), carry)


def test_results_survive_the_disk():
    norm = sj.residual.Pre(norm=sj.BatchNorm())
    model = sj.decoder(vocab=7, d_model=8, depth=2, n_heads=2, recipe=sj.recipe.PreNorm(residual=norm))
    _, result = model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 3), int), measure=sj.probe.standard)
    names = set(serialization.to_state_dict(result))
    assert names == {"loss", "state", "measure"}
    blank = jax.tree.map(jnp.zeros_like, result)
    again = serialization.from_bytes(blank, serialization.to_bytes(result))
    assert isinstance(again, sj.Result)
    same(again, result)
