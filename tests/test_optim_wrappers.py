"""Every optimiser under every optax wrapper on every part of the tree: the frozen stay, the trained move as alone."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax.parameter import path_name
from stackjax.recipe import Multiplier
from stackjax.testing import largest_difference, perturbed
from tests.helpers import daily


class Ramp(sj.recipe.PostNorm):
    """Factors that differ from layer to layer, on everything."""

    def multiplier(self, role, geometry):
        rise = 1.0 + jnp.arange(geometry.depth) / 4
        return Multiplier(learning_rate=rise, weight_decay=2 * rise, eps=1 / rise)


def decoder(recipe, feed_forward=sj.FeedForward(d_hidden=12)):
    return sj.decoder(vocab=7, d_model=8, depth=2, n_heads=2, recipe=recipe, feed_forward=feed_forward)


MODELS = {
    "pre_norm": decoder(sj.recipe.PreNorm()),
    "complete_p": decoder(sj.recipe.CompleteP(base_depth=1, base_width=4)),
    "ngpt": decoder(sj.recipe.NGPT()),
    "by_layer": decoder(Ramp(), sj.MixtureOfExperts(n_experts=2, d_hidden=6, bias_rate=0.01)),
    "translator": sj.encoder_decoder(
        vocab=7, d_model=8, depth=1, n_heads=2, recipe=sj.recipe.NGPT(), feed_forward=sj.FeedForward(d_hidden=12)
    ),
}

OPTIMISERS = {
    "adamw": lambda model, rate=0.1: sj.optim.adamw(
        model, learning_rate=rate, weight_decay=lambda step: 0.1 / (1 + step)
    ),
    "muon": lambda model, rate=0.1: sj.optim.muon(model, learning_rate=rate, weight_decay=0.1),
    "clipped": lambda model, rate=0.1: optax.chain(
        sj.optim.clip_by_layer_norm(model, 0.3),
        optax.sgd(rate),
        sj.optim.by_projection(model),
    ),
    "by_factors": lambda model, rate=0.1: sj.optim.with_rates(
        model, sj.optim.adamw(model, learning_rate=rate), sj.optim.factors(model, roles={"out": 0.5, "query": 0.0})
    ),
}

FROZEN = {
    "none": lambda path, role: False,
    "ends": lambda path, role: role in ("embed", "unembed"),
    "matrices": lambda path, role: role in sj.parameter.MATRICES,
    "vectors": lambda path, role: role not in sj.parameter.MATRICES,
    "feed_forward": lambda path, role: "feed_forward" in path or "residual" in path,
    "all_but_one": lambda path, role: not path.endswith("attention/key"),
    "all": lambda path, role: True,
}


def frozen_in(model, part):
    return jax.tree_util.tree_map_with_path(
        lambda path, d: FROZEN[part](path_name(path), d.spec.role), model.declaration()
    )


def frozen_prefix(mask):
    """The same mask, one entry for each subtree that is wholly frozen or wholly trained."""
    if not isinstance(mask, dict):
        return mask
    values = set(jax.tree.leaves(mask))
    return values.pop() if len(values) == 1 else {name: frozen_prefix(part) for name, part in mask.items()}


def without_extra_args(tx):
    return optax.GradientTransformation(tx.init, lambda updates, state, params=None: tx.update(updates, state, params))


def by_partition(tx, mask):
    labels = jax.tree.map(lambda frozen: "frozen" if frozen else "trained", mask)
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def by_masked(tx, mask):
    trained = jax.tree.map(lambda frozen: not frozen, mask)
    return optax.chain(optax.masked(tx, trained), optax.freeze(mask))


PARTIAL = {
    "partition": by_partition,
    "partition_by_prefix": lambda tx, mask: by_partition(tx, frozen_prefix(mask)),
    "partition_by_function": lambda tx, mask: optax.partition(
        {True: optax.set_to_zero(), False: tx}, lambda params: mask
    ),
    "masked": by_masked,
    "masked_by_prefix": lambda tx, mask: by_masked(tx, frozen_prefix(mask)),
    "selective_transform": lambda tx, mask: optax.selective_transform(tx, freeze_mask=mask),
    "freeze": lambda tx, mask: optax.chain(optax.freeze(mask), tx, optax.freeze(mask)),
    "two_groups": lambda tx, mask: optax.chain(
        optax.partition({True: optax.sgd(0.2), False: tx}, mask), optax.freeze(mask)
    ),
}
"""Ways to train a part of the parameters."""

WHOLE = {
    "plain": lambda make, model: make(model),
    "chain": lambda make, model: optax.chain(optax.clip_by_global_norm(1e6), make(model)),
    "named_chain": lambda make, model: optax.named_chain(("one", optax.zero_nans()), ("two", make(model))),
    "split_real": lambda make, model: optax.contrib.split_real_and_imaginary(make(model)),
    "apply_if_finite": lambda make, model: optax.apply_if_finite(make(model), 3),
    "skip_not_finite": lambda make, model: optax.MultiSteps(
        make(model), 1, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    "conditionally_transform": lambda make, model: optax.conditionally_transform(
        make(model), lambda step, **extra: step < 9
    ),
    "inject_hyperparams": lambda make, model: optax.inject_hyperparams(make)(model, rate=0.1),
    "inject_a_schedule": lambda make, model: optax.inject_hyperparams(make)(model, rate=lambda step: 0.1),
    "snapshot": lambda make, model: optax.chain(make(model), optax.snapshot("norm", lambda u: optax.tree.norm(u))),
}
"""Wrappers under which an optimiser does what it does without."""

OTHER = {
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, learning_rate=0.1),
    "mechanize": lambda tx: optax.contrib.mechanize(tx),
    "reduce_on_plateau": lambda tx: optax.chain(tx, optax.contrib.reduce_on_plateau(patience=1)),
    "sam": lambda tx: without_extra_args(
        optax.contrib.sam(tx, optax.chain(optax.contrib.normalize(), optax.sgd(0.01)), sync_period=2)
    ),
    "ema": lambda tx: optax.chain(tx, optax.ema(0.9)),
}
"""Wrappers that change what an optimiser does."""


def start(model):
    """Parameters and the gradients of two steps."""
    params = perturbed(model.init(jax.random.key(0), jnp.float64))
    return params, [perturbed(jax.tree.map(jnp.zeros_like, params), key=i, size=1.0) for i in range(2)]


MUON = sys.modules[optax.contrib.scale_by_muon.__module__]
ORTHOGONALISE = "orthogonalize_via_newton_schulz"
COMPILED = jax.jit(getattr(MUON, ORTHOGONALISE), static_argnums=(2, 3, 5))


@pytest.fixture(autouse=True)
def orthogonalisation_compiles_once(monkeypatch):
    """Otherwise each eager step of Muon would compile its loop again."""
    monkeypatch.setattr(MUON, ORTHOGONALISE, COMPILED)


def run(tx, params, gradients):
    """Parameters after a few steps."""
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params, value=jnp.float64(1.0))
        params = optax.apply_updates(params, updates)
    return params


def zero(where, tree):
    return jax.tree.map(lambda zeroed, leaf: jnp.zeros_like(leaf) if zeroed else leaf, where, tree)


def check(found, alone, before, mask):
    """Frozen parameters are where they were, to the bit; the others are where they go without the frozen ones."""

    def leaf(frozen, found, alone, before):
        if frozen:
            np.testing.assert_array_equal(found, before)
        else:
            np.testing.assert_allclose(found, alone, rtol=1e-12, atol=1e-14)

    jax.tree.map(leaf, mask, found, alone, before)


PAIRS = [(optimiser, name) for optimiser in OPTIMISERS for name in MODELS]
FIRST = {("adamw", "ngpt"), ("muon", "by_layer"), ("clipped", "translator"), ("by_factors", "complete_p")}
FIRST_PAIRS = [
    pytest.param(
        *pair, marks=[] if pair == ("muon", "by_layer") else pytest.mark.thorough if pair in FIRST else pytest.mark.slow
    )
    for pair in PAIRS
]
"""All pairs: one that is tried every day; those that hold every optimiser and every kind of recipe once; all others."""
PARTS = [pytest.param(part, marks=[] if part == "ends" else pytest.mark.slow) for part in FROZEN]


@pytest.mark.thorough
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("optimiser", "name"), daily(PAIRS, *FIRST))
def test_a_part_trains_as_it_would_alone(x64, optimiser, name, part):
    model, make = MODELS[name], OPTIMISERS[optimiser]
    params, gradients = start(model)
    mask = frozen_in(model, part)
    alone = run(make(model), params, [zero(mask, gradient) for gradient in gradients])
    for wrap in PARTIAL.values():
        check(run(wrap(make(model), mask), params, gradients), alone, params, mask)
    if part != "all":
        # Clipping leaves least: two steps of norm 0.1 * 0.3 over a layer of some 800 numbers of size 1.
        assert largest_difference(alone, params) > 0.1 * 0.3 / 800**0.5


@pytest.mark.thorough
@pytest.mark.parametrize(("optimiser", "name"), FIRST_PAIRS)
def test_wrappers_that_change_nothing(x64, optimiser, name):
    model, make = MODELS[name], OPTIMISERS[optimiser]
    params, gradients = start(model)
    mask = frozen_in(model, "ends")
    alone = run(make(model), params, [zero(mask, gradient) for gradient in gradients])
    for wrap in WHOLE.values():
        check(run(by_partition(wrap(make, model), mask), params, gradients), alone, params, mask)


@pytest.mark.thorough
@pytest.mark.parametrize(("optimiser", "name"), FIRST_PAIRS)
def test_wrappers_that_change_the_optimiser(x64, optimiser, name):
    """With the frozen taken out of the whole tree by zeros, or by optax's masks."""
    model, make = MODELS[name], OPTIMISERS[optimiser]
    params, gradients = start(model)
    mask = frozen_in(model, "ends")
    for wrap in OTHER.values():
        by_zeros = wrap(optax.chain(optax.freeze(mask), make(model), optax.freeze(mask)))
        alone = run(by_zeros, params, [zero(mask, gradient) for gradient in gradients])
        check(run(by_partition(wrap(make(model)), mask), params, gradients), alone, params, mask)


@pytest.mark.parametrize("name", daily(MODELS, "pre_norm"))
def test_lookahead(x64, name):
    """Its parameters are a pair; slow and fast weights meet at the second step."""
    model = MODELS[name]
    params, gradients = start(model)
    mask = frozen_in(model, "ends")
    inner = by_partition(OPTIMISERS["muon"](model), mask)
    pair = run(optax.lookahead(inner, 2, 0.5), optax.LookaheadParams.init_synced(params), gradients[:2])
    fast = run(inner, params, gradients[:2])
    expected = jax.tree.map(lambda slow, fast: (slow + fast) / 2, params, fast)
    check(pair.slow, expected, params, mask)
    check(pair.fast, expected, params, mask)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_state_has_leaves_like_the_trained_parameters_alone(optimiser):
    """optax's own tool tells the moments from the counts, with and without a mask."""
    model = MODELS["pre_norm"]
    params = model.init(jax.random.key(0))
    for part in ("none", "ends"):
        mask = frozen_in(model, part)
        tx = by_partition(OPTIMISERS[optimiser](model), mask)
        marked = optax.tree_utils.tree_map_params(
            tx, lambda leaf: "moment", tx.init(params), transform_non_params=lambda leaf: "count"
        )
        n_moments = sum(leaf == "moment" for leaf in jax.tree.leaves(marked))
        trained = jax.tree.leaves(
            jax.tree.map(lambda frozen, d: "" if frozen else d.spec.role, mask, model.declaration())
        )
        n_matrices = sum(role in sj.parameter.MATRICES for role in trained)
        n_vectors = sum(role != "" for role in trained) - n_matrices
        expected = {"adamw": (2, 2), "by_factors": (2, 2), "muon": (1, 2), "clipped": (0, 0)}[optimiser]
        assert n_moments == expected[0] * n_matrices + expected[1] * n_vectors


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_tree_that_is_not_the_models_is_refused(optimiser):
    model = MODELS["pre_norm"]
    params = model.init(jax.random.key(0))
    flat = optax.flatten(OPTIMISERS[optimiser](model))
    with pytest.raises(ValueError, match="there is no parameter ''"):
        flat.update(params, flat.init(params), params)


@pytest.mark.parametrize("make", [sj.optim.adamw, sj.optim.muon, sj.optim.by_projection])
def test_parameters_are_asked_for(make):
    model = MODELS["ngpt"]
    tx = make(model) if make is sj.optim.by_projection else make(model, learning_rate=0.1)
    with pytest.raises(ValueError, match="call update"):
        jax.eval_shape(lambda key: tx.update(params := model.init(key), tx.init(params)), jax.random.key(0))
