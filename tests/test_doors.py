"""A mistake at a door is one ValueError with rule, what was given and what to do; where it is traced, it is NaN."""

from dataclasses import dataclass, replace

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import perturbed
from tests.doors import BOTH, BOTH_PARAMS, MODEL, PARAMS, SIZES, TOKENS, D, T, V, apply, at

NOT_AN_INSTANCE = {
    "recipe, a class": (lambda: sj.decoder(recipe=sj.recipe.DeepNorm), "recipe must be .* the class DeepNorm; make"),
    "recipe, a string": (lambda: sj.decoder(recipe="deepnorm"), "recipe must be .* 'deepnorm'; names .* command line"),
    "recipe of both": (lambda: sj.encoder_decoder(recipe=sj.recipe.PreNorm), "recipe must be an instance of Recipe"),
    "recipe of a stack": (
        lambda: sj.Stack.of(sj.Layer(sublayers=(sj.FeedForward(),)), depth=1, d_model=D, recipe=sj.recipe.PreNorm),
        "recipe must be an instance of Recipe; got the class PreNorm",
    ),
    "recipe underneath": (lambda: sj.recipe.StochasticDepth(base=sj.recipe.PreNorm), "base must be an instance of Rec"),
    "form": (lambda: sj.recipe.PreNorm(residual=sj.residual.Pre), "residual must be an instance of Form"),
    "position, a class": (lambda: sj.decoder(position=sj.position.ALiBi), "position must be .* class ALiBi; make one"),
    "position, a string": (lambda: sj.encoder(position="alibi"), "position must be .* the string 'alibi'"),
    "position of both": (lambda: sj.encoder_decoder(position="rotary"), "position must be an instance of Position"),
    "position of attention": (lambda: sj.Attention(n_heads=2, position=sj.position.Rotary), "class Rotary; make one"),
    "position of an embedding": (lambda: sj.Embedding(vocab=3, position="learned"), "position must be an instance"),
    "one of two positions": (
        lambda: sj.position.Both(first=sj.position.Rotary(), second=sj.position.ALiBi),
        "second must be an instance of Position",
    ),
    "norm": (lambda: sj.residual.Post(norm=sj.RMSNorm), "norm must be an instance of Norm"),
    "activation, a string": (
        lambda: sj.FeedForward(activation="gelu"),
        "activation must be a function; got the string",
    ),
    "activation, a class": (
        lambda: sj.FeedForward(activation=sj.LayerNorm),
        "activation must be a function; got the c",
    ),
    "word": (lambda: sj.Attention(n_heads=2, gate="feature "), "gate must be 'head' or 'feature' or None"),
    "sublayers, a list": (
        lambda: sj.Layer(sublayers=[sj.FeedForward()]),
        "sublayers must be a tuple, each entry an in",
    ),
    "sublayers, a class": (
        lambda: sj.Layer(sublayers=(sj.FeedForward,)),
        "sublayers must be a tuple, each entry an in",
    ),
    "layer": (
        lambda: sj.Stack.of(sj.FeedForward(), depth=1, d_model=D, recipe=sj.recipe.PreNorm()),
        "a stack's layer must be an instance of Layer; got FeedForward",
    ),
    "feed-forward": (lambda: sj.decoder(feed_forward=sj.FeedForward), "feed_forward must be an instance of Sublayer"),
    "feed-forward of both": (
        lambda: sj.encoder_decoder(feed_forward="relu"),
        "feed_forward must be an instance of Sub",
    ),
    "attention": (lambda: sj.decoder(attention=sj.Attention), "attention must be an instance of Sublayer"),
    "attention that is none": (lambda: sj.decoder(attention=sj.FeedForward()), "attention must be .* that attends"),
    "attention of both": (
        lambda: sj.encoder_decoder(attention=sj.LatentAttention(n_heads=2, d_head=4, d_rotary=4, d_latent=4)),
        "attention must be an instance of Attention",
    ),
    "heads given twice": (
        lambda: sj.encoder_decoder(n_heads=2, attention=sj.Attention(n_heads=4)),
        "n_heads=2, but attention has n_heads=4; give it once",
    ),
    "no heads": (lambda: sj.decoder(n_heads=0), "n_heads must be positive; got 0"),
}


@pytest.mark.parametrize("name", NOT_AN_INSTANCE)
def test_what_is_not_an_object_of_its_kind(name):
    mistake, message = NOT_AN_INSTANCE[name]
    with pytest.raises(ValueError, match=message):
        mistake()


def test_an_attention_of_your_own_has_the_fields_that_a_decoder_sets():
    @dataclass(frozen=True, kw_only=True)
    class Blind(sj.Sublayer):
        n_heads: int = 2
        attends = True

    with pytest.raises(ValueError, match="Blind has no position, causal"):
        sj.decoder(attention=Blind())


SIDE_INPUTS = {
    "an array": (jnp.arange(T), "side_inputs must be a SideInputs.*got an array of shape \\(5,\\) and dtype int32"),
    "a dict": ({"index": jnp.arange(T)}, "side_inputs must be a SideInputs.*got dict"),
    "position, an array": (sj.SideInputs(position=jnp.arange(T)), "position must be a dict with the entry 'index'"),
    "position without index": (
        at(segment=jnp.zeros(T, int)),
        "position must be .* 'index'.*got a dict of \\['segment'",
    ),
    "one index for all tokens": (at(index=[[0], [0]]), "must begin with the axes of the tokens, \\(2, 5\\)"),
    "another length": (at(index=jnp.arange(T + 1)), "must begin with the axes of the tokens, \\(2, 5\\)"),
    "another batch": (at(index=jnp.zeros((3, T), int)), "must begin with the axes of the tokens, \\(2, 5\\)"),
    "segment of another shape": (
        at(index=jnp.broadcast_to(jnp.arange(T), (2, T)), segment=jnp.zeros(T, int)),
        "must begin with the axes of the tokens",
    ),
    "below -1": (at(index=[-2, 0, 1, 2, 3]), "must be 0 or more, or -1 for padding; got -2"),
}


@pytest.mark.parametrize("name", SIDE_INPUTS)
def test_side_inputs(name):
    side_inputs, message = SIDE_INPUTS[name]
    x = jnp.zeros((2, T, D))
    doors = {
        "model": lambda: apply(side_inputs=side_inputs),
        "hidden": lambda: MODEL.hidden(PARAMS, TOKENS, side_inputs),
        "stack": lambda: MODEL.stack.apply(PARAMS["stack"], x, side_inputs),
        "both": lambda: BOTH.apply(BOTH_PARAMS, TOKENS, TOKENS, side_inputs),
        "encode": lambda: BOTH.encode(BOTH_PARAMS, TOKENS, side_inputs),
        "generate": lambda: sj.decode.generate(MODEL, PARAMS, TOKENS, side_inputs, n_tokens=1),
        "search": lambda: sj.beam.search(MODEL, PARAMS, TOKENS, side_inputs, n_tokens=1, n_beams=1),
    }
    for door in doors.values():
        with pytest.raises(ValueError, match=message):
            door()


def test_a_memory_of_another_batch():
    """Without a batch it would be cut into pieces, one for each example."""
    decoder, params = BOTH.decoder, BOTH_PARAMS["decoder"]
    with pytest.raises(ValueError, match=r"memory must be \(..., S, D\) with the leading axes of the tokens, \(2, 5\)"):
        apply(decoder, params, side_inputs=sj.SideInputs(memory=jnp.ones((4, D))))


def test_a_memory_that_no_sublayer_reads():
    """As of a decoder from which cross-attention was left out: its output would not depend on the source."""
    side_inputs = sj.SideInputs(memory=jnp.ones((*TOKENS.shape[:-1], 4, D)))
    doors = {
        "model": lambda: apply(side_inputs=side_inputs),
        "generate": lambda: sj.decode.generate(MODEL, PARAMS, TOKENS, side_inputs, n_tokens=1),
        "parts": lambda: sj.EncoderDecoder(encoder=MODEL.stack, decoder=MODEL).apply(
            {"source": {}, "encoder": PARAMS["stack"], "decoder": PARAMS}, TOKENS, TOKENS
        ),
    }
    for door in doors.values():
        with pytest.raises(ValueError, match="memory was given, and no sublayer reads it"):
            door()


def unflattened(params):
    """As flat formats give it back: without empty groups."""
    return flax.traverse_util.unflatten_dict(flax.traverse_util.flatten_dict(params))


@pytest.mark.thorough
def test_empty_groups_may_be_missing():
    flat = unflattened(PARAMS)
    assert jax.tree.structure(flat) != jax.tree.structure(PARAMS)
    np.testing.assert_array_equal(apply(params=flat), apply())
    np.testing.assert_array_equal(MODEL.logits(flat, jnp.ones(D)), MODEL.logits(PARAMS, jnp.ones(D)))
    again = MODEL.checked(flat)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
    gradient = jax.grad(lambda p: apply(params=p).sum())(flat)
    assert jax.tree.structure(gradient) == jax.tree.structure(flat)
    both = BOTH.apply(unflattened(BOTH_PARAMS), TOKENS, TOKENS)[0]
    np.testing.assert_array_equal(both, BOTH.apply(BOTH_PARAMS, TOKENS, TOKENS)[0])
    tied = sj.decoder(**SIZES, depth=1, tied=True)
    params = tied.init(jax.random.key(0))
    assert "head" not in unflattened(params)
    np.testing.assert_array_equal(apply(tied, unflattened(params)), apply(tied, params))


def other(**options):
    return sj.decoder(**{**SIZES, "depth": 2, **options}).init(jax.random.key(0))


def changed(params, path, value=None):
    flat = flax.traverse_util.flatten_dict(params, sep="/", keep_empty_nodes=True)
    kept = {name: leaf for name, leaf in flat.items() if not name.startswith(path)}
    return flax.traverse_util.unflatten_dict({**kept, **({} if value is None else {path: value})}, sep="/")


WRONG_PARAMS = {
    "of another depth": (lambda: other(depth=3), "They hold 3 layers where 2 are declared"),
    "of the stack alone": (lambda: PARAMS["stack"], "These are the parameters of `stack` alone: give the whole tree"),
    "in a collection": (lambda: {"params": PARAMS}, "They lie inside of what was given: give params\\['params'\\]"),
    "with more": (lambda: other(recipe=sj.recipe.SandwichNorm()), "not declared: stack/segments/0/0/residual/"),
    "with less": (lambda: other(recipe=sj.recipe.PlainResidual()), "missing: stack/leave/inner/norm/bias, "),
    "with another group": (lambda: {**PARAMS, "extra": {"x": jnp.ones(1)}}, "not declared: extra/x"),
    "without a matrix": (lambda: changed(PARAMS, "head/unembed"), "missing: head/unembed"),
    "without a group": (lambda: changed(PARAMS, "stack/segments/0/0/attention"), "missing: .*attention/key"),
    "of another width": (
        lambda: changed(PARAMS, "embedding/token", jnp.ones((V, D + 1))),
        "of another shape: embedding/token \\(11, 9\\) in place of \\(11, 8\\)",
    ),
    "none": (lambda: None, "the parameters of a Model are a dict.*got NoneType None"),
    "an array": (lambda: jnp.ones(3), "the parameters of a Model are a dict.*got an array of shape \\(3,\\)"),
}


@pytest.mark.parametrize("name", WRONG_PARAMS)
def test_parameters_of_something_else(name):
    make, message = WRONG_PARAMS[name]
    params = make()
    with pytest.raises(ValueError, match=message):
        apply(params=params)
    with pytest.raises(ValueError, match=message):
        jax.jit(MODEL.apply)(params, TOKENS)


def test_every_way_in_looks_at_the_parameters():
    shallow = other(depth=1)
    one = sj.decoder(**SIZES, depth=1)
    layer = one.layer_params(shallow, 0)
    position = at(index=jnp.broadcast_to(jnp.arange(T), (2, T)))
    cache = sj.cache.empty(MODEL.stack, PARAMS["stack"], position, T)
    doors = [
        lambda: MODEL.hidden(shallow, TOKENS),
        lambda: MODEL.stack.apply(shallow["stack"], jnp.ones((T, D))),
        lambda: MODEL.layer_params(shallow, 0),
        lambda: MODEL.with_layer_params(shallow, 0, layer),
        lambda: sj.decode.generate(MODEL, shallow, TOKENS, n_tokens=1),
        lambda: sj.decode.extend(MODEL, shallow, TOKENS, position, cache),
        lambda: sj.cache.empty(MODEL.stack, shallow["stack"], position, T),
        lambda: sj.convert.unstack(MODEL.stack, shallow["stack"]),
        lambda: sj.display.table(MODEL, shallow),
        lambda: sj.probe.look(MODEL, shallow, TOKENS, jnp.sum, jax.random.key(0)),
        lambda: sj.skip.losses(MODEL, shallow, TOKENS, jnp.sum),
        lambda: MODEL.calibrate(shallow, TOKENS),
        lambda: MODEL.stack.calibrate(shallow["stack"], jnp.ones((T, D))),
    ]
    for door in doors:
        with pytest.raises(ValueError, match=r"must have the structure and the shapes that the (Model|Stack) declares"):
            door()
    with pytest.raises(ValueError, match="give the whole tree"):
        BOTH.encode(BOTH_PARAMS["encoder"], TOKENS)
    with pytest.raises(ValueError, match="head/unembed"):
        MODEL.logits(changed(PARAMS, "head/unembed"), jnp.ones(D))


def test_an_unknown_role():
    with pytest.raises(ValueError, match=r"role must be one of .*; got 'querry'; did you mean 'query'\?"):
        sj.Spec(shape=(2, 2), role="querry")
    assert all(sj.Spec(shape=(), role=role).role == role for role in sj.parameter.ROLES)


OUTSIDE = {"too large": V, "just below": -1, "far below": -100}


@pytest.mark.parametrize("name", OUTSIDE)
def test_tokens_outside_of_the_vocabulary(name):
    tokens = TOKENS.at[1, 2].set(OUTSIDE[name])
    with pytest.raises(ValueError, match=r"tokens must be 0 .. 10; got"):
        apply(tokens=tokens)
    with pytest.raises(ValueError, match=r"tokens must be 0 .. 10; got"):
        sj.decode.generate(MODEL, PARAMS, tokens, n_tokens=1)
    with pytest.raises(ValueError, match=r"tokens must be 0 .. 10; got"):
        jax.grad(lambda p: apply(params=p, tokens=tokens).sum())(PARAMS)
    broken = np.isnan(jax.jit(MODEL.apply)(PARAMS, tokens)[0])
    assert not broken[0].any() and broken[1, 2:].all()
    out = jax.jit(lambda t: sj.decode.generate(MODEL, PARAMS, t, n_tokens=2))(tokens)
    assert (out.tokens[0] >= 0).all() and (out.tokens[1] == -1).all()
    assert np.isfinite(out.log_prob[0]).all() and np.isnan(out.log_prob[1]).all()
    beams = jax.jit(lambda t: sj.beam.search(MODEL, PARAMS, t, n_tokens=2, n_beams=2))(tokens)
    assert (beams.tokens[0] >= 0).all() and (beams.tokens[1] == -1).all() and np.isnan(beams.score[1]).all()


def test_types_outside_of_their_table():
    model = replace(MODEL, embedding=sj.Embedding(vocab=V, n_types=2))
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"types must be 0 .. 1; got 0 .. 2"):
        apply(model, params, types=jnp.arange(T) % 3)
    types = jnp.stack((jnp.arange(T) % 2, jnp.arange(T) % 3))
    traced = np.isnan(jax.jit(lambda types: apply(model, params, types=types))(types))
    assert not traced[0].any() and traced[1, 2:].all()
    with pytest.raises(ValueError, match="types are given, but the embedding has none; make it with n_types"):
        apply(types=TOKENS)


@pytest.mark.parametrize("where", ["alone", "in both"])
def test_positions_beyond_a_table(where):
    learned = sj.position.Learned(n_positions=6)
    position = learned if where == "alone" else sj.position.Both(first=sj.position.Rotary(), second=learned)
    model = sj.decoder(**SIZES, depth=1, position=position)
    params = perturbed(model.init(jax.random.key(0)))
    late = at(index=jnp.array([[0], [2]]) + jnp.arange(T))
    with pytest.raises(ValueError, match=r"position\['index'\] must be -1 .. 5; got 0 .. 6"):
        apply(model, params, side_inputs=late)
    with pytest.raises(ValueError, match="7 tokens, but the position table has 6 rows"):
        apply(model, params, jnp.zeros((1, 7), int))
    traced = np.isnan(jax.jit(model.apply)(params, TOKENS, late)[0])
    assert not traced[0].any() and traced[1, -1].all()
    assert np.isfinite(apply(model, params, side_inputs=at(index=[-1, 0, 1, 2, 5]))).all()


@pytest.mark.parametrize("first", [-1, 6])
def test_a_table_begins_at_one_of_its_rows(first):
    with pytest.raises(ValueError, match=rf"first must be a row of the table, 0 .. 5; got {first}"):
        sj.position.Learned(n_positions=6, first=first)


def test_tokens_that_are_no_integers():
    for tokens in (jnp.zeros((2, T)), [[1, 2]], jnp.int32(3)):
        with pytest.raises(ValueError, match=r"tokens must be an array .* of integers.*; got"):
            apply(tokens=tokens)
