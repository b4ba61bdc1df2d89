"""Recipes: the constants of the papers, and the identities that hold at init."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.recipe import Geometry
from stackjax.recipe.form import Branch, FormCoefficients
from stackjax.testing import normal, perturbed
from tests.helpers import output

D = 16
LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=24)))


def stack(rule, depth=3, d_model=D):
    return sj.Stack.of(LAYER, depth=depth, d_model=d_model, recipe=rule)


def residual(form, coefficients, x, f, params=None):
    specs = sj.parameter.declare(form.spec(D, 3))
    own = params or sj.parameter.realise(jax.random.key(0), specs, dtype=x.dtype)
    branch = Branch(lambda h, hints: (f(h), sj.Aux()), x.dtype)
    return form.apply(own, FormCoefficients(coefficients), x, branch)[0], jax.tree.map(np.asarray, own)


def numpy_norm(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


FORMS = {
    sj.residual.NoResidual(): lambda p, a, b, g, x, f: f(g * x),
    sj.residual.Plain(): lambda p, a, b, g, x, f: a * x + b * f(g * x),
    sj.residual.Pre(): lambda p, a, b, g, x, f: a * x + b * f(g * numpy_norm(p["norm"], x)),
    sj.residual.Post(): lambda p, a, b, g, x, f: numpy_norm(p["norm"], a * x + b * f(g * x)),
    sj.residual.Sandwich(): lambda p, a, b, g, x, f: (
        a * x + b * numpy_norm(p["norm_out"], f(g * numpy_norm(p["norm_in"], x)))
    ),
    sj.residual.Gated(): lambda p, a, b, g, x, f: a * x + b * p["gate"] * f(g * x),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_forms_read_like_their_formulas(x64, form):
    specs = sj.parameter.declare(form.spec(D, 3))
    params = perturbed(sj.parameter.realise(jax.random.key(0), specs, dtype=jnp.float64))
    x, scale = normal(2, 3, D), {"alpha": jnp.float64(1.7), "beta": jnp.float64(0.4), "gamma": jnp.float64(0.8)}
    found, own = residual(form, scale, x, jnp.tanh, params)
    np.testing.assert_allclose(found, FORMS[form](own, 1.7, 0.4, 0.8, np.asarray(x), np.tanh), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("n", "m", "encoder", "decoder"),
    [(18, 18, (1.9987, 0.35257), (2.7108, 0.26085)), (6, 6, (1.41794, 0.49699), (2.05977, 0.34329))],
)
def test_deepnorm_constants_of_an_encoder_decoder(n, m, encoder, decoder):
    """Wang et al. 2022, table 2, worked out."""
    found = recipe.deepnorm.constants(Geometry(depth=n, d_model=D, side="encoder", other_depth=m))
    np.testing.assert_allclose(found, encoder, rtol=1e-4)
    found = recipe.deepnorm.constants(Geometry(depth=m, d_model=D, n_sublayers=3, side="decoder", other_depth=n))
    np.testing.assert_allclose(found, decoder, rtol=1e-4)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_deepnorm_constants_of_one_stack(side):
    alpha, beta = recipe.deepnorm.constants(Geometry(depth=6, d_model=D, side=side))
    np.testing.assert_allclose((alpha, beta), (1.8612, 0.37992), rtol=1e-4)
    # 2 L (beta / alpha)² v² stays bounded: alpha² = 1 / (2 beta²), the paper's condition.
    np.testing.assert_allclose(2 * alpha**2 * beta**2, 1, rtol=1e-12)


def test_deepnorm_scales_the_branches_and_nothing_else():
    plain, deep = (stack(rule).init(jax.random.key(0)) for rule in (recipe.PostNorm(), recipe.DeepNorm()))
    beta = np.float32(24**-0.25)
    for sublayer, names in (("attention", ("value", "out")), ("feed_forward", ("up", "down"))):
        for name in names:
            a, b = (params["segments"]["0"]["0"][sublayer][name] for params in (plain, deep))
            np.testing.assert_allclose(b, beta * a, rtol=1e-6)
    for name in ("query", "key"):
        np.testing.assert_array_equal(*(p["segments"]["0"]["0"]["attention"][name] for p in (plain, deep)))
    np.testing.assert_allclose(stack(recipe.DeepNorm()).coefficients()["sublayer"]["alpha"], 6**0.25, rtol=1e-6)


def test_rezero_is_the_identity_at_init():
    x = normal(2, 4, D)
    deep = stack(recipe.ReZero())
    np.testing.assert_array_equal(output(deep, deep.init(jax.random.key(0)), x), x)


@pytest.mark.parametrize("dynamic", [True, False])
def test_hyper_connections_start_as_pre_norm_on_equal_streams(x64, dynamic):
    """Each layer reads one stream, and what the N streams sum to is N x + what all branches wrote N times."""
    rule = recipe.HyperConnections(residual=recipe.hyper_connections.HyperConnected(n=3, dynamic=dynamic))
    x = normal(2, 4, D)
    pre, hyper = stack(recipe.PreNorm()), stack(rule)
    expected = output(pre, pre.init(jax.random.key(0), jnp.float64), x)
    found = output(hyper, hyper.init(jax.random.key(0), jnp.float64), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_complete_p_is_pre_norm_to_the_bit_at_its_base():
    base = recipe.CompleteP(base_depth=3, base_width=D)
    models = [sj.decoder(vocab=7, d_model=D, depth=3, n_heads=2, recipe=rule) for rule in (recipe.PreNorm(), base)]
    tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, 7)
    params = [model.init(jax.random.key(0)) for model in models]
    assert all(map(np.array_equal, *map(jax.tree.leaves, params)))
    outputs = [jax.jit(model.apply)(params[0], tokens)[0] for model in models]
    np.testing.assert_array_equal(*outputs)
    one = recipe.Multiplier()
    leaves = jax.tree.leaves(models[1].multipliers(), is_leaf=lambda x: isinstance(x, recipe.Multiplier))
    assert set(leaves) == {one}


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_complete_p_table(alpha):
    """Dey et al. 2025, table 1, at 4 times the depth and 2 times the width."""
    rule = recipe.CompleteP(alpha=alpha, base_depth=3, base_width=8, default_init=sj.parameter.Normal(0.02))
    geometry = Geometry(depth=12, d_model=16)
    coefficients = rule.coefficients(geometry)
    np.testing.assert_allclose(coefficients["sublayer"]["beta"], 4**-alpha)
    np.testing.assert_allclose(coefficients["unembed"], 1 / 2)
    np.testing.assert_allclose(rule.gain("up", geometry) ** 2, 1 / 2)
    eps = 4**-alpha / 2
    expected = {
        "query": (4 ** (alpha - 1) / 2, 2, eps),
        "down": (4 ** (alpha - 1) / 2, 2, eps),
        "norm": (4 ** (alpha - 1), 1, eps),
        "bias": (4 ** (alpha - 1), 1, eps),
        "embed": (1, 1, 1 / 2),
        "unembed": (1, 1, 1 / 2),
        "final_norm": (1, 1, 1 / 2),
    }
    for role, numbers in expected.items():
        m = rule.multiplier(role, geometry)
        np.testing.assert_allclose((m.learning_rate, m.weight_decay, m.eps), numbers, err_msg=role)


def test_complete_p_keeps_the_embedding_as_the_stream_sees_it():
    """Std 1/sqrt(D) times sqrt(D): the stream enters with unit RMS at any width."""
    for width in (8, 64):
        model = sj.decoder(vocab=50, d_model=width, depth=0, n_heads=2, recipe=recipe.CompleteP(base_width=8))
        params = model.init(jax.random.key(0))
        x = model.embedding.apply(
            params["embedding"], jnp.arange(50)[None], multiplier=model.stack.coefficients()["embed"]
        )
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(x))), 1, rtol=0.1)


def test_complete_p_keeps_the_laws_of_the_ends():
    """Table 1 leaves the variance of embedding and output alone; ours divide by the width, so the recipe multiplies."""
    for width in (8, 64):
        rule = recipe.CompleteP(base_width=8)
        params = sj.decoder(vocab=999, d_model=width, depth=0, n_heads=2, recipe=rule).init(jax.random.key(0))
        for matrix in (params["embedding"]["token"], params["head"]["unembed"]):
            np.testing.assert_allclose(np.var(matrix), 1 / 8, rtol=0.05)


def test_controls_do_what_they_are_controls_for():
    """Without norms, a skip explodes by about sqrt(3) a layer (two branches of unit gain; less at this small width)."""
    x = normal(2, 6, D)
    measures = {}
    for rule in (recipe.PlainResidual(default_init=sj.parameter.FanIn()), recipe.PreNorm(), recipe.PostNorm()):
        deep = stack(rule, depth=32)
        run = jax.jit(lambda p, x, deep=deep: deep.apply(p, x, measure=sj.probe.stream)[1].measure["stream_rms"])
        measures[type(rule).__name__] = run(deep.init(jax.random.key(0)), x)
    growth = (measures["PlainResidual"][-1] / measures["PlainResidual"][0]) ** (1 / 31)
    assert 1.2 < growth < 2
    assert measures["PreNorm"][-1] < 20
    np.testing.assert_allclose(measures["PostNorm"], 1, rtol=0.01)
