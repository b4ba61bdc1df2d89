"""Every recipe, every position, every stack kind keeps the same promises. A new scheme adds one line here.

CI runs each recipe with one position, each position and each stack kind with one recipe. The full product is behind
the marker `slow`, sampled by a seed.
"""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position, recipe
from tests.helpers import largest_difference, normal, perturbed

RECIPES = {
    "pre_norm": recipe.PreNorm(),
    "post_norm": recipe.PostNorm(),
    "sandwich": recipe.SandwichNorm(),
    "plain": recipe.PlainResidual(),
    "no_residual": recipe.WithoutResidual(),
    "deepnorm": recipe.DeepNorm(),
    "rezero": recipe.ReZero(),
    "complete_p": recipe.CompleteP(base_width=8),
    "hyper_connections": recipe.HyperConnections(),
    "static_hyper_connections": recipe.HyperConnections(
        residual=recipe.hyper_connections.HyperConnected(dynamic=False)
    ),
    "manifold_hyper_connections": recipe.ManifoldHyperConnections(),
    "value_residual": recipe.ValueResidual(learned=True, base=recipe.HyperConnections()),
    "stochastic_depth": recipe.StochasticDepth(base=recipe.PostNorm(), each="example"),
    "dense_former": recipe.DenseFormer(dilation=2),
    "dlcl": recipe.DLCL(period=2),
    "attention_residuals": recipe.AttentionResiduals(),
    "block_attention_residuals": recipe.AttentionResiduals(blocks=3),
    "ngpt": recipe.NGPT(),
}

POSITIONS = {
    "none": position.NoPosition(),
    "scalar": position.Scalar(period=10.0),
    "sinusoidal": position.Sinusoidal(),
    "learned": position.Learned(n_positions=16),
    "rotary": position.Rotary(),
    "rotary_and_learned": position.Both(first=position.Rotary(), second=position.Learned(n_positions=16)),
}

FORWARD = sj.FeedForward(d_hidden=24)


def _decoder(rule, where, depth):
    return sj.decoder(vocab=11, d_model=16, depth=depth, n_heads=2, recipe=rule, position=where, feed_forward=FORWARD)


def _encoder(rule, where, depth):
    return sj.encoder(vocab=11, d_model=16, depth=depth, n_heads=2, recipe=rule, position=where, feed_forward=FORWARD)


def _local_global(rule, where, depth):
    model = _decoder(rule, where, 1)
    attention, forward = model.stack.segments[0].layers[0].subs
    local = sj.Layer(subs=(sj.Attention(n_heads=2, window=2, position=attention.position), forward))
    layers = (local, local, sj.Layer(subs=(attention, forward)))
    return _with_stack(model, layers, rule, depth)


def _gated_grouped(rule, where, depth):
    model = _decoder(rule, where, 1)
    inside = model.stack.segments[0].layers[0].subs[0].position
    attention = sj.Attention(
        n_heads=4,
        n_kv_heads=2,
        position=inside,
        qk_norm=sj.RMSNorm(),
        soft_cap=5.0,
        sinks=True,
        bias=("query", "out"),
    )
    layer = sj.Layer(subs=(attention, sj.FeedForward(d_hidden=24, gated=True, bias=True)))
    return _with_stack(model, (layer,), rule, depth)


def _looped(rule, where, depth):
    model = _decoder(rule, where, 1)
    layer = sj.Layer(subs=model.stack.segments[0].layers[0].subs)
    return _with_stack(model, (layer,), rule, depth, looped=True)


def _with_stack(model, layers, rule, depth, **options):
    stack = sj.Stack.of(*layers, depth=depth, d_model=16, recipe=rule, **options)
    return dataclasses.replace(model, stack=stack)


KINDS = {
    "decoder": _decoder,
    "encoder": _encoder,
    "local_global": _local_global,
    "gated_grouped": _gated_grouped,
    "looped": _looped,
}


def check(rule, where, kind, depth):
    """scan = loop = every rematerialisation, in values and gradients, and every parameter matters."""
    with jax.enable_x64(True):
        model = KINDS[kind](rule, where, depth)
        params = perturbed(model.init(jax.random.key(0), jnp.float64))
        tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, 11)
        weights = normal(2, 5, 11, key=2)

        def loss(params, taps, **options):
            logits, result = model.apply(
                params,
                tokens,
                dtype=jnp.float64,
                key=jax.random.key(3),
                taps=taps,
                measure=sj.probe.standard,
                **options,
            )
            return jnp.sum(logits * weights) + sum(result.loss.values()), (logits, result.measure)

        ways = ({"loop": True}, {}, {"remat": "layer"}, {"remat": "nested"})

        def run(params, way):
            return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, jnp.zeros(depth + 1), **way)

        reference = run(params, ways[0])
        others = jax.jit(lambda params: [run(params, way) for way in ways[1:]])(params)
        for way, other in zip(ways[1:], others, strict=True):
            assert largest_difference(other, reference) < 1e-9, way

        gradients = reference[1][0]
        for (path, gradient), declared in zip(
            jax.tree_util.tree_leaves_with_path(gradients),
            jax.tree.leaves(model.declaration(), is_leaf=sj.parameter.is_spec),
            strict=True,
        ):
            name = sj.parameter.path_name(path)
            assert gradient.shape == declared.shape, name
            if declared.spec.role != "statistic" and gradient.size and not name.endswith("key_bias"):
                assert np.abs(gradient).max() > 0, f"{name} has no effect"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    depth = 6 + list(RECIPES).index(name) % 2
    check(RECIPES[name], position.Rotary(), "decoder", depth)


@pytest.mark.parametrize("name", POSITIONS)
def test_position(name):
    check(recipe.PreNorm(), POSITIONS[name], "decoder", 2)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind, depth):
    check(recipe.PreNorm(), position.Rotary(), kind, depth)


PRODUCT = list(itertools.product(RECIPES, POSITIONS, KINDS))


@pytest.mark.slow
@pytest.mark.parametrize("case", random.Random(0).sample(PRODUCT, min(len(PRODUCT), 200)), ids="-".join)
def test_product(case):
    rule, where, kind = case
    try:
        KINDS[kind](RECIPES[rule], POSITIONS[where], 6)
    except ValueError as reason:
        pytest.skip(str(reason))
    check(RECIPES[rule], POSITIONS[where], kind, 6)


@pytest.mark.parametrize("name", RECIPES)
def test_low_precision_stays(name):
    model = _decoder(RECIPES[name], position.Rotary(), 3)
    params = model.init(jax.random.key(0))
    x = normal(2, 5, 16, key=1, dtype=jnp.bfloat16)
    y, _ = jax.jit(model.stack.apply)(params["stack"], x)
    assert y.dtype == jnp.bfloat16 and y.shape == x.shape and np.isfinite(np.asarray(y, np.float32)).all()
