"""What the conformance suite runs over: the recipes that a command line knows, every position, and kinds of stack."""

import dataclasses

import pytest

import stackjax as sj
from stackjax import position, recipe

RECIPES = {name: make() for name, make in recipe.NAMES.items()} | {
    "complete_p": recipe.CompleteP(base_width=8),
    "depth_mup": recipe.DepthMuP(base_width=8),
    "value_residual": recipe.ValueResidual(learned=True, base=recipe.HyperConnections()),
    "stochastic_depth": recipe.StochasticDepth(base=recipe.PostNorm(), each="example"),
    "dense_former": recipe.DenseFormer(dilation=2),
    "dlcl": recipe.DLCL(period=2),
    "block_attention_residuals": recipe.AttentionResiduals(blocks=3),
}
"""The recipes that have a name, some of them at sizes where more of them is to be seen."""

RECIPES |= {
    "hybrid_norm_star": recipe.HybridNorm(first=recipe.residual.Pre()),
    "weighted": recipe.Weighted(residual=recipe.residual.Post(), alpha=0.9, beta=1.1, gamma=0.8),
    "static_hyper_connections": recipe.HyperConnections(
        residual=recipe.hyper_connections.HyperConnected(dynamic=False)
    ),
}

POSITIONS = {
    "none": position.NoPosition(),
    "scalar": position.Scalar(period=10.0),
    "sinusoidal": position.Sinusoidal(),
    "learned": position.Learned(n_positions=16),
    "rotary": position.Rotary(),
    "rotary_and_learned": position.Both(first=position.Rotary(), second=position.Learned(n_positions=16)),
    "shaw": position.Shaw(max_distance=2),
    "transformer_xl": position.TransformerXL(),
    "t5": position.T5Bias(n_buckets=4, max_distance=8),
    "t5_per_layer": position.T5Bias(n_buckets=8, max_distance=8, bidirectional=True, per_layer=True),
    "alibi": position.ALiBi(),
    "fire": position.FIRE(d_hidden=4, threshold=3.0),
    "tree_path": position.TreePath(arity=3, depth=4),
    "tree_rotary": position.Both(first=position.Rotary(d_rotary=4), second=position.TreeRotary(n_depth=1, n_levels=1)),
    "tree_bias": position.Both(first=position.Rotary(), second=position.TreeBias(max_steps=2)),
}

FORWARD = sj.FeedForward(d_hidden=24)


def _decoder(rule, where, depth):
    return sj.decoder(vocab=11, d_model=16, depth=depth, n_heads=2, recipe=rule, position=where, feed_forward=FORWARD)


def _encoder(rule, where, depth):
    return sj.encoder(vocab=11, d_model=16, depth=depth, n_heads=2, recipe=rule, position=where, feed_forward=FORWARD)


def _local_global(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    attention, forward = model.stack.segments[0].layers[0].sublayers
    local = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=2, position=attention.position), forward))
    layers = (local, local, sj.Layer(sublayers=(attention, forward)))
    return _with_stack(model, layers, rule, depth)


def _gated_grouped(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    inside = model.stack.segments[0].layers[0].sublayers[0].position
    attention = sj.Attention(
        n_heads=4,
        n_kv_heads=2,
        position=inside,
        qk_norm=sj.RMSNorm(),
        soft_cap=5.0,
        sinks=True,
        bias=("query", "out"),
    )
    layer = sj.Layer(sublayers=(attention, sj.FeedForward(d_hidden=24, gated=True, bias=True)))
    return _with_stack(model, (layer,), rule, depth)


def _looped(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    layer = sj.Layer(sublayers=model.stack.segments[0].layers[0].sublayers)
    return _with_stack(model, (layer,), rule, depth, looped=True)


def _biased_experts(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    attention, _ = model.stack.segments[0].layers[0].sublayers
    gate = {"activation": sj.feed_forward.ClampedSwish(limit=1.0), "up_activation": sj.feed_forward.ShiftedClip()}
    experts = sj.MixtureOfExperts(n_experts=3, d_hidden=12, bias=True, **gate)
    return _with_stack(model, (sj.Layer(sublayers=(attention, experts)),), rule, depth)


def _experts(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    attention, forward = model.stack.segments[0].layers[0].sublayers
    experts = sj.MixtureOfExperts(
        n_experts=4, d_hidden=12, score="sigmoid", n_groups=2, top_groups=1, bias_rate=0.01, shared_expert=forward
    )
    return _with_stack(model, (sj.Layer(sublayers=(attention, experts)),), rule, depth)


def _latent(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    inside = model.stack.segments[0].layers[0].sublayers[0].position
    attention = sj.LatentAttention(
        n_heads=2, d_head=6, d_rotary=4, d_latent=5, d_query_latent=7, d_value=3, position=inside
    )
    return _with_stack(model, (sj.Layer(sublayers=(attention, FORWARD)),), rule, depth)


def _parallel(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    attention, forward = model.stack.segments[0].layers[0].sublayers
    near = dataclasses.replace(attention, name="near", window=2)
    side_by_side = sj.Parallel(sublayers=(near, attention, forward), norm=sj.LayerNorm())
    return _with_stack(model, (sj.Layer(sublayers=(side_by_side,)),), rule, depth)


def _encoder_decoder(rule, where, depth):
    return sj.encoder_decoder(
        vocab=11,
        source_vocab=11,
        d_model=16,
        depth=max(depth, 1),
        encoder_depth=depth,
        n_heads=2,
        recipe=rule,
        position=where,
        attention=sj.Attention(n_heads=2, gate="head"),
        feed_forward=FORWARD,
    )


def _with_stack(model, layers, rule, depth, **options):
    stack = sj.Stack.of(*layers, depth=depth, d_model=16, recipe=rule, **options)
    return dataclasses.replace(model, stack=stack)


KINDS = {
    "decoder": _decoder,
    "encoder": _encoder,
    "local_global": _local_global,
    "gated_grouped": _gated_grouped,
    "looped": _looped,
    "experts": _experts,
    "biased_experts": _biased_experts,
    "latent": _latent,
    "parallel": _parallel,
    "encoder_decoder": _encoder_decoder,
}

REFUSED = {
    "mix_norm": {"looped"},
    "norm_former": {"parallel"},
    "hybrid_norm": {"gated_grouped", "latent", "parallel"},
    "hybrid_norm_star": {"gated_grouped", "latent", "looped", "parallel"},
    "ds_init": {"looped"},
    "dyt": {"parallel"},
    "sigma_reparam": {"experts"},
    "shaped": {"gated_grouped", "experts", "biased_experts", "latent", "encoder_decoder"},
    "value_residual": {"latent", "parallel"},
    "dense_former": {"looped"},
    "dlcl": {"looped"},
    "ngpt": {"gated_grouped", "experts", "biased_experts", "latent"},
    "shaw": {"latent"},
    "transformer_xl": {"latent"},
}
"""Recipes and positions that cannot be had in a kind of stack, and say so."""

UNUSUAL = {
    *("pre_norm", "resi_dual", "hybrid_norm_star", "shaped", "sigma_reparam", "ngpt", "value_residual"),
    *("hyper_connections", "manifold_hyper_connections", "dense_former", "attention_residuals"),
    "block_attention_residuals",
}
"""Recipes whose stream, attention or parameters are not a plain sum of branches; the others behave as one of them."""

DAILY = {"dense_former"}
"""The recipe that every run of the tests tries whole: each layer reads what all before it made."""

BY_COST = [
    pytest.param(name, marks=[] if name in DAILY else pytest.mark.thorough if name in UNUSUAL else pytest.mark.slow)
    for name in RECIPES
]
"""All recipes: those every day, the unusual ones under the marker `thorough`, all others under `slow`."""
