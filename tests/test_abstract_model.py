"""What works on a stack, a model and an encoder-decoder alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import stackjax as sj
from stackjax.testing import largest_difference, perturbed
from tests.helpers import daily

V, D, T, DEPTH = 11, 8, 5, 3
RULE = sj.recipe.DeepNorm()
SIZES = {"vocab": V, "d_model": D, "n_heads": 2, "recipe": RULE, "feed_forward": sj.FeedForward(d_hidden=12)}
TOKENS = jnp.arange(2 * T).reshape(2, T) % V
DECODER = sj.decoder(**SIZES, depth=DEPTH)

CASES = {
    "stack": (DECODER.stack, jax.random.normal(jax.random.key(1), (2, T, D))),
    "model": (DECODER, TOKENS),
    "encoder_decoder": (
        sj.encoder_decoder(**SIZES, depth=DEPTH, encoder_depth=2, source_vocab=7),
        (TOKENS % 7, TOKENS),
    ),
    "shared_embedding": (sj.encoder_decoder(**SIZES, depth=DEPTH, encoder_depth=2), (TOKENS, TOKENS)),
}


@pytest.fixture(params=daily(CASES, "stack", "model", "encoder_decoder"))
def case(request):
    model, batch = CASES[request.param]
    return model, perturbed(model.init(jax.random.key(0))), batch


def inputs_of(batch):
    return batch if isinstance(batch, tuple) else (batch,)


def loss(y):
    return jnp.mean(y**2)


def test_the_table_has_each_sides_own_numbers(case):
    model, params, _ = case
    table = sj.display.table(model, params)
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert sum(int(row["parameters"].replace(",", "")) for row in rows) == model.n_params
    for path, stack in model.stacks().items():
        mine = [row for row in rows if "part" not in row or row["part"] == path[0]]
        (value,) = {row["init"] for row in mine if row["role"] == "value"}
        assert value == f"{sj.display.number(stack.gain('value'))} xavier"
    if len(model.stacks()) > 1:
        assert len({row["init"] for row in rows if row["role"] == "value"}) == 2
    layer = model.layer_params(params, 0, next(iter(model.stacks())))
    assert layer["attention"]["query"].shape == (D, D)


def test_the_table_says_who_draws_an_embedding_that_is_shared():
    rule = sj.recipe.TFixup()
    for source_vocab in (None, 7):
        model = sj.encoder_decoder(**{**SIZES, "recipe": rule}, depth=DEPTH, encoder_depth=2, source_vocab=source_vocab)
        params = model.init(jax.random.key(0))
        rows = [row for row in sj.display.table(model).rows if row[1] == "embed"]
        gains = {stack.geometry.side: sj.display.number(stack.gain("embed")) for stack in model.stacks().values()}
        assert gains["encoder"] != gains["decoder"]
        parts = {row[0]: row[4].split()[0] for row in rows}
        wanted = {"decoder": gains["encoder"]} if source_vocab is None else {"source": gains["encoder"], **gains}
        assert parts == {part: wanted[part] for part in parts} and len(parts) == (1 if source_vocab is None else 2)
        spread = float(jnp.std(params["decoder"]["embedding"]["token"])) * D**0.5
        assert abs(spread - float(parts["decoder"])) < 0.2


def test_every_parameter_is_drawn_by_a_stack_of_the_model(case):
    model, params, _ = case
    drawn_by = model.drawn_by()
    assert jax.tree.structure(drawn_by) == jax.tree.structure(params)
    assert set(map(id, jax.tree.leaves(drawn_by))) == set(map(id, model.stacks().values()))


@pytest.mark.thorough
def test_look_is_each_of_its_parts(case):
    model, params, batch = case
    key = jax.random.key(2)

    @jax.jit
    def run(params):
        def objective(params):
            y, result = model.apply(params, *inputs_of(batch), measure=sj.probe.everything)
            return loss(y), result.measure

        gradient, measured = jax.grad(objective, has_aux=True)(params)
        seen = sj.probe.look(model, params, batch, loss, key)
        return seen, gradient, measured, sj.probe.jacobian_gain(model, params, batch, key)

    seen, gradient, measured, gain = run(params)
    for path, stack in model.stacks().items():
        one = model.of_stack(seen, path)
        assert one["stream_gradient"].shape == (stack.depth + 1,) and one["grad_norm"].shape == (stack.depth,)
        assert largest_difference(one["jacobian_gain"], model.of_stack(gain, path)) < 1e-4
        expected = model.of_stack(measured, path)
        assert largest_difference({name: one[name] for name in expected}, expected) < 1e-4
        for l in range(stack.depth):
            squares = [jnp.sum(g**2) for g in jax.tree.leaves(model.layer_params(gradient, l, path))]
            np.testing.assert_allclose(one["grad_norm"][l], jnp.sqrt(sum(squares)), rtol=1e-4)


def test_a_layer_left_out_counts_in_its_own_place(case):
    model, params, batch = case
    skipping = model.with_stacks({path: sj.skip.skippable(stack) for path, stack in model.stacks().items()})

    @jax.jit
    def run(params, coefficients):
        return loss(skipping.apply(params, *inputs_of(batch), coefficients=coefficients)[0])

    def without(path, layer):
        return skipping.per_stack(
            lambda other, stack: sj.skip.keep(
                stack.coefficients(), jnp.ones(stack.depth).at[layer].set(1.0 if other != path else 0.0)
            )
        )

    whole, left_out = jax.jit(lambda p: sj.skip.losses(model, p, batch, loss))(params)
    np.testing.assert_allclose(whole, loss(jax.jit(model.apply)(params, *inputs_of(batch))[0]), rtol=1e-5)
    np.testing.assert_allclose(run(params, skipping.per_stack(lambda _, stack: stack.coefficients())), whole, rtol=1e-5)
    for path, stack in model.stacks().items():
        values = model.of_stack(left_out, path)
        assert values.shape == (stack.depth,)
        np.testing.assert_allclose(values[1], run(params, without(path, 1)), rtol=1e-5)
        assert abs(values[1] - whole) > 1e-6


def test_layers_are_read_and_replaced(case):
    model, params, batch = case
    run = jax.jit(lambda params: model.apply(params, *inputs_of(batch))[0])
    for path, stack in model.stacks().items():
        layers = [model.layer_params(params, l, path) for l in range(stack.depth)]
        for l, layer in enumerate(sj.convert.unstack(stack, sj.abstract_model.at(params, path))):
            assert largest_difference(layers[l], layer) == 0
            assert largest_difference(model.layer_params(params, l - stack.depth, path), layer) == 0
        swapped = model.with_layer_params(params, 0, layers[1], path)
        swapped = model.with_layer_params(swapped, 1, layers[0], path)
        assert largest_difference(model.layer_params(swapped, 0, path), layers[1]) == 0
        twice = model.with_layer_params(model.with_layer_params(swapped, 0, layers[0], path), 1, layers[1], path)
        assert jax.tree.all(jax.tree.map(np.array_equal, twice, params))
        assert not np.allclose(run(params), run(swapped), atol=1e-4)


def test_the_stack_must_be_named_where_there_are_several():
    model, _ = CASES["encoder_decoder"]
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"say which stack, out of \[\('decoder', 'stack'\), \('encoder',\)\]"):
        model.layer_params(params, 0)
    layer = model.layer_params(params, 0, ("encoder",))
    with pytest.raises(ValueError, match="the parameters of layer 0 have the shapes"):
        model.with_layer_params(params, 0, layer, ("decoder", "stack"))


DOORS = {
    "apply": lambda model, params: model.apply(params, TOKENS)[0],
    "a plain loop": lambda model, params: model.apply(params, TOKENS, loop=True)[0],
    "logits": lambda model, params: model.logits(params, model.hidden(params, TOKENS)[0]),
    "exits": lambda model, params: sj.exits.logits(model, params, TOKENS)[0],
    "decoding": lambda model, params: sj.decode.generate(model, params, TOKENS, n_tokens=2).tokens,
    "a look": lambda model, params: sj.probe.look(model, params, TOKENS, loss, jax.random.key(0)),
    "a search": lambda model, params: sj.debug.first_not_finite(model, params, TOKENS),
    "a layer": lambda model, params: model.with_layer_params(params, 1, model.layer_params(params, 0)),
    "selection": lambda model, params: sj.surgery.select(model, params, [0, 0, 2], coefficients="new", state=params)[
        1:
    ],
    "insertion": lambda model, params: sj.surgery.insert_identity(
        model, params, [0], coefficients="original", state={"mu": params}
    )[1:],
    "convert": lambda model, params: sj.convert.unstack(model.stack, params["stack"]),
    "an adapter": lambda model, params: sj.adapt.start(sj.adapt.low_rank(model, rank=1), params, jax.random.key(0)),
    "an optimiser": lambda model, params: (tx := sj.optim.muon(model, learning_rate=0.1)).update(
        params, tx.init(params), params
    )[0],
}


@pytest.mark.parametrize("kind", ["numpy", "without empty groups"])
@pytest.mark.parametrize("door", daily(DOORS, "apply", "a layer", "selection", "insertion", "a look", "exits"))
def test_parameters_of_numpy_or_a_flat_format_are_as_good(door, kind):
    model = sj.decoder(**{**SIZES, "recipe": sj.recipe.PreNorm()}, depth=DEPTH, tied=True)
    params = perturbed(model.init(jax.random.key(0)))
    given = jax.device_get(params) if kind == "numpy" else unflatten_dict(flatten_dict(params))
    assert kind == "numpy" or "head" not in given
    expected, got = DOORS[door](model, params), DOORS[door](model, given)
    if door != "an optimiser":  # its updates are nested like what it was given
        assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_state_in_which_nothing_is_nested_like_the_parameters_is_refused():
    params = DECODER.init(jax.random.key(0))
    flat = {"mu": flatten_dict(params, sep="/")}
    with pytest.raises(ValueError, match="nothing in the state is nested like the parameters"):
        sj.surgery.select(DECODER, params, [0], coefficients="new", state=flat)
    *_, state = sj.surgery.select(DECODER, params, [0], coefficients="new", state={"count": jnp.zeros((), int)})
    assert state["count"] == 0
