"""What each recipe's parameters are born with, measured against the formula."""

import math

import jax
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.recipe.base import BRANCH, CROSS_BRANCH
from stackjax.recipe.depth_init import LAST
from stackjax.testing import normal
from tests.helpers import daily, output

D, F, L = 64, 128, 5
HEADS = sj.Attention(n_heads=4)
CROSS = sj.Attention(name="cross", n_heads=4, cross=True, causal=False)
FORWARD = sj.FeedForward(d_hidden=F, gated=True)


def xavier(shape):
    return math.sqrt(2 / (shape[0] + shape[1]))


def small(shape):
    return 0.02


def gains(roles, gain):
    return lambda role, l: gain if role in roles else 1.0


def even(role, l):
    return 1.0


# recipe: (standard deviation by shape, gain by role and layer l = 1 .. L)
CASES = {
    **{
        name: (getattr(recipe, name)(), xavier, even)
        for name in (
            *("PreNorm", "PostNorm", "SandwichNorm", "PeriNorm", "NormFormer", "ResiDual", "Keel", "Admin", "ReZero"),
            *("SkipInit", "Highway", "DyT", "HyperConnections", "DenseFormer", "StochasticDepth"),
        )
    },
    "ResPostNorm": (recipe.ResPostNorm(), small, even),
    "MixNorm": (recipe.MixNorm(), small, even),
    "SubNorm": (recipe.SubNorm(), xavier, gains(BRANCH, math.sqrt(math.log(2 * L)))),
    "HybridNorm": (recipe.HybridNorm(), small, gains(LAST, (3 * L) ** -0.5)),
    "DeepNorm": (recipe.DeepNorm(), xavier, gains(BRANCH | CROSS_BRANCH, (8 * L) ** -0.25)),
    "LayerNormScaling": (recipe.LayerNormScaling(), small, even),
    "LayerScale": (recipe.LayerScale(), small, even),
    "ScaledInit": (recipe.ScaledInit(), small, gains(LAST, (3 * L) ** -0.5)),
    "PlainScaledInit": (recipe.PlainScaledInit(), xavier, gains(LAST, (3 * L) ** -0.5)),
    "DSInit": (recipe.DSInit(), xavier, lambda role, l: l**-0.5),
    "DSInit, half": (recipe.DSInit(share=0.5), xavier, lambda role, l: 0.5 * l**-0.5),
    "TFixup": (recipe.TFixup(), xavier, gains(BRANCH | CROSS_BRANCH, 0.67 * L**-0.25)),
    "Shaped": (recipe.Shaped(), lambda shape: shape[0] ** -0.5, even),
    "SigmaReparam": (recipe.SigmaReparam(), small, even),
    "CompleteP": (recipe.CompleteP(base_width=16), xavier, even),
    "CompleteP, fixed spread": (
        recipe.CompleteP(base_width=16, default_init=sj.parameter.Normal(0.02)),
        small,
        lambda role, l: 16**0.5 / D**0.5,
    ),
}


@pytest.mark.parametrize(
    "name", daily(CASES, "PreNorm", "MixNorm", "HybridNorm", "DeepNorm", "CompleteP", "CompleteP, fixed spread")
)
def test_measured_standard_deviation(name):
    rule, std, gain = CASES[name]
    sublayers = (HEADS, sj.FeedForward(d_hidden=F)) if name == "Shaped" else (HEADS, CROSS, FORWARD)
    stack = sj.Stack.of(sj.Layer(sublayers=sublayers), depth=L, d_model=D, recipe=rule)
    params = stack.init(jax.random.key(0))
    seen = set()
    for declared, leaf in zip(
        jax.tree.leaves(stack.declaration(), is_leaf=sj.parameter.is_spec), jax.tree.leaves(params), strict=True
    ):
        if not declared.spec.is_matrix:
            continue
        seen.add(declared.spec.role)
        for layer, matrix in zip(declared.layers, leaf, strict=True):
            expected = std(declared.spec.shape) * gain(declared.spec.role, layer + 1)
            # The standard error of a standard deviation is std / sqrt(2 n); 4,096 entries or more, 90 draws, 4 of them.
            assert abs(float(np.std(matrix)) / expected - 1) < 4 / math.sqrt(2 * matrix.size), declared.name
    left_out = {"gate", "cross_query", "cross_key", "cross_value", "cross_out"} if name == "Shaped" else set()
    assert seen == sj.parameter.MATRICES - left_out


def test_widths_keep_what_their_recipes_promise():
    """Under CompleteP, embeddings, logits and hidden layers keep their size as the width grows."""

    def sizes(d_model):
        model = sj.decoder(
            vocab=64, d_model=d_model, depth=2, n_heads=d_model // 8, recipe=recipe.CompleteP(base_width=16)
        )
        params = model.init(jax.random.key(0))
        tokens = jax.random.randint(jax.random.key(1), (4, 64), 0, 64)
        x = model.embedding.apply(params["embedding"], tokens, multiplier=model.stack.coefficients()["embed"])
        return float(np.std(x)), float(np.std(params["embedding"]["token"]))

    narrow, wide = sizes(16), sizes(256)
    assert abs(wide[0] / narrow[0] - 1) < 0.1 and abs(wide[1] / narrow[1] - 1) < 0.1


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (recipe.ReZero(), 0.0),
        (recipe.SkipInit(), 0.0),
        (recipe.LayerScale(), 0.1),
        (recipe.Highway(), 1 / 3),
    ],
)
def test_gates_at_birth(rule, expected):
    """The share of the branch that passes at first."""
    layer = sj.Layer(sublayers=(sj.FeedForward(d_hidden=32),))
    stack = sj.Stack.of(layer, depth=1, d_model=16, recipe=rule)
    params = stack.init(jax.random.key(0))
    gate = params["segments"]["0"]["0"]["residual"]
    if isinstance(rule, recipe.ReZero):
        value = gate["outer"]["gate"]
    elif isinstance(rule, recipe.Highway):
        value = jax.nn.sigmoid(gate["feed_forward"]["gate_bias"])
    else:
        value = gate["feed_forward"]["gate"]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "born"),
    [
        (recipe.NormFormer(), {"attention/inner_norm/scale": 1, "residual/attention/norm_out/scale": 1}),
        (recipe.DyT(), {"scale": 1, "residual/feed_forward/norm/alpha": 0.5, "residual/attention/norm/scale": 1}),
        (recipe.SigmaReparam(), {"attention/spectral/query/gain": 1}),
        (recipe.Admin(), {"residual/attention/skip": 1}),
        (recipe.AttentionResiduals(), {"residual/attention/query": 0}),
        (recipe.HyperConnections(), {"residual/attention/dynamic/read_scale": 0.01, "residual/attention/write": 1}),
        (recipe.HyperConnections(), {"residual/attention/dynamic/write_scale": 0.01}),
        (recipe.NGPT(), {"attention/query_key_scale": D**-0.5, "feed_forward/up_scale": 1}),
        (recipe.NGPT(), {"residual/feed_forward/step": D**-0.5}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, recipe.Recipe) else "",
)
def test_what_a_recipe_learns_is_born_as_its_paper_says(rule, born):
    stack = sj.Stack.of(sj.Layer(sublayers=(HEADS, sj.FeedForward(d_hidden=F))), depth=2, d_model=D, recipe=rule)
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(stack.init(jax.random.key(0))):
        name = sj.parameter.path_name(path)
        found[name.removeprefix("segments/0/0/").removeprefix("enter/inner/")] = leaf
    for name, value in born.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_an_embedding_that_both_sides_share_is_the_encoders():
    """T-Fixup scales by the encoder's (9N)^(-1/4) where source and target share it."""
    sizes = {"vocab": 200, "d_model": D, "depth": 2, "encoder_depth": 32, "recipe": recipe.TFixup()}
    for apart, gain in ((None, (9 * 32) ** -0.25), (200, (9 * 2) ** -0.25)):
        params = sj.encoder_decoder(**sizes, source_vocab=apart).init(jax.random.key(0))
        np.testing.assert_allclose(np.std(params["decoder"]["embedding"]["token"]), gain * D**-0.5, rtol=0.05)


def test_first_gate_of_layer_scale_falls_with_depth():
    for depth, first in ((2, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (100, 1e-6)):
        stack = sj.Stack.of(sj.Layer(sublayers=(FORWARD,)), depth=depth, d_model=8, recipe=recipe.LayerScale())
        (spec,) = [
            d.spec
            for d in jax.tree.leaves(stack.declaration(), is_leaf=sj.parameter.is_spec)
            if d.name.endswith("gate") and d.spec.role == "residual"
        ]
        assert spec.init == sj.parameter.Constant(first)


@pytest.mark.parametrize("depth", [2, 50, 1000])
def test_highways_of_any_depth_carry_about_a_third_of_the_stream(depth):
    form = recipe.Highway().residual
    bias = form.spec(8, depth)["gate_bias"].init.value
    assert -10 < bias < -1, "where the authors search"
    carried = (1 / (1 + math.exp(bias))) ** (2 * depth)
    assert abs(carried - math.exp(-1)) < 0.05
    chosen = recipe.gate.HighwayGated(bias=-2.0).spec(8, depth)["gate_bias"].init
    assert chosen == sj.parameter.Constant(-2.0)


@pytest.mark.parametrize("rule", [recipe.ReZero(), recipe.SkipInit()])
def test_the_identity_at_birth(rule):
    stack = sj.Stack.of(sj.Layer(sublayers=(HEADS, FORWARD)), depth=3, d_model=D, recipe=rule)
    x = normal(2, 5, D, key=1)
    np.testing.assert_array_equal(output(stack, stack.init(jax.random.key(0)), x), x)


def test_t_fixup_embeddings():
    model = sj.decoder(vocab=256, d_model=D, depth=L, n_heads=4, recipe=recipe.TFixup())
    table = model.init(jax.random.key(0))["embedding"]["token"]
    assert abs(float(np.std(table)) / (D**-0.5 * (9 * L) ** -0.25) - 1) < 0.02
    with pytest.raises(ValueError, match="tied"):
        sj.decoder(vocab=256, d_model=D, depth=L, n_heads=4, recipe=recipe.TFixup(), tied=True)
