"""Every constant depends on depth, side and the other stack's depth as the paper says: closed numbers."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.recipe import Geometry
from tests.cases import RECIPES
from tests.helpers import daily, output


def at(depth, side="decoder", other=0, sublayers=2, d_model=64):
    return Geometry(depth=depth, d_model=d_model, n_sublayers=sublayers, side=side, other_depth=other)


def numbers(rule, geometry):
    coefficients = rule.coefficients(geometry)
    return {name: np.asarray(value) for name, value in coefficients["sublayer"].items()}


@pytest.mark.parametrize(
    ("geometry", "alpha", "beta"),
    [
        (at(6, "encoder"), 1.8612, 0.37992),
        (at(100), 3.7606, 0.18803),
        (at(1000), 6.6874, 0.10574),
        (at(6, "encoder", 6), 1.41794, 0.49699),
        (at(6, "decoder", 6), 2.05977, 0.34329),
        (at(18, "encoder", 18), 1.9987, 0.35257),
        (at(18, "decoder", 18), 2.7108, 0.26085),
        (at(12, "encoder", 3), 0.81 * (12**4 * 3) ** (1 / 16), 0.87 * (12**4 * 3) ** (-1 / 16)),
        (at(3, "decoder", 12), 9**0.25, 36**-0.25),
    ],
)
def test_deepnorm(geometry, alpha, beta):
    rule = recipe.DeepNorm()
    np.testing.assert_allclose(numbers(rule, geometry)["alpha"], alpha, rtol=5e-5)
    for role in ("value", "out", "up", "gate", "down", "cross_value", "cross_out"):
        assert abs(rule.gain(role, geometry) / beta - 1) < 5e-5
    for role in ("query", "key", "cross_query", "cross_key", "embed", "unembed", "norm"):
        assert rule.gain(role, geometry) == 1.0


@pytest.mark.parametrize("geometry", [at(7, "encoder"), at(7), at(18, "encoder", 18), at(18, "decoder", 18)])
def test_deepnorm_keeps_its_own_law(geometry):
    """2 alpha² beta² = 1, up to the two digits of 0.81 and 0.87."""
    alpha, beta = recipe.deepnorm.constants(geometry)
    assert abs(2 * alpha**2 * beta**2 - 1) < 0.01


@pytest.mark.parametrize(
    ("geometry", "gain"),
    [
        (at(1), math.sqrt(math.log(2))),
        (at(12), math.sqrt(math.log(24))),
        (at(12, "encoder"), math.sqrt(math.log(24))),
        (at(12, "encoder", 6), math.sqrt(math.log(18) * math.log(24) / 3)),
        (at(6, "decoder", 12), math.sqrt(math.log(18))),
    ],
)
def test_sub_norm(geometry, gain):
    rule = recipe.SubNorm()
    for role in ("value", "out", "up", "gate", "down"):
        assert abs(rule.gain(role, geometry) - gain) < 1e-12
    for role in ("query", "key", "cross_value", "cross_out", "embed"):
        assert rule.gain(role, geometry) == 1.0


@pytest.mark.parametrize(
    ("geometry", "branch", "embed"),
    [
        (at(6, "encoder", 6), 0.67 * 6**-0.25, 54**-0.25),
        (at(6, "decoder", 6), 54**-0.25, 54**-0.25),
        (at(12, "decoder", 3), 108**-0.25, 108**-0.25),
        (at(12), 0.67 * 12**-0.25, 108**-0.25),
        (at(12, "encoder"), 0.67 * 12**-0.25, 108**-0.25),
    ],
)
def test_t_fixup(geometry, branch, embed):
    rule = recipe.TFixup()
    for role in ("value", "out", "up", "gate", "down", "cross_value", "cross_out"):
        assert abs(rule.gain(role, geometry) - branch) < 1e-12
    assert abs(rule.gain("embed", geometry) - embed) < 1e-12
    assert rule.gain("query", geometry) == rule.gain("cross_key", geometry) == rule.gain("unembed", geometry) == 1.0


@pytest.mark.parametrize(("depth", "sublayers"), [(1, 2), (6, 2), (1000, 2), (6, 3)])
def test_numbers_on_skip_and_branch(depth, sublayers):
    where = at(depth, sublayers=sublayers)
    l = np.arange(1, depth + 1)[:, None] * np.ones(sublayers)
    np.testing.assert_allclose(numbers(recipe.Keel(), where)["alpha"], depth * sublayers)
    np.testing.assert_allclose(numbers(recipe.LayerNormScaling(), where)["gamma"], l**-0.5, rtol=1e-6)
    np.testing.assert_allclose(numbers(recipe.CompleteP(base_depth=3), where)["beta"], 3 / depth, rtol=1e-6)
    np.testing.assert_allclose(numbers(recipe.DepthMuP(base_depth=3), where)["beta"], (3 / depth) ** 0.5, rtol=1e-6)
    for rule in (recipe.ScaledInit(), recipe.PlainScaledInit(), recipe.HybridNorm()):
        assert rule.gain("out", where) == rule.gain("down", where) == (sublayers * depth) ** -0.5
        assert rule.gain("cross_out", where) == (sublayers * depth) ** -0.5
        assert rule.gain("value", where) == rule.gain("up", where) == 1.0
    np.testing.assert_allclose(recipe.DSInit().gain("query", where), l[:, 0] ** -0.5, rtol=1e-6)


def test_where_mix_norm_turns():
    rule = recipe.MixNorm()
    for depth, turn in ((1, 0), (3, 0), (4, 1), (12, 3), (31, 7)):
        forms = [rule.form(sj.FeedForward(), 1, layer, at(depth)) for layer in range(depth)]
        assert forms == [rule.first] * turn + [rule.residual] * (depth - turn)
    stack = sj.Stack.of(sj.Layer(sublayers=(sj.FeedForward(),)), depth=12, d_model=8, recipe=rule)
    assert [(segment.n, len(segment.layers)) for segment in stack.segments] == [(3, 1), (9, 1)]


def test_slopes_of_dyt_go_by_the_width():
    slopes = recipe.dynamic_tanh.first_slopes
    assert [slopes(d) for d in (64, 4096, 5120, 8192)] == [(0.5, 0.5), (0.8, 0.2), (0.6, 0.15), (0.2, 0.05)]
    stack = sj.Stack.of(
        sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward())),
        depth=2,
        d_model=8,
        recipe=recipe.DyT(others=0.3),
    )
    params = stack.init(jax.random.key(0))
    residual = params["segments"]["0"]["0"]["residual"]
    np.testing.assert_allclose(residual["attention"]["norm"]["alpha"], 0.5)
    np.testing.assert_allclose(residual["feed_forward"]["norm"]["alpha"], 0.3)
    np.testing.assert_allclose(params["leave"]["inner"]["norm"]["alpha"], 0.3)


DEPTHLESS = (
    "PreNorm",
    "PostNorm",
    "SandwichNorm",
    "PeriNorm",
    "ResPostNorm",
    "NormFormer",
    "ResiDual",
    "Admin",
    "ReZero",
)
DEPTHLESS += ("SkipInit", "LayerScale", "Highway", "DyT", "SigmaReparam", "PlainResidual", "WithoutResidual", "MixNorm")


@pytest.mark.parametrize("name", DEPTHLESS)
def test_no_number_where_the_paper_has_none(name):
    rule = getattr(recipe, name)()
    for depth in (1, 6, 1000):
        assert all((value == 1).all() for value in numbers(rule, at(depth)).values())
        assert all(np.all(rule.gain(role, at(depth)) == 1.0) for role in (*sj.parameter.MATRICES, "embed", "unembed"))


@pytest.mark.parametrize(
    "name", daily(RECIPES, "deepnorm", "admin", "hyper_connections", "attention_residuals", "ngpt")
)
def test_no_layers(name):
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward()))
    stack = sj.Stack.of(layer, depth=0, d_model=8, recipe=RECIPES[name])
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    params = stack.calibrate(stack.init(jax.random.key(1)), x)
    assert np.isfinite(output(stack, params, x)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe.MixNorm(share=1.0), "share"),
        (lambda: recipe.Weighted(beta=[1.0, 2.0]).coefficients(at(3)), r"beta must be one number, \(3,\)"),
        (lambda: recipe.Weighted(alpha=np.ones((3, 3))).coefficients(at(3)), "alpha"),
        (lambda: _stack(recipe.MixNorm(), looped=True), "cannot be looped"),
        (lambda: _stack(recipe.HybridNorm(first=recipe.residual.Pre()), looped=True), "cannot be looped"),
        (lambda: _stack(recipe.SubNorm(), sj.FeedForward(inner_norm=sj.RMSNorm())), "leave it to the recipe"),
        (lambda: _stack(recipe.HybridNorm(), sj.Attention(n_heads=2, qk_norm=sj.RMSNorm())), "leave it to the recipe"),
        (lambda: _stack(recipe.NormFormer(), _Own()), "has no such field"),
        (lambda: _stack(recipe.Shaped(), _Own()), "Shaped knows"),
        (lambda: _stack(recipe.SigmaReparam(), _Grouped()).declaration(), "groups of their own"),
        (lambda: _stack(recipe.Shaped(), sj.Attention(n_heads=2, cross=True)), "cross-attention"),
        (lambda: _stack(recipe.Shaped(), sj.Attention(n_heads=2, sinks=True)), "sinks do not"),
        (lambda: _stack(recipe.Shaped(), sj.FeedForward(gated=True)), "not nearly linear"),
        (lambda: _stack(recipe.Shaped(), _OwnAttention(n_heads=2)), "Shaped knows"),
        (lambda: _head(recipe.CompleteP(base_width=8), std=0.02), "born with std"),
        (lambda: _head(recipe.CompleteP(base_width=8), transform=sj.feed_forward.gelu), "nothing in front"),
        (lambda: _head(recipe.NGPT(), bias=True), "without bias"),
        (lambda: _head(recipe.NGPT(), norm=sj.RMSNorm()), "without bias, dense layer or norm"),
    ],
)
def test_what_cannot_be_combined_says_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class _Own(sj.Sublayer):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OwnAttention(sj.Attention):
    pass


class _Grouped(sj.Sublayer):
    def spec(self, d_model):
        return {"expert": sj.parameter.matrix(d_model, d_model, "up")}


def _stack(rule, sublayer=None, **options):
    return sj.Stack.of(sj.Layer(sublayers=(sublayer or sj.FeedForward(),)), depth=4, d_model=8, recipe=rule, **options)


def _head(rule, **options):
    return rule.adapt_head(sj.Head(**options), at(4))


def test_sub_norm_leaves_cross_attention_as_it_is():
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.Attention(name="cross", n_heads=2, cross=True)))
    stack = sj.Stack.of(layer, depth=2, d_model=8, recipe=recipe.SubNorm())
    own, cross = stack.segments[0].layers[0].sublayers
    assert own.inner_norm == sj.LayerNorm() and cross.inner_norm == sj.NoNorm()


def test_shaped_is_balanced():
    """Skip and branch keep the variance of the stream; slopes tend to 1 and logits to 0 with the width."""
    rule, layer = recipe.Shaped(gate=0.6), sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward()))
    found = numbers(rule, at(7))
    np.testing.assert_allclose(found["alpha"] ** 2 + found["beta"] ** 2, 1, rtol=1e-6)
    for d_model in (16, 64):
        attention, forward = sj.Stack.of(layer, depth=1, d_model=d_model, recipe=rule).segments[0].layers[0].sublayers
        assert attention.scale == 1 / math.sqrt(d_model * d_model / 2)
        assert forward.activation == recipe.shaped.ShapedReLU(1.0, 1 - 1 / math.sqrt(4 * d_model))


def test_shaped_keeps_tokens_apart():
    """Mean cosine between tokens after as many layers as features; post-norm's tends to 1 (rank collapse)."""
    layer, found = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward())), {}
    for rule in (recipe.Shaped(), recipe.PostNorm()):
        stack = sj.Stack.of(layer, depth=48, d_model=48, recipe=rule)
        x = jax.random.normal(jax.random.key(1), (2, 16, 48))
        _, result = jax.jit(lambda p, x, stack=stack: stack.apply(p, x, measure=sj.probe.stream))(
            stack.init(jax.random.key(0)), x
        )
        found[type(rule)] = float(result.measure["token_similarity"][-1])
    assert found[recipe.Shaped] < 0.2 and found[recipe.PostNorm] > 0.9, found


def test_weighted_takes_arrays_and_stays_static():
    rule = recipe.Weighted(beta=np.arange(1, 5))
    assert rule == recipe.Weighted(beta=[1, 2, 3, 4]) and hash(rule) == hash(recipe.Weighted(beta=(1.0, 2, 3, 4)))
    np.testing.assert_array_equal(numbers(rule, at(4))["beta"], np.arange(1, 5)[:, None] * np.ones(2))
