"""Mistakes that are seen within a model: what its parts return, coefficients, packed positions, layers, sizes."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import perturbed
from tests.doors import BOTH, BOTH_PARAMS, MODEL, PARAMS, SIZES, TOKENS, D, T, apply, at

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
