"""A mistake at a door is one ValueError with rule, what was given and what to do; where it is traced, it is NaN."""

import re
from dataclasses import dataclass, replace
from functools import partial

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import perturbed

V, D, T = 11, 8, 5
SIZES = {"vocab": V, "d_model": D, "n_heads": 2, "feed_forward": sj.FeedForward(d_hidden=12)}
MODEL = sj.decoder(**SIZES, depth=2)
PARAMS = perturbed(MODEL.init(jax.random.key(0)))
BOTH = sj.encoder_decoder(**SIZES, depth=1, recipe=sj.recipe.DeepNorm())
BOTH_PARAMS = BOTH.init(jax.random.key(0))
TOKENS = jnp.arange(2 * T).reshape(2, T) % V


def apply(model=MODEL, params=PARAMS, tokens=TOKENS, side_inputs=None, **options):
    return model.apply(params, tokens, side_inputs, **options)[0]


def at(**position):
    return sj.SideInputs(position={name: jnp.asarray(x) for name, x in position.items()})


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


def unflattened(params):
    """As flat formats give it back: without empty groups."""
    return flax.traverse_util.unflatten_dict(flax.traverse_util.flatten_dict(params))


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


MEASURES = {
    "an array": (lambda trace: trace.after, "a measure must return a dict, {name: array}; .* returned an array"),
    "nothing": (lambda trace: None, "returned NoneType None"),
    "a dict of nothing": (lambda trace: {"x": None}, "returned NoneType None under 'x'"),
    "a dict of dicts": (lambda trace: {"x": {"y": 1.0}}, "returned dict .* under 'x'"),
    "numbers for names": (lambda trace: {0: trace.after}, "under 0"),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_that_returns_something_else(name):
    measure, message = MEASURES[name]
    for model, params, inputs in ((MODEL, PARAMS, (TOKENS,)), (BOTH, BOTH_PARAMS, (TOKENS, TOKENS))):
        with pytest.raises(ValueError, match=message):
            model.apply(params, *inputs, measure=measure)


def test_a_measure_whose_shape_differs_from_layer_to_layer():
    layers = [sj.Layer(sublayers=(sj.FeedForward(d_hidden=n, inner_norm=sj.RMSNorm()),)) for n in (4, 6)]
    stack = sj.Stack.of(*layers, depth=2, d_model=D, recipe=sj.recipe.PreNorm())
    seen = iter((jnp.ones(2), jnp.ones(3)))
    with pytest.raises(ValueError, match=r"'x' has \[\(2,\), \(3,\)\]: reduce it"):
        stack.apply(stack.init(jax.random.key(0)), jnp.ones((T, D)), measure=lambda trace: {"x": next(seen)})


def test_a_measure_may_return_plain_numbers():
    measured = MODEL.apply(PARAMS, TOKENS, measure=lambda trace: {"one": 1.0, "two": np.float32(2)})[1].measure
    assert measured["one"].tolist() == [1, 1] and measured["two"].tolist() == [2, 2]


def with_form(form):
    recipe = sj.recipe.Recipe(residual=form)
    return sj.Stack.of(sj.Layer(sublayers=(sj.FeedForward(),)), depth=1, d_model=D, recipe=recipe)


class Half(sj.recipe.form.Form):
    def update(self, x, f, c):
        return f(x)[..., : D // 2]


class Pair(sj.recipe.form.Form):
    def update(self, x, f, c):
        return f(x), x


class Nothing(sj.recipe.form.Form):
    def update(self, x, f, c):
        f(x)


class Twice(sj.recipe.form.Form):
    def update(self, x, f, c):
        return f(f(x))


class Misspelt(sj.recipe.form.Form):
    def update(self, x, f, c):
        return c.alfa * x + f(x)


class Bare(sj.recipe.form.Form):
    def apply(self, params, c, stream, branch, key=None):
        return branch(stream)


FORMS = {
    Half: r"Half.update must return the stream with the shapes it came with, \(2, 5, 8\); it returned \(2, 5, 4\)",
    Pair: r"Pair.update must return the stream with the shapes .* it returned \(\(2, 5, 8\), \(2, 5, 8\)\)",
    Nothing: "Nothing.update must return the stream .* it returned None",
    Twice: "Twice.update must call its branch f once; it called it 2 times",
    Misspelt: "a form reads the coefficient 'alfa', and the recipe gives",
    Bare: r"Bare.apply must return \(stream, Aux\), .* it returned an array",
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_form_that_returns_something_else(form):
    stack = with_form(form())
    with pytest.raises(ValueError, match=FORMS[form]):
        stack.apply(stack.init(jax.random.key(0)), jnp.ones((2, T, D)))


@dataclass(frozen=True, kw_only=True)
class Returns(sj.Sublayer):
    what: str

    def spec(self, d_model):
        return {}

    def apply(self, params, x, side_inputs):
        aux = sj.Aux()
        return {"y": x, "no aux": (x, {}), "one token": (x[:, :1], aux), "list": [x, aux]}[self.what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("y", r"must return \(y, Aux\(\)\); it returned an array"),
        ("no aux", r"must return \(y, Aux\(\)\); it returned tuple"),
        ("list", r"must return \(y, Aux\(\)\); it returned list"),
        ("one token", r"must return y in the shape of x, \(2, 5, 8\); it returned an array of shape \(2, 1, 8\)"),
    ],
)
def test_a_sublayer_that_returns_something_else(what, message):
    layer = sj.Layer(sublayers=(Returns(what=what),))
    stack = sj.Stack.of(layer, depth=1, d_model=D, recipe=sj.recipe.PreNorm())
    with pytest.raises(ValueError, match=message):
        stack.apply(stack.init(jax.random.key(0)), jnp.ones((2, T, D)))


def test_a_norm_that_changes_the_shape():
    class Mean(sj.norm.Norm):
        def apply(self, params, x):
            return x.mean(-1, keepdims=True)

    stack = with_form(sj.residual.Pre(norm=Mean()))
    with pytest.raises(ValueError, match=r"Mean must keep the shape \(2, 5, 8\); it returned \(2, 5, 1\)"):
        stack.apply(stack.init(jax.random.key(0)), jnp.ones((2, T, D)))


def coefficients(**sublayer):
    own = MODEL.stack.coefficients()
    return {**own, "sublayer": {**own["sublayer"], **sublayer}}


def without(tree, *names):
    return {name: value for name, value in tree.items() if name not in names}


COEFFICIENTS = {
    "misspelt": (lambda: coefficients(alhpa=jnp.ones((2, 2))), r"unknown: \['sublayer/alhpa'\].*Start from"),
    "missing": (lambda: {**coefficients(), "sublayer": {}}, r"missing: \['sublayer/alpha', 'sublayer/beta', "),
    "without the ends": (lambda: without(coefficients(), "embed"), r"missing: \['embed'\]"),
    "a number": (lambda: coefficients(alpha=2.0), r"sublayer/alpha must begin with the axes \(2, 2\).*; got \(\)"),
    "one for each layer": (lambda: coefficients(alpha=jnp.ones(2)), r"must begin with the axes \(2, 2\).*; got \(2,\)"),
    "of another depth": (
        lambda: sj.decoder(**SIZES, depth=3).stack.coefficients(),
        r"must begin with the axes \(2, 2\) .*; got \(3, 2\)",
    ),
    "of another recipe": (
        lambda: sj.decoder(**SIZES, depth=2, recipe=sj.recipe.StochasticDepth()).stack.coefficients(),
        r"PreNorm has the coefficients .*unknown: \['sublayer/keep'\]",
    ),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_coefficients_that_are_not_the_recipes(name):
    make, message = COEFFICIENTS[name]
    doors = (
        lambda: apply(coefficients=make()),
        lambda: MODEL.logits(PARAMS, jnp.ones(D), coefficients=make()),
        lambda: MODEL.stack.apply(PARAMS["stack"], jnp.ones((T, D)), coefficients=make()),
        lambda: sj.decode.generate(MODEL, PARAMS, TOKENS, n_tokens=1, coefficients=make()),
    )
    for door in doors:
        with pytest.raises(ValueError, match=message):
            door()


def test_coefficients_of_one_side_alone():
    given = {"encoder": BOTH.encoder.coefficients()}
    for name in ("coefficients", "taps", "perturbations"):
        with pytest.raises(ValueError, match=rf"{name} must be a dict {{encoder: .., decoder: ..}}; got \['encoder'\]"):
            BOTH.apply(BOTH_PARAMS, TOKENS, TOKENS, **{name: given})
    with pytest.raises(ValueError, match=r"taps must be a dict {encoder: .., decoder: ..}; got an array"):
        BOTH.apply(BOTH_PARAMS, TOKENS, TOKENS, taps=jnp.zeros(2))


def test_a_recipe_that_returns_other_coefficients():
    class Flat(sj.recipe.PreNorm):
        def coefficients(self, geometry):
            return {"alpha": jnp.ones((geometry.depth, 2))}

    class Short(sj.recipe.PreNorm):
        def coefficients(self, geometry):
            own = super().coefficients(geometry)
            return {**own, "sublayer": {**own["sublayer"], "alpha": jnp.ones(geometry.depth)}}

    for rule, message in (
        (Flat(), r"Flat.coefficients must return \{sublayer, outer, "),
        (Short(), "sublayer/alpha must"),
    ):
        model = sj.decoder(**SIZES, depth=2, recipe=rule)
        with pytest.raises(ValueError, match=message):
            apply(model)


PACKED = [0, 1, 2, 0, 1]


@pytest.mark.parametrize("attention", [None, sj.LatentAttention(n_heads=2, d_head=4, d_rotary=4, d_latent=4)])
def test_restarting_positions_need_a_segment(attention):
    model = sj.decoder(**SIZES, depth=1, attention=attention)
    params = perturbed(model.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=re.compile(r"twice in row 0.*give\s+position\['segment'\]", re.DOTALL)):
        apply(model, params, side_inputs=at(index=PACKED))
    with pytest.raises(ValueError, match="twice in row 1"):
        apply(model, params, side_inputs=at(index=[[0, 1, 2, 3, 4], PACKED]))
    with pytest.raises(ValueError, match="twice in row 0"):
        apply(model, params, side_inputs=at(index=[0, 1, 0, 1, 2], segment=[0, 0, 1, 1, 1][::-1]))
    packed = apply(model, params, side_inputs=at(index=PACKED, segment=[0, 0, 0, 1, 1]))
    for tokens in (TOKENS[:, :3], TOKENS[:, 3:]):
        start = 0 if tokens.shape[1] == 3 else 3
        alone = apply(model, params, tokens)
        np.testing.assert_allclose(packed[:, start : start + tokens.shape[1]], alone, atol=1e-5)
    padded = apply(model, params, side_inputs=at(index=[-1, -1, 0, 1, 2]))
    np.testing.assert_allclose(padded[:, 2:], apply(model, params, TOKENS[:, 2:]), atol=1e-5)


def test_an_encoder_may_repeat_positions():
    encoder = sj.encoder(**SIZES, depth=1)
    assert np.isfinite(apply(encoder, encoder.init(jax.random.key(0)), side_inputs=at(index=PACKED))).all()


LAYERS = {"beyond": 2, "far below": -3, "no integer": 0.5, "none": None}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_not_there(name):
    layer = MODEL.layer_params(PARAMS, 0)
    with pytest.raises(ValueError, match=r"layer must be 0 .. L - 1, .*L=2; got"):
        MODEL.layer_params(PARAMS, LAYERS[name])
    with pytest.raises(ValueError, match=r"layer must be 0 .. L - 1, .*L=2; got"):
        MODEL.with_layer_params(PARAMS, LAYERS[name], layer)


SIZES_THAT_DIVIDE = {
    "period": partial(sj.position.Scalar, period=0),
    "n_positions": partial(sj.position.Learned, n_positions=0),
    "base": partial(sj.position.Rotary, base=0.0),
    "d_rotary": partial(sj.position.Rotary, d_rotary=0),
    "factor": partial(sj.position.rotary_scaling.Linear, factor=0.0),
    "original_length": partial(sj.position.rotary_scaling.DynamicNTK, original_length=0),
    "arity": partial(sj.position.TreePath, arity=0),
    "threshold": partial(sj.position.FIRE, threshold=0.0),
    "base_depth": partial(sj.recipe.CompleteP, base_depth=0),
    "n": partial(sj.recipe.hyper_connections.HyperConnected, n=0),
    "d_hidden": partial(sj.FeedForward, d_hidden=0),
    "n_experts": partial(sj.MixtureOfExperts, n_experts=0, d_hidden=4),
}


@pytest.mark.parametrize("name", SIZES_THAT_DIVIDE)
def test_numbers_that_something_is_divided_by(name):
    with pytest.raises(ValueError, match=rf"{name} must be positive; got 0"):
        SIZES_THAT_DIVIDE[name]()


@pytest.mark.parametrize(
    "make",
    [
        partial(sj.MixtureOfExperts, n_experts=4, d_hidden=4),
        partial(sj.Parallel, sublayers=(sj.FeedForward(),)),
        partial(sj.LatentAttention, n_heads=2, d_head=4, d_rotary=4, d_latent=4),
        partial(sj.Embedding, vocab=3),
        sj.FeedForward,
    ],
)
def test_dropout_is_a_rate_everywhere(make):
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1; got 1.0"):
        make(dropout=1.0)


def test_ntk_scaling_has_a_pair_that_stays():
    stretched = sj.position.Rotary(d_rotary=2, scaling=sj.position.rotary_scaling.NTK(factor=2.0))
    model = sj.decoder(**SIZES, depth=1, position=stretched)
    with pytest.raises(ValueError, match="NTK scaling stretches all pairs but the first; got R=2"):
        apply(model, model.init(jax.random.key(0)))


def test_fields_that_cannot_be_hashed():
    @dataclass(frozen=True, kw_only=True)
    class Listed(sj.FeedForward):
        numbers: list = None

    @dataclass(frozen=True, kw_only=True)
    class Drawn(sj.recipe.PreNorm):
        numbers: object = None

    with pytest.raises(ValueError, match=r"a layer must be hashable, .*tuples and functions in its fields; unhashable"):
        sj.Layer(sublayers=(Listed(numbers=[1]),))
    with pytest.raises(ValueError, match=r"recipe must be hashable, .*unhashable"):
        sj.decoder(**SIZES, depth=1, recipe=Drawn(numbers=jnp.ones(2)))


@pytest.mark.parametrize("shape", [(0, T), (2, 0)])
def test_no_tokens(shape):
    with pytest.raises(ValueError, match="a stack needs at least one token; got x of shape"):
        apply(tokens=jnp.zeros(shape, int))


@pytest.mark.parametrize("slot", [-1, 3, 99])
def test_a_slot_that_a_history_does_not_have(slot):
    history = sj.History.start(jnp.ones((T, D)), 3)
    assert np.isfinite(history.write(jnp.int32(2), jnp.ones((T, D))).slots).all()
    assert np.isnan(history.write(jnp.int32(slot), jnp.ones((T, D))).slots).any()
    assert np.isfinite(history.write(jnp.int32(slot), jnp.ones((T, D)), when=False).slots).all()
