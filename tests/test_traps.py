"""What was once accepted, and silently ignored or read as something else, is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.interop import hf
from tests.doors import BOTH, BOTH_PARAMS, MODEL, PARAMS, SIZES, TOKENS, at

LAYER = MODEL.stack.segments[0].layers[0]
ON_SPHERE = sj.decoder(vocab=9, d_model=8, depth=2, n_heads=2, recipe=sj.recipe.NGPT())
KEY = jax.random.key(0)
MEMORY = jnp.ones((2, 3, 8))
HEADS = jnp.ones((1, 4, 2, 8))
ROWS = jnp.arange(8).reshape(2, 4)
INDEX = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)


def cut(layers):
    return sj.surgery.select(MODEL, PARAMS, layers, coefficients="new")


class Louder(sj.recipe.PreNorm):
    """A gain for a layer that is not there."""

    def gain(self, role, geometry):
        return jnp.ones(geometry.depth + 1)


def stack(*layers, side="decoder"):
    return sj.Stack.of(*layers, depth=2, d_model=8, recipe=sj.recipe.PreNorm(), side=side)


def generated(model=MODEL, params=PARAMS, side_inputs=None, n_tokens=2, **options):
    return sj.decode.generate(model, params, TOKENS, side_inputs, n_tokens=n_tokens, **options)


def followed(model):
    """Two prompts of the other model go on in this one."""
    start = sj.prompt.start(MODEL, PARAMS, TOKENS, None, 2)
    params = model.init(jax.random.key(0))
    return sj.decode.follow(model, params, TOKENS[:, 0], start.index, start.cache)


def with_two_ranks():
    roles = ("query", "up")
    one, two = (sj.adapt.low_rank(MODEL, rank=n, roles=roles).stack.segments[0].layers[0].sublayers for n in (2, 3))
    segment = MODEL.stack.segments[0]
    layer = dataclasses.replace(segment.layers[0], sublayers=(one[0], two[1]))
    segment = dataclasses.replace(segment, layers=(layer,))
    return dataclasses.replace(MODEL, stack=dataclasses.replace(MODEL.stack, segments=(segment,)))


def other_depth():
    geometry = dataclasses.replace(MODEL.stack.geometry, depth=8)
    return dataclasses.replace(MODEL.stack, geometry=geometry)


REFUSED = {
    "a mask for layers": (lambda: cut(np.array([True, False])), r"np\.flatnonzero\(mask\)"),
    "fractions for layers": (lambda: cut([0, 1.9]), "layers must be named by integers"),
    "a misspelt position": (lambda: MODEL.apply(PARAMS, TOKENS, at(index=INDEX, segment_ids=INDEX)), "is 'segment' m"),
    "a side that is none": (lambda: sj.decoder(vocab=9, d_model=8, depth=1, n_heads=2, side="dec"), "side must be"),
    "a side of a stack": (lambda: stack(sj.Layer(sublayers=LAYER.sublayers), side="Encoder"), "side must be"),
    "another depth": (other_depth, "a stack of 2 layers says depth=8"),
    "a recipe in place of one inside sublayers": (
        lambda: sj.recurrence.looped(ON_SPHERE, turns=2, recipe=sj.recipe.PreNorm()),
        "NGPT.* changed the sublayers of this model",
    ),
    "layers with forms": (lambda: stack(LAYER), "give Stack.of layers without forms"),
    "an additive mask": (
        lambda: sj.dot_product.attention_weights(HEADS, HEADS, scale=1.0, mask=jnp.zeros((1, 1, 4, 4))),
        "mask must be booleans",
    ),
    "whole numbers in a norm": (lambda: sj.norm.layer_norm({}, ROWS), "x must be of a floating-point dtype"),
    "whole numbers in a product": (lambda: sj.parameter.linear({"up": jnp.ones((4, 2))}, "up", ROWS), "x must be of a"),
    "fractions in a prompt": (lambda: sj.decode.pad([[1.7, 2.9]]), "prompts must be lists of integer tokens"),
    "text for a prompt": (lambda: sj.decode.pad(["12"]), "prompts must be lists of integer tokens"),
    "padding of a memory, in its encoder": (
        lambda: BOTH.encode(BOTH_PARAMS, TOKENS, sj.SideInputs(memory_position={"index": INDEX})),
        "whose padding is side_inputs.position",
    ),
    "a memory, in its encoder": (
        lambda: BOTH.encode(BOTH_PARAMS, TOKENS, sj.SideInputs(memory=jnp.ones((2, 3, 8)))),
        "it takes no memory",
    ),
    "a memory, where it is made": (
        lambda: BOTH.apply(BOTH_PARAMS, TOKENS, TOKENS, sj.SideInputs(memory=MEMORY)),
        "the memory is made of the source here",
    ),
    "a memory, where recipes are calibrated": (
        lambda: BOTH.calibrate(BOTH_PARAMS, TOKENS, TOKENS, sj.SideInputs(memory=MEMORY)),
        "the memory is made of the source here",
    ),
    "a memory of another width": (
        lambda: BOTH.decoder.apply(BOTH_PARAMS["decoder"], TOKENS, sj.SideInputs(memory=jnp.ones((2, 3, 4)))),
        "D=8; got",
    ),
    "padding of another source": (
        lambda: BOTH.apply(BOTH_PARAMS, TOKENS, TOKENS, sj.SideInputs(memory_position={"index": INDEX[:, :2]})),
        "every entry of memory_position",
    ),
    "temperatures by column": (
        lambda: generated(temperature=jnp.ones(2), key=KEY),
        r"temperature must be one number, or one for each row \(2, 1\); got an array of shape \(2,\)",
    ),
    "a mass for each kind of token": (lambda: sj.sample.top_p(jnp.ones((4, 4)), jnp.ones(4)), "top_p must be one"),
    "a list of temperatures": (
        lambda: generated(temperature=[[0.5], [1.0]], key=KEY),
        "temperature must be one number",
    ),
    "a word for a number": (lambda: generated(temperature="hot", key=KEY), "temperature must be one number"),
    "penalties by beam": (
        lambda: sj.beam.search(MODEL, PARAMS, TOKENS, n_tokens=2, n_beams=2, length_penalty=jnp.ones(2)),
        "length_penalty must be one number; got",
    ),
    "a fraction of beams": (
        lambda: sj.beam.search(MODEL, PARAMS, TOKENS, n_tokens=2, n_beams=2.0),
        "n_beams must be an integer",
    ),
    "yes for a number of tokens": (lambda: generated(n_tokens=True), "n_tokens must be an integer"),
    "a seed for a key": (lambda: generated(key=3), "key must be one PRNG key"),
    "a word that stops": (lambda: generated(stop="."), "stop must be a token's number"),
    "a token of 41 bits": (lambda: sj.decode.pad([[2**40]]), "prompts must be lists of integer tokens"),
    "the parameters of both sides": (
        lambda: generated(BOTH.decoder, BOTH_PARAMS, sj.SideInputs(memory=MEMORY)),
        "parameters must have the structure",
    ),
    "a cache of another depth": (
        lambda: followed(sj.decoder(**SIZES, depth=3)),
        "the cache must be one of this model",
    ),
    "a bias that goes the wrong way": (
        lambda: sj.MixtureOfExperts(n_experts=4, top_k=2, d_hidden=8, bias_rate=-0.1),
        "bias_rate must be positive",
    ),
    "a gain for each of other layers": (
        lambda: sj.Stack.of(sj.Layer(sublayers=LAYER.sublayers), depth=2, d_model=8, recipe=Louder()).init(KEY),
        "Louder's gain for the role .* has the shape",
    ),
    "whole numbers for weights": (lambda: hf.load("nowhere", dtype=jnp.int8), "dtype must be of a floating-point"),
    "means of different shapes": (
        lambda: sj.surgery.average([{"a": jnp.ones((1, 3))}, {"a": jnp.ones((4, 3))}]),
        r"a must have one shape in all trees; got \(1, 3\), \(4, 3\)",
    ),
    "between different shapes": (lambda: sj.surgery.interpolate(jnp.ones(1), jnp.ones(4), 0.5), "must have one shape"),
    "fewer layers than there are": (lambda: sj.probe.layer_norms(PARAMS, MODEL.declaration(), 1), "2 or more; got 1"),
    "a bias of no gate": (lambda: sj.Attention(n_heads=2, bias=("gate",)), "gate if any; got .*gate"),
    "no turns": (lambda: sj.recurrence.draw_turns(jax.random.key(0), mean=-1.0, most=4), "mean must be positive"),
    "adapters of two ranks": (lambda: sj.adapt.merge(with_two_ranks(), {}), "have one rank and alpha"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    call, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        call()


def test_a_memory_beside_a_cache():
    where = at(index=np.zeros((2, 1), int))
    cache = sj.cache.empty(MODEL.stack, PARAMS["stack"], where, 2)
    with pytest.raises(ValueError, match="the cache holds all that is needed of a memory"):
        sj.decode.extend(MODEL, PARAMS, TOKENS[:, :1], dataclasses.replace(where, memory=jnp.ones((2, 3, 8))), cache)


def test_a_traced_index_that_the_cache_holds_is_nan():
    start = jax.jit(lambda tokens: sj.prompt.start(MODEL, PARAMS, tokens, None, 4))(TOKENS)
    follow = jax.jit(lambda token, index, cache: sj.decode.follow(MODEL, PARAMS, token, index, cache)[0])
    right, again = (follow(TOKENS[:, 0], start.index - n, start.cache) for n in (0, 1))
    assert np.isfinite(right).all() and np.isnan(again).all()


def test_an_encoder_decoder_keeps_the_dropout_of_its_sublayers():
    forward = sj.FeedForward(d_hidden=8, dropout=0.3)
    for given, wanted in ((None, [0.0, 0.0, 0.3]), (0.1, [0.1] * 3)):
        model = sj.encoder_decoder(vocab=9, d_model=8, depth=1, n_heads=2, feed_forward=forward, dropout=given)
        (layer,) = model.decoder.stack.segments[0].layers
        assert [sublayer.dropout for sublayer in layer.sublayers] == wanted
        assert model.encoder.segments[0].layers[0].sublayers[-1].dropout == wanted[-1]


def test_the_sphere_has_a_factor_for_each_of_fewer_outputs():
    model = sj.decoder(vocab=9, d_model=8, depth=1, n_heads=2, recipe=sj.recipe.NGPT())
    model = dataclasses.replace(model, head=sj.Head(n_outputs=1))
    params = model.init(jax.random.key(0))
    assert model.apply(params, TOKENS % 9)[0].shape == (*TOKENS.shape, 1)


def test_turns_are_cut_however_large_their_mean():
    assert sj.recurrence.draw_turns(jax.random.key(0), mean=1e12, most=4) == 4


def test_numbers_for_each_row_are_those_of_its_own_draw():
    logits, each = jax.random.normal(KEY, (3, 3)), jnp.array([[0.0], [1.0], [50.0]])
    for row in range(3):
        np.testing.assert_array_equal(
            sj.sample.temperature(logits, each)[row], sj.sample.temperature(logits[row], each[row])
        )
