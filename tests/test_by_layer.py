"""Layers that differ in numbers alone: one program for all, equal to each layer with its own numbers compiled."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import blockwise, by_layer, serialization
from stackjax.convert import unstack
from stackjax.position import rotary_scaling
from stackjax.segment import MANY, Segment, fold
from stackjax.testing import largest_difference, normal, perturbed
from stackjax.testing.causality import check_causality
from stackjax.testing.decoding import check_decoding

L, D, T = MANY + 1, 16, 9
RECIPE = sj.recipe.PreNorm()


def layer(i, **fields):
    """Layer i, with a window (of layer 4 none) and a rotary base of its own."""
    chosen = {"window": None if i == 4 else 2 + i, "position": sj.position.Rotary(base=10.0 * 3**i), **fields}
    return sj.Layer(sublayers=(sj.Attention(n_heads=2, **chosen), sj.FeedForward(d_hidden=24)))


def stack_of(depth=L, **fields):
    return sj.Stack.of(*(layer(i, **fields) for i in range(depth)), depth=depth, d_model=D, recipe=RECIPE)


def one_by_one(stack):
    """The same stack with a segment for each layer."""
    return replace(stack, segments=tuple(Segment(layers=(one,), n=1) for one in stack.segments[0].each))


def split(stack, params):
    """Parameters of `stack` for `one_by_one`."""
    segments = {str(i): {"0": jax.tree.map(lambda a: a[None], one)} for i, one in enumerate(unstack(stack, params))}
    return {**params, "segments": segments}


STACK = stack_of()
PARAMS = perturbed(STACK.init(jax.random.key(0)), size=0.3)
X = normal(2, T, D)


def value_and_gradients(stack, params, **options):
    """Output, and gradients by parameters and input."""

    def run(params, x):
        y, _ = stack.apply(params, x, **options)
        return jnp.sum(y * normal(*X.shape, key=5)), y

    run = jax.value_and_grad(run, (0, 1), has_aux=True)
    (_, y), gradients = (run if options.get("loop") else jax.jit(run))(params, X)
    return y, gradients


@pytest.fixture(scope="module")
def expected():
    y, (of_params, of_x) = value_and_gradients(one_by_one(STACK), split(STACK, PARAMS), loop=True)
    return y, of_params, of_x


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["plain", "blockwise"])
def test_one_program_equals_layer_by_layer(backend, expected, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    stack = stack_of(backend=backend)
    (segment,) = stack.segments
    assert segment.n == L and len(segment.layers) == 1
    y, (of_params, of_x) = value_and_gradients(stack, PARAMS, remat="layer" if backend == "plain" else "none")
    assert largest_difference((y, split(stack, of_params), of_x), expected) < 1e-4
    alike = replace(stack, segments=(Segment(layers=segment.layers, n=L),))
    assert largest_difference(alike.apply(PARAMS, X)[0], expected[0]) > 1e-2


@pytest.mark.thorough
def test_decoding_and_causality():
    model = sj.Model(embedding=sj.Embedding(vocab=11), stack=stack_of())
    check_causality(model, sees_all=False)
    check_decoding(model)


def test_the_program_does_not_grow_with_depth():
    def lines(depth):
        stack = stack_of(depth)
        params = jax.eval_shape(stack.init, jax.random.key(0))
        return jax.jit(lambda params: stack.apply(params, X)[0]).lower(params).as_text().count("\n")

    assert abs(lines(4 * L) - lines(L)) < 10


def test_the_cache_holds_what_the_widest_layer_sees():
    layers = [layer(i, window=1 + i % 5) for i in range(L)]
    stack = sj.Stack.of(*layers, depth=L, d_model=D, recipe=RECIPE)
    inputs = sj.SideInputs(position={"index": jnp.arange(T)[None]})
    cache = sj.cache.empty(stack, stack.init(jax.random.key(0)), inputs, T)
    assert {n: x["index"].shape for n, x in cache.position.items()} == {5: (1, 5)}


def test_few_unlike_layers_keep_their_numbers_in_the_program():
    assert [segment.unlike for segment in fold([layer(i) for i in range(MANY)])] == [()] * MANY


def test_a_pattern_is_one_program_as_well():
    """Every second layer sees everything; what differs in shape stays apart."""
    layers = [layer(i, window=None) if i % 2 else layer(i, n_kv_heads=1) for i in range(2 * L)]
    (segment,) = fold(layers)
    assert (segment.n, len(segment.layers)) == (L, 2) and segment.each == tuple(layers)
    numbers = segment.numbers_by_layer
    assert set(numbers["0"]["sublayers"]["attention"]) == {"window", "position"}
    assert set(numbers["1"]["sublayers"]["attention"]) == {"position"}
    assert int(numbers["0"]["sublayers"]["attention"]["window"][2]) == by_layer.LARGEST


def test_what_a_subclass_does_with_numbers_is_not_known():
    class Mine(sj.Attention):
        pass

    layers = [replace(layer(0), sublayers=(Mine(n_heads=2, window=1 + i),)) for i in range(L)]
    assert len(fold(layers)) == L
    stretched = [
        sj.position.Rotary(base=2.0 + i, scaling=rotary_scaling.YaRN(factor=2.0, original_length=8)) for i in range(L)
    ]
    assert len(fold([layer(0, position=position) for position in stretched])) == L


def test_layers_are_shown_saved_and_selected_with_their_numbers():
    assert "9 layers as one program\n    1 x Attention(n_heads=2, window=2, position=Rotary(base=10.0))" in repr(STACK)
    assert serialization.decode(serialization.encode(STACK)) == STACK
    order = list(range(L))[::-1]
    chosen, params, _ = sj.surgery.select(STACK, PARAMS, order, coefficients="new")
    assert chosen.segments[0].each == STACK.segments[0].each[::-1]
    np.testing.assert_array_equal(
        unstack(chosen, params)[0]["attention"]["query"], unstack(STACK, PARAMS)[-1]["attention"]["query"]
    )


@pytest.mark.thorough
def test_containers_hand_numbers_on():
    """Side by side, and with low-rank factors, a layer's numbers reach its attention."""

    def beside(i):
        attention, feed_forward = layer(i).sublayers
        return sj.Layer(sublayers=(sj.Parallel(sublayers=(attention, feed_forward)),))

    stack = sj.Stack.of(*map(beside, range(L)), depth=L, d_model=D, recipe=RECIPE)
    params = perturbed(stack.init(jax.random.key(0)), size=0.3)
    adapted = sj.adapt.low_rank(stack, rank=1, alpha=1.0)
    params = perturbed(sj.adapt.start(adapted, params, jax.random.key(1)), size=0.3)
    y, _ = adapted.apply(params, X, loop=True)
    expected, _ = one_by_one(adapted).apply(split(adapted, params), X, loop=True)
    assert adapted.segments[0].unlike and largest_difference(y, expected) < 1e-5


def test_a_segment_refuses_layers_that_are_no_repeats():
    (segment,) = STACK.segments
    with pytest.raises(ValueError, match="differ only in numbers"):
        replace(segment, layers=(layer(0, n_kv_heads=1),))
    with pytest.raises(ValueError, match="differ only in numbers"):
        replace(segment, layers=(layer(0),))


def test_an_encoding_with_numbers_turns_and_no_more():
    with pytest.raises(ValueError, match="acts in `rotate` alone"):

        class Mine(sj.position.Position):
            numbers = ("slope",)

            def bias(self, params, table):
                return table
