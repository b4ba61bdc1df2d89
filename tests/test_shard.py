"""Sharded over eight fake devices, the numbers are those of one, and the parameters really are spread out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import stackjax as sj
from stackjax import shard
from stackjax.parameter import Declared, Spec
from tests.helpers import largest_difference

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

MODEL = sj.decoder(
    vocab=32,
    d_model=16,
    depth=3,
    attention=sj.Attention(n_heads=4, n_kv_heads=1),
    feed_forward=sj.FeedForward(d_hidden=24),
)
TOKENS = jax.random.randint(jax.random.key(1), (8, 6), 0, 32)


def loss(params, tokens):
    logits, _ = MODEL.apply(params, tokens, remat="layer", dtype=jnp.result_type(float))
    return sj.loss.next_token(logits, tokens)


def specs(on, rules=shard.RULES):
    return jax.tree.map(lambda s: s.spec, shard.parameters(MODEL, on, rules))


def test_specs_follow_the_roles():
    found = specs(shard.mesh(data=4, model=2))
    layer = found["stack"]["segments"]["0"]["0"]
    assert found["embedding"]["token"] == P("model", "data") and found["head"]["unembed"] == P("data", "model")
    assert layer["attention"]["query"] == P(None, "data", "model") == layer["attention"]["key"]
    assert layer["attention"]["out"] == P(None, "model", "data") == layer["feed_forward"]["down"]
    assert layer["feed_forward"]["up"] == P(None, "data", "model")
    assert all(axis is None for axis in layer["residual"]["attention"]["norm"]["scale"])
    assert jax.tree.structure(found, is_leaf=lambda x: isinstance(x, P)) == jax.tree.structure(
        MODEL.declaration(), is_leaf=sj.parameter.is_spec
    )


def test_what_does_not_divide_stays_whole():
    layer = specs(shard.mesh(model=8))["stack"]["segments"]["0"]["0"]
    # Width 16 and hidden 24 divide by 8; one key head of width 4 does not.
    assert layer["attention"]["query"] == P(None, None, "model")
    assert layer["attention"]["key"] == P(None, None, None)


def test_rules_are_data():
    layer = specs(shard.mesh(data=8), (("hidden", "data"),))["stack"]["segments"]["0"]["0"]
    assert layer["feed_forward"]["up"] == P(None, None, "data")
    assert layer["attention"]["query"] == P(None, None, None)
    both = specs(shard.mesh(data=4, model=2), (("width", ("data", "model")),))
    assert both["embedding"]["token"] == P(None, ("data", "model"))


def test_experts_and_vectors():
    def declared(shape, role, **options):
        return Declared(spec=Spec(shape=shape, role=role), name="x", **options)

    assert shard.names(declared((4, 16, 24), "up", layers=(0,), stacked=True)) == (
        "layers",
        "experts",
        "width",
        "hidden",
    )
    assert shard.names(declared((16, 24), "cross_query")) == ("width", "heads")
    assert shard.names(declared((24,), "bias", layers=(0, 1), stacked=True)) == ("layers", None)
    assert shard.names(declared((), "residual")) == ()
    assert shard.names(declared((16,), "up")) == (None,)


def test_the_draw_is_the_same_and_each_device_holds_its_share():
    on = shard.mesh(data=4, model=2)
    whole = jax.jit(MODEL.init)(jax.random.key(0))
    spread = jax.jit(MODEL.init, out_shardings=shard.parameters(MODEL, on))(jax.random.key(0))
    assert all(map(np.array_equal, jax.tree.leaves(spread), jax.tree.leaves(whole)))
    own = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(spread))
    total = sum(leaf.size for leaf in jax.tree.leaves(whole))
    assert own < 0.2 * total


def test_training_over_a_mesh_is_training(x64):
    """Loss, gradients and three steps of Muon with clipping by layer."""
    on = shard.mesh(data=4, model=2)
    tx = optax.chain(
        sj.optim.clip_by_layer_norm(MODEL, 0.5), sj.optim.muon(MODEL, learning_rate=0.02, weight_decay=0.1)
    )

    def step(carry, tokens):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, tokens)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = MODEL.init(jax.random.key(0), jnp.float64)
    carry = (params, tx.init(params))
    where = shard.state(MODEL, on, carry)
    reference, spread, sharded = carry, jax.device_put(carry, where), jax.jit(step, out_shardings=(where, None))
    single = jax.jit(step)
    for _ in range(3):
        reference, expected = single(reference, TOKENS)
        spread, value = sharded(spread, jax.device_put(TOKENS, shard.batch(on)))
        np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert largest_difference(spread, reference) < 1e-8
    moment = spread[0]["stack"]["segments"]["0"]["0"]["feed_forward"]["up"]
    assert moment.sharding.spec == P(None, "data", "model") and moment.addressable_shards[0].data.shape == (3, 4, 12)


def test_optimiser_state_lies_with_its_parameters():
    on = shard.mesh(data=4, model=2)
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    for tx in (sj.optim.adamw(MODEL, learning_rate=0.1), sj.optim.muon(MODEL, learning_rate=0.1)):
        shapes = jax.eval_shape(optax.MultiSteps(tx, 2).init, params)
        where = shard.state(MODEL, on, shapes)
        leaves = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(where), strict=True))
        up = [sharding.spec for shape, sharding in leaves if shape.shape == (3, 16, 24)]
        assert len(up) >= 2 and set(up) == {P(None, "data", "model")}
        assert all(sharding.spec == P() for shape, sharding in leaves if shape.shape == ())


def test_a_batch_is_split_over_the_data_axis():
    assert shard.batch(shard.mesh(data=8)).spec == P("data")
    assert shard.batch(shard.mesh(model=8)).spec == P(None)
