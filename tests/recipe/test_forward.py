"""Every recipe's forward pass against its formula in NumPy, with perturbed parameters."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.testing import normal, perturbed
from tests.helpers import output
from tests.recipe.by_hand import N_HEADS, attention, dyt, feed_forward, norm, sigmoid
from tests.recipe.kinds import KINDS

D, DEPTH = 16, 4
LAYER = sj.Layer(
    sublayers=(sj.Attention(n_heads=N_HEADS), sj.FeedForward(d_hidden=24, activation=sj.feed_forward.relu))
)


def head_gain(p, y):
    return (y.reshape(*y.shape[:-1], N_HEADS, -1) * p["scale"][:, None]).reshape(y.shape)


def reparametrised(branch):
    """W as (g / sigma(W)) W, with sigma from one step of power iteration."""

    def run(p, x):
        matrices = {}
        for name, beside in p["spectral"].items():
            right = p[name].T @ beside["vector"]
            left = p[name] @ (right / np.linalg.norm(right))
            matrices[name] = p[name] * beside["gain"] / np.linalg.norm(left)
        return branch({**p, **matrices}, x)

    return run


@dataclasses.dataclass
class Place:
    """Where a formula stands: layer l = 1 .. L, and the parameters of the layer's outer form."""

    l: int
    outer: dict


# Each formula: (p, x, f, at) -> x, where p are the form's parameters and f is the branch.
def pre(p, x, f, at):
    return x + f(norm(p["norm"], x))


def post(p, x, f, at):
    return norm(p["norm"], x + f(x))


def plain(p, x, f, at):
    return x + f(x)


def sandwich(p, x, f, at):
    return x + norm(p["norm_out"], f(norm(p["norm_in"], x)))


def skip_normed(p, x, f, at):
    h = norm(p["norm"], x)
    return h + f(h)


def highway(p, x, f, at):
    t = sigmoid(x @ p["gate"] + p["gate_bias"])
    return (1 - t) * x + t * f(x)


def two_streams(p, x, f, at):
    y = f(x["post"])
    return {"post": norm(p["norm"], x["post"] + y), "sum": x["sum"] + y}


def shaped_attention(p, x):
    def kernel(weights, seen):
        return np.eye(len(seen)) + weights - seen / seen.sum(-1, keepdims=True)

    return attention(p, x, kernel=kernel, scale=1 / math.sqrt(D * D / N_HEADS))


def shaped_network(p, x):
    negative = 1 - 1 / math.sqrt(24)
    scale = math.sqrt(2 / (1 + negative**2))
    return feed_forward(p, x, activation=lambda h: scale * np.where(h > 0, h, negative * h))


def both(attention, others):
    return {"attention": attention, "feed_forward": others}


sub_norm = {
    "attention": lambda p, x: attention(p, x, heads=norm),
    "feed_forward": lambda p, x: feed_forward(p, x, hidden=norm),
}
qkv_norm = {"attention": lambda p, x: attention(p, x, qkv=norm), "feed_forward": feed_forward}
standard = {"attention": attention, "feed_forward": feed_forward}

# name: (recipe, formula or one for each sublayer, branches, whether a norm ends the stack)
CASES = {
    "pre_norm": (recipe.PreNorm(), pre, standard, True),
    "post_norm": (recipe.PostNorm(), post, standard, False),
    "sandwich": (recipe.SandwichNorm(), sandwich, standard, True),
    "peri_norm": (recipe.PeriNorm(), sandwich, standard, True),
    "res_post_norm": (recipe.ResPostNorm(), lambda p, x, f, at: x + norm(p["norm"], f(x)), standard, True),
    "sub_norm": (recipe.SubNorm(), pre, sub_norm, True),
    "norm_former": (
        recipe.NormFormer(),
        both(sandwich, pre),
        {**sub_norm, "attention": lambda p, x: attention(p, x, heads=head_gain)},
        True,
    ),
    "mix_norm": (
        recipe.MixNorm(share=0.5),
        lambda p, x, f, at: (post if at.l <= 2 else pre)(p, x, f, at),
        standard,
        True,
    ),
    "resi_dual": (recipe.ResiDual(), two_streams, standard, True),
    "hybrid_norm": (recipe.HybridNorm(), both(plain, skip_normed), qkv_norm, True),
    "hybrid_norm_star": (
        recipe.HybridNorm(first=recipe.residual.Pre()),
        both(
            lambda p, x, f, at: (pre if at.l == 1 else plain)(p, x, f, at),
            lambda p, x, f, at: (pre if at.l == 1 else skip_normed)(p, x, f, at),
        ),
        qkv_norm,
        True,
    ),
    "keel": (
        recipe.Keel(),
        lambda p, x, f, at: norm(p["norm_out"], 2 * DEPTH * x + f(norm(p["norm_in"], x))),
        standard,
        False,
    ),
    "deepnorm": (
        recipe.DeepNorm(),
        lambda p, x, f, at: norm(p["norm"], (2 * DEPTH) ** 0.25 * x + f(x)),
        standard,
        False,
    ),
    "admin": (recipe.Admin(), lambda p, x, f, at: norm(p["norm"], p["skip"] * x + f(x)), standard, False),
    "layer_norm_scaling": (
        recipe.LayerNormScaling(),
        lambda p, x, f, at: x + f(norm(p["norm"], x) / math.sqrt(at.l)),
        standard,
        True,
    ),
    "rezero": (recipe.ReZero(), lambda p, x, f, at: x + at.outer["gate"] * f(x), standard, False),
    "skip_init": (recipe.SkipInit(), lambda p, x, f, at: x + p["gate"] * f(x), standard, False),
    "layer_scale": (
        recipe.LayerScale(),
        lambda p, x, f, at: x + p["gate"] * f(norm(p["norm"], x)),
        standard,
        True,
    ),
    "highway": (recipe.Highway(), highway, standard, False),
    "scaled_init": (recipe.ScaledInit(), pre, standard, True),
    "ds_init": (recipe.DSInit(), post, standard, False),
    "depth_mup": (
        recipe.DepthMuP(base_depth=2),
        lambda p, x, f, at: x + (DEPTH / 2) ** -0.5 * f(norm(p["norm"], x)),
        standard,
        True,
    ),
    "complete_p": (
        recipe.CompleteP(base_depth=2),
        lambda p, x, f, at: x + 2 / DEPTH * f(norm(p["norm"], x)),
        standard,
        True,
    ),
    "weighted": (
        recipe.Weighted(
            residual=recipe.residual.Post(), alpha=0.9, beta=[1, 2, 3, 4], gamma=np.arange(8).reshape(4, 2)
        ),
        both(
            lambda p, x, f, at: norm(p["norm"], 0.9 * x + at.l * f(2 * (at.l - 1) * x)),
            lambda p, x, f, at: norm(p["norm"], 0.9 * x + at.l * f((2 * at.l - 1) * x)),
        ),
        standard,
        False,
    ),
    "t_fixup": (recipe.TFixup(), plain, standard, False),
    "dyt": (recipe.DyT(), lambda p, x, f, at: x + f(dyt(p["norm"], x)), standard, True),
    "plain_scaled_init": (recipe.PlainScaledInit(), plain, standard, False),
    "shaped": (
        recipe.Shaped(),
        lambda p, x, f, at: math.sqrt(0.5) * x + math.sqrt(0.5) * f(x),
        {"attention": shaped_attention, "feed_forward": shaped_network},
        False,
    ),
    "sigma_reparam": (
        recipe.SigmaReparam(),
        plain,
        {name: reparametrised(branch) for name, branch in standard.items()},
        False,
    ),
    "plain": (recipe.PlainResidual(), plain, standard, False),
    "no_residual": (recipe.WithoutResidual(), lambda p, x, f, at: f(x), standard, False),
}


ROUNDED = {"shaped", "deepnorm", "layer_norm_scaling", "depth_mup", "weighted"}
"""Recipes whose coefficients hold numbers that float32 cannot represent."""


def enter(name, own, x):
    if name == "peri_norm":
        return norm(own["norm"], x)
    if name == "dyt":
        return own["scale"] * x
    return {"post": x, "sum": x} if name == "resi_dual" else x


def leave(name, own, x, final):
    if name == "resi_dual":
        return x["post"] + norm(own["norm"], x["sum"])
    return (dyt if name == "dyt" else norm)(own["norm"], x) if final else x


def by_formula(name, params, layers, x):
    _, formula, branches, final = CASES[name]
    x = enter(name, params["enter"]["inner"], x)
    for l, p in enumerate(layers, 1):
        at = Place(l=l, outer=p["residual"].get("outer"))
        for sublayer, branch in branches.items():
            step = formula[sublayer] if isinstance(formula, dict) else formula
            x = step(p["residual"][sublayer], x, lambda h, b=branch, own=p[sublayer]: b(own, h), at)
    return leave(name, params["leave"]["inner"], x, final)


@pytest.mark.parametrize("name", CASES)
def test_forward_equals_formula(name, x64):
    stack = sj.Stack.of(LAYER, depth=DEPTH, d_model=D, recipe=CASES[name][0])
    params = perturbed(stack.init(jax.random.key(0), jnp.float64))
    x = normal(2, 5, D, key=1)
    y = output(stack, params, x)
    layers = jax.tree.map(np.asarray, sj.convert.unstack(stack, params))
    expected = by_formula(name, jax.tree.map(np.asarray, params), layers, np.asarray(x))
    assert np.abs(y - expected).max() < (1e-6 if name in ROUNDED else 1e-10) * np.abs(expected).max()


def test_every_recipe_has_a_formula():
    assert set(KINDS.values()) == {type(case[0]) for case in CASES.values()}
