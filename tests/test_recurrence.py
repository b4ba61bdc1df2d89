"""Recurrent depth: a loop in the middle of a stack, told how many turns to run and how many to differentiate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recurrence
from stackjax.testing import largest_difference, normal, perturbed

D, T, TURNS = 8, 5, 5
PLAIN = sj.decoder(vocab=11, d_model=D, depth=4, n_heads=2, feed_forward=sj.FeedForward(d_hidden=12))
LINEAR = sj.recipe.InputInjection(base=PLAIN.stack.recipe, joined="linear")
CHEAP = sj.Stack.of(sj.Layer(sublayers=(sj.FeedForward(d_hidden=6),)), depth=4, d_model=D, recipe=sj.recipe.PreNorm())
SUM = sj.recipe.InputInjection(base=PLAIN.stack.recipe)


def looped(recipe=LINEAR, turns=TURNS, plain=PLAIN):
    return recurrence.looped(plain, before=1, turns=turns, after=1, recipe=recipe)


def drawn(model):
    return perturbed(model.init(jax.random.key(0), jnp.float64))


def by_hand(model, params, x, turns, backward_turns, joined):
    """Pre-norm with a loop in the middle, written as it is thought of."""
    (forward,) = model.segments[0].layers[0].sublayers
    prelude, core, coda = (params["segments"][i] for i in "012")

    def layer(weights, h):
        normed = sj.norm.layer_norm(weights["residual"]["feed_forward"]["norm"], h)
        return h + forward.apply(weights["feed_forward"], normed, sj.SideInputs())[0]

    e = layer(jax.tree.map(lambda a: a[0], prelude["0"]), x)
    s = jnp.zeros_like(e) if joined else e
    for turn in range(turns):
        if 0 < turn == turns - backward_turns:
            s = jax.lax.stop_gradient(s)
        if joined == "linear":
            s = jnp.concatenate((s, e), -1) @ core["0"]["residual"]["outer"]["join"]
        elif joined == "sum":
            s = s + e
        s = layer(core["1"], layer(core["0"], s))
    h = layer(jax.tree.map(lambda a: a[0], coda["0"]), s)
    return sj.norm.layer_norm(params["leave"]["inner"]["norm"], h)


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", [LINEAR, SUM, None], ids=["linear", "sum", "no injection"])
def test_it_is_a_plain_loop_and_its_gradient_ends_where_it_is_stopped(recipe, x64):
    """Every number of turns is one program; those that are not run leave no trace."""
    model = looped(recipe, plain=CHEAP)
    joined = recipe and recipe.joined
    params, x, weights = drawn(model), normal(2, T, D), normal(2, T, D, key=1)

    @partial(jax.jit, static_argnames="backward_turns")
    def gradients(params, x, turns, backward_turns):
        def loss(params, x):
            return jnp.sum(weights * model.apply(params, x, turns=turns, backward_turns=backward_turns)[0])

        return jax.value_and_grad(loss, (0, 1))(params, x)

    def expected(turns, backward_turns):
        def loss(params, x):
            return jnp.sum(weights * by_hand(model, params, x, turns, backward_turns, joined))

        return jax.value_and_grad(loss, (0, 1))(params, x)

    wanted = jax.jit(lambda: {turns: expected(turns, 2) for turns in (1, 2, TURNS)})()
    for turns, values in wanted.items():
        assert largest_difference(gradients(params, x, turns, 2), values) < 1e-10, turns
    assert gradients._cache_size() == 1
    assert (
        largest_difference(gradients(params, x, None, None), jax.jit(expected, static_argnums=(0, 1))(TURNS, 9)) < 1e-10
    )
    assert np.isnan(gradients(params, x, TURNS + 1, 2)[0]) and np.isnan(gradients(params, x, 0, 2)[0])


@pytest.mark.thorough
def test_every_way_to_run_turns_is_the_same(x64):
    model = looped(plain=CHEAP)
    params, x = drawn(model), normal(2, T, D)
    ways = ({}, {"loop": True}, {"remat": "nested"})

    def run(params, taps, way):
        def loss(params, taps):
            options = {"turns": jnp.int32(4), "backward_turns": 3, "taps": taps, "key": jax.random.key(3), **way}
            return jnp.mean(model.apply(params, x, **options)[0] ** 3)

        return jax.value_and_grad(loss, (0, 1))(params, taps)

    taps = jnp.zeros(model.depth + 1)
    first, *others = jax.jit(lambda params, taps: [run(params, taps, way) for way in ways])(params, taps)
    for way, other in zip(ways[1:], others, strict=True):
        assert largest_difference(other, first) < 1e-10, way
    squares = first[1][1]
    assert (
        squares[0] > 0
        and (squares[1:3] == 0).all()
        and (squares[3:9] > 0).all()
        and (squares[9:11] == 0).all()
        and squares[11] > 0
    )


@pytest.mark.thorough
def test_fewer_turns_are_seen_edited_and_measured_as_in_a_model_of_fewer():
    model, few = looped(), recurrence.with_turns(looped(), 3)
    params, tokens = perturbed(model.init(jax.random.key(0))), jnp.arange(6)[None]
    watched = {"measure": sj.probe.stream, "edit": {"feed_forward/output": lambda l, y: y + 0.1 * l}}
    y, result = model.apply(params, tokens, turns=3, **watched)
    expected, measured = few.apply(params, tokens, **watched)
    coda = few.stack.depth - 1
    for name, rows in result.measure.items():
        np.testing.assert_allclose(rows[:coda], measured.measure[name][:coda], rtol=2e-5, atol=1e-6)
        assert jnp.isnan(rows[coda:-1]).all() and jnp.isfinite(rows[-1]).all()
    del watched["edit"]
    y, expected = model.apply(params, tokens, turns=3)[0], few.apply(params, tokens)[0]
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.thorough
def test_more_turns_take_the_same_parameters_and_decode_as_they_run():
    """Keys and values of every turn are kept: decoding is the full pass, at a number of turns never trained."""
    model = recurrence.with_turns(looped(), 9)
    params, prompt = perturbed(looped().init(jax.random.key(0))), jnp.array([[3, 1, 4]])
    assert model.stack.depth == 20 and model.n_params == looped().n_params
    new = sj.decode.generate(model, params, prompt, n_tokens=5)
    logits = jax.jit(model.apply)(params, jnp.concatenate((prompt, new.tokens), 1))[0]
    log_prob = jax.nn.log_softmax(logits)[:, 2:-1]
    np.testing.assert_array_equal(log_prob.argmax(-1), new.tokens)
    np.testing.assert_allclose(log_prob.max(-1), new.log_prob, rtol=1e-4, atol=1e-4)
    assert largest_difference(logits, looped().apply(params, jnp.concatenate((prompt, new.tokens), 1))[0]) > 1e-3


def test_one_turn_of_a_sum_is_the_model_without_a_loop():
    model = looped(SUM, turns=1)
    params, tokens = perturbed(PLAIN.init(jax.random.key(0))), jnp.arange(6)[None]
    core = {j: jax.tree.map(lambda a, j=j: a[1 + int(j)], params["stack"]["segments"]["0"]["0"]) for j in "01"}
    ends = {i: {"0": jax.tree.map(lambda a, i=i: a[i : i + 1], params["stack"]["segments"]["0"]["0"])} for i in (0, 3)}
    stack = {**params["stack"], "segments": {"0": ends[0], "1": core, "2": ends[3]}}
    logits = model.apply({**params, "stack": stack}, tokens)[0]
    np.testing.assert_allclose(logits, PLAIN.apply(params, tokens)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_the_loop_starts_from_noise_in_training_alone():
    model = looped(sj.recipe.InputInjection(noise=0.6)).stack
    params, x = perturbed(model.init(jax.random.key(0))), normal(1, T, D).astype(jnp.float32)
    one, other, mean = (model.apply(params, x, key=key)[0] for key in (jax.random.key(1), jax.random.key(2), None))
    assert largest_difference(one, other) > 1e-2 and largest_difference(one, mean) > 1e-2
    np.testing.assert_array_equal(mean, looped(SUM).stack.apply(params, x)[0])


def test_turns_are_drawn_with_their_mean_between_one_and_most():
    keys = jax.random.split(jax.random.key(0), 4000)
    turns = jax.jit(jax.vmap(lambda key: recurrence.draw_turns(key, mean=16, most=200)))(keys)
    deviation = np.sqrt((16 + 16**2 * (np.exp(0.25) - 1)) / len(keys))
    assert turns.min() >= 1 and abs(float(turns.mean()) - 17) < 4 * deviation and (turns != turns[0]).any()
    assert (jax.vmap(lambda key: recurrence.draw_turns(key, mean=16, most=3))(keys[:500]) <= 3).all()


def test_it_is_saved_and_its_layers_are_chosen(tmp_path):
    model = looped()
    params = model.init(jax.random.key(0))
    sj.save(tmp_path / "model", model, params)
    assert sj.load(tmp_path / "model")[0] == model
    shorter, kept, _ = sj.surgery.select(model, params, [0, 1, 2, 3, 4, model.stack.depth - 1], coefficients="new")
    assert shorter == recurrence.with_turns(model, 2) and largest_difference(kept, params) == 0
    with pytest.raises(ValueError, match="repeats its whole pattern of 2 layers"):
        sj.surgery.select(model, params, [0, 1, 2, 3, model.stack.depth - 1], coefficients="new")


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda: recurrence.looped(PLAIN, turns=0), "turns must be a positive int"),
        (lambda: recurrence.looped(PLAIN, turns=2, before=2, after=2), "between the first 2 and the last 2"),
        (lambda: recurrence.looped(looped(), turns=2), "with a loop"),
        (lambda: recurrence.with_turns(PLAIN, 2), "has no loop"),
        (lambda: looped(sj.recipe.MixNorm()), "treats layers differently"),
        (lambda: looped(sj.recipe.InputInjection(base=sj.recipe.DenseFormer())), "has one already"),
        (lambda: sj.decoder(recipe=LINEAR), "injected into a loop"),
        (lambda: sj.recipe.InputInjection(joined="product"), "'sum' or 'linear'"),
        (lambda: PLAIN.apply({}, jnp.arange(3)[None], turns=2), "parameters"),
        (lambda: run(PLAIN, turns=2), "this stack has none"),
        (lambda: run(looped(), turns=TURNS + 1), "turns must be 1 .. 5"),
        (lambda: run(looped(), turns=2.0), "one integer"),
        (lambda: run(looped(), backward_turns=0), "backward_turns must be a positive int"),
        (lambda: run(looped(sj.recipe.AttentionResiduals()), turns=2), "needs all turns"),
        (lambda: run(looped(sj.recipe.PreNorm(residual=sj.residual.Pre(norm=sj.BatchNorm()))), turns=2), "statistics"),
        (lambda: decode_with_turns(looped()), "a cache holds every turn"),
    ],
)
def test_what_is_no_loop_is_refused(mistake, says):
    with pytest.raises(ValueError, match=says):
        mistake()


def run(model, **options):
    jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0)), jnp.arange(3)[None], **options))


def decode_with_turns(model):
    params = model.init(jax.random.key(0))
    position = sj.SideInputs(position={"index": jnp.arange(3)[None]})
    cache = sj.cache.empty(model.stack, params["stack"], position, 4)
    model.hidden(params, jnp.arange(3)[None], position, cache=cache, turns=2)
