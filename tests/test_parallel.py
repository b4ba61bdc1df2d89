"""Sublayers side by side: what they compute, and that everything reaches the ones inside."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import largest_difference, normal, perturbed

D, T = 8, 5
ATTENTION = sj.Attention(n_heads=2, position=sj.position.Rotary())
FORWARD = sj.FeedForward(d_hidden=12)


def stack_of(sublayer, rule):
    return sj.Stack.of(sj.Layer(sublayers=(sublayer,)), depth=1, d_model=D, recipe=rule)


def own(sublayer, params, x):
    side_inputs = sj.SideInputs()
    return sublayer.apply(
        params[sublayer.name], x, side_inputs.replace(prepared=sublayer.prepare({}, side_inputs, T, D))
    )[0]


def test_one_norm_is_gpt_j(x64):
    stack = stack_of(sj.Parallel(sublayers=(ATTENTION, FORWARD)), sj.recipe.PreNorm())
    params, x = perturbed(stack.init(jax.random.key(0), jnp.float64)), normal(2, T, D, key=1)
    layer = sj.convert.unstack(stack, params)[0]
    h = sj.norm.layer_norm(layer["residual"]["parallel"]["norm"], x)
    wanted = x + own(ATTENTION, layer["parallel"], h) + own(FORWARD, layer["parallel"], h)
    wanted = sj.norm.layer_norm(params["leave"]["inner"]["norm"], wanted)
    assert largest_difference(stack.apply(params, x)[0], wanted) < 1e-13


def test_two_norms_are_gpt_neox(x64):
    rule = sj.recipe.PlainResidual(residual=sj.residual.Plain(final=sj.LayerNorm()))
    stack = stack_of(sj.Parallel(sublayers=(ATTENTION, FORWARD), norm=sj.LayerNorm()), rule)
    params, x = perturbed(stack.init(jax.random.key(0), jnp.float64)), normal(2, T, D, key=1)
    inside = sj.convert.unstack(stack, params)[0]["parallel"]
    wanted = x
    for sublayer in (ATTENTION, FORWARD):
        wanted = wanted + own(sublayer, inside, sj.norm.layer_norm(inside["norm"][sublayer.name], x))
    wanted = sj.norm.layer_norm(params["leave"]["inner"]["norm"], wanted)
    assert largest_difference(stack.apply(params, x)[0], wanted) < 1e-13


class SubLN(sj.recipe.PreNorm):
    def adapt(self, sublayer, geometry):
        return replace(sublayer, inner_norm=sj.RMSNorm()) if hasattr(sublayer, "inner_norm") else sublayer


def test_recipes_reach_inside():
    experts = sj.MixtureOfExperts(n_experts=4, d_hidden=6, shared_expert=FORWARD)
    stack = stack_of(sj.Parallel(sublayers=(ATTENTION, experts)), SubLN())
    attention, inner = stack.segments[0].layers[0].sublayers[0].sublayers
    assert attention.inner_norm == inner.shared_expert.inner_norm == sj.RMSNorm()


def test_losses_state_and_what_is_seen():
    experts = sj.MixtureOfExperts(n_experts=4, d_hidden=6, bias_rate=0.1)
    stack = stack_of(sj.Parallel(sublayers=(ATTENTION, experts)), sj.recipe.PreNorm())
    params = stack.init(jax.random.key(0))
    _, result = jax.jit(lambda p, x: stack.apply(p, x, measure=sj.probe.standard))(params, normal(2, T, D, key=1))
    assert set(result.loss) == {"balance", "router_z"}
    assert result.state["0"]["0"]["parallel"]["statistic"]["experts"]["bias"].shape == (1, 4)
    assert {"attention_entropy/parallel", "max_load/parallel"} <= set(result.measure)


def test_dropout_differs_between_children():
    drop = replace(FORWARD, dropout=0.5)
    both = sj.Parallel(sublayers=(drop, replace(drop, name="other")))
    params = sj.parameter.realise(jax.random.key(0), sj.parameter.declare(both.spec(D)))
    params["other"] = params["feed_forward"]
    side_inputs = sj.SideInputs(key=jax.random.key(1), prepared={"feed_forward": None, "other": None})
    y = both.apply(params, normal(T, D), side_inputs)[0]
    kept = np.asarray(y / both.apply(params, normal(T, D), side_inputs.replace(key=None))[0])
    assert {0, 1, 2} == set(np.unique(kept.round(4)))


def test_two_windows_in_one_layer_keep_their_own_slots():
    sublayers = (replace(ATTENTION, name="near", window=3), replace(ATTENTION, name="far"))
    cache = sj.Parallel(sublayers=sublayers).cache(2, 9, D, jnp.float32)
    assert [cache[name]["key"].shape[-2] for name in ("near", "far")] == [3, 9]


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="distinct names"):
        sj.Parallel(sublayers=(FORWARD, FORWARD))
