"""Sharded over eight fake devices, the numbers are those of one, and the parameters really are spread out."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import stackjax as sj
from stackjax import shard
from stackjax.parameter import Declared, Spec
from stackjax.testing import largest_difference

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


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="no rule uses the axis dta"):
        shard.parameters(MODEL, shard.mesh(dta=8))
    with pytest.raises(ValueError, match="got hiden"):
        shard.parameters(MODEL, shard.mesh(data=8), (*shard.RULES, ("hiden", "data")))
    with pytest.raises(ValueError, match=r"must be of type Auto.*got data Explicit"):
        shard.parameters(MODEL, jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)))
    with pytest.raises(ValueError, match="needs 16 devices; there are 8"):
        shard.mesh(data=16)
    with pytest.warns(UserWarning, match="leaves 4 of 8 devices idle"):
        shard.mesh(data=4)


DATA_PARALLEL = tuple(rule for rule in shard.RULES if rule[0] != "width")
SIZES = {"vocab": 64, "d_model": 64, "depth": 2, "n_heads": 4}
EXPERTS = sj.MixtureOfExperts(n_experts=4, top_k=2, d_hidden=64, dispatch="dense")
KINDS = {
    "decoder": lambda: sj.decoder(**SIZES),
    "encoder": lambda: sj.encoder(**SIZES),
    "experts": lambda: sj.decoder(**SIZES, feed_forward=EXPERTS),
    "encoder_decoder": lambda: sj.encoder_decoder(**SIZES),
    "several_streams": lambda: sj.decoder(**SIZES, recipe=sj.recipe.HyperConnections()),
    "history": lambda: sj.decoder(**SIZES, recipe=sj.recipe.DenseFormer()),
}


def cost_of_a_step(model, on=None, rules=shard.RULES, shape=(8, 64)):
    """FLOPs and temporary bytes of one device in a training step: forward, backward, AdamW; and its program."""
    tx = sj.optim.adamw(model, learning_rate=1e-3)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    carry = (shapes, jax.eval_shape(tx.init, shapes))
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    n_inputs = 2 if isinstance(model, sj.EncoderDecoder) else 1

    def step(carry, tokens):
        params, state = carry

        def loss(params):
            return sj.loss.next_token(model.apply(params, *(tokens,) * n_inputs)[0], tokens)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    if on is None:
        compiled = jax.jit(step, donate_argnums=0).lower(carry, tokens).compile()
    else:
        where = shard.state(model, on, carry, rules)
        places = {"in_shardings": (where, shard.batch(on, rules)), "out_shardings": (where, None)}
        with jax.set_mesh(on):
            compiled = jax.jit(step, donate_argnums=0, **places).lower(carry, tokens).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()


@pytest.mark.parametrize(
    ("kind", "sizes", "rules"),
    [
        pytest.param("decoder", {"data": 8}, DATA_PARALLEL, marks=pytest.mark.thorough),
        pytest.param("decoder", {"data": 8}, shard.RULES, marks=pytest.mark.thorough),
        ("decoder", {"data": 4, "model": 2}, shard.RULES),
        pytest.param("decoder", {"data": 2, "model": 4}, shard.RULES, marks=pytest.mark.thorough),
        *(
            pytest.param(kind, {"data": 8}, shard.RULES, marks=pytest.mark.thorough)
            for kind in KINDS
            if kind != "decoder"
        ),
    ],
)
def test_each_device_computes_its_share(kind, sizes, rules):
    """Right losses and right places of the parameters say nothing of this: the whole batch was once computed on all."""
    model = KINDS[kind]()
    alone, _, _ = cost_of_a_step(model)
    flops, temporary, program = cost_of_a_step(model, shard.mesh(**sizes), rules)
    assert flops < 1.15 * alone / 8
    heads = 4 // sizes.get("model", 1)
    assert f"f32[8,{heads},64,64]" not in program, "scores of the whole batch on one device"
    _, plain, _ = cost_of_a_step(model, shard.mesh(data=8), DATA_PARALLEL)
    assert temporary < 1.15 * plain


def test_activations_are_pinned_without_a_mesh_in_context(x64):
    """Parameters that lie on a mesh are enough."""
    on = shard.mesh(data=8)
    params = jax.jit(MODEL.init, out_shardings=shard.parameters(MODEL, on))(jax.random.key(0))
    tokens = jax.device_put(TOKENS, shard.batch(on))
    apply = jax.jit(lambda params, tokens: MODEL.apply(params, tokens)[0])
    assert "sharding_constraint" in str(jax.make_jaxpr(apply)(params, tokens))
    assert apply(params, tokens).sharding.shard_shape((8, 6, 32))[0] == 1


@pytest.mark.thorough
def test_decoding_with_a_sharded_cache():
    """Each device holds its rows of the cache, and the tokens are those of one device."""
    on = shard.mesh(data=8)
    params = jax.jit(MODEL.init)(jax.random.key(0))
    expected = sj.decode.generate(MODEL, params, TOKENS, n_tokens=4).tokens
    spread = jax.device_put(params, shard.parameters(MODEL, on))
    tokens = jax.device_put(TOKENS, shard.batch(on))
    assert np.array_equal(sj.decode.generate(MODEL, spread, tokens, n_tokens=4).tokens, expected)
    begun = jax.jit(lambda params, tokens: sj.prompt.start(MODEL, params, tokens, None, 4))(spread, tokens)
    key = begun.cache.segments["0"]["0"]["attention"]["key"]
    assert key.sharding.shard_shape(key.shape)[1] == 1


def costs_of_decoding(model, on=None, rules=shard.RULES):
    """Of reading a prompt and of a step behind it, for one device: FLOPs, temporary bytes, and bytes of the cache."""
    prompt, token = jax.ShapeDtypeStruct((256, 128), jnp.int32), jax.ShapeDtypeStruct((256,), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    start = partial(sj.prompt.start, model, side_inputs=None, n_tokens=128)
    begun = jax.eval_shape(start, shapes, prompt)
    first, later = {}, {}
    if on is not None:
        first = {"in_shardings": (shard.parameters(model, on, rules), shard.batch(on, rules))}
    with contextlib.nullcontext() if on is None else jax.set_mesh(on):
        reading = jax.jit(start, **first).lower(shapes, prompt).compile()
        if on is not None:
            rows = (shard.batch(on, rules),) * 2
            later = {"in_shardings": (first["in_shardings"][0], *rows, reading.output_shardings.cache)}
        step = jax.jit(partial(sj.decode.follow, model), donate_argnums=3, **later)
        program = step.lower(shapes, token, begun.index, begun.cache).compile()
    costs = [(x.cost_analysis()["flops"], x.memory_analysis()) for x in (reading, program)]
    return np.array([(flops, x.temp_size_in_bytes, x.output_size_in_bytes) for flops, x in costs])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sizes", "rules"),
    [({"data": 4, "model": 2}, DATA_PARALLEL), ({"data": 8}, DATA_PARALLEL), ({"model": 8}, shard.RULES)],
)
def test_decoding_each_device_computes_and_keeps_its_share(sizes, rules):
    """Of the cache, too, which was once whole on each device of `model`, and its new entries on each of `data`."""
    model = sj.decoder(**{**SIZES, "d_model": 128, "depth": 4, "n_heads": 8})
    assert np.max(costs_of_decoding(model, shard.mesh(**sizes), rules) * 8 / costs_of_decoding(model)) < 1.15
