"""The optimiser's numbers reach the parameters that they are meant for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax import recipe
from tests.helpers import output
from tests.recipe.kinds import KINDS

DEPTH, WIDTH = 8, 32
M_DEPTH, M_WIDTH = DEPTH / 2, WIDTH / 16


def model_of(rule, depth=DEPTH, width=WIDTH):
    return sj.decoder(
        vocab=31,
        d_model=width,
        depth=depth,
        recipe=rule,
        attention=sj.Attention(n_heads=width // 8, bias=("query",)),
        position=sj.position.Both(first=sj.position.Rotary(), second=sj.position.Learned(n_positions=16)),
        feed_forward=sj.FeedForward(d_hidden=4 * width),
    )


def by_name(model):
    leaves = jax.tree_util.tree_leaves_with_path(model.declaration(), is_leaf=sj.parameter.is_spec)
    found = jax.tree.leaves(model.multipliers(), is_leaf=lambda x: isinstance(x, recipe.Multiplier))
    return {sj.parameter.path_name(path): m for (path, _), m in zip(leaves, found, strict=True)}


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_complete_p_table(alpha):
    """Dey et al. 2025, table 1: (learning rate, weight decay, epsilon) of every parameter of a small model."""
    hidden_eps = M_DEPTH**-alpha / M_WIDTH
    matrix = (M_DEPTH ** (alpha - 1) / M_WIDTH, M_WIDTH, hidden_eps)
    vector = (M_DEPTH ** (alpha - 1), 1.0, hidden_eps)
    end = (1.0, 1.0, 1 / M_WIDTH)
    layer = "stack/segments/0/0"
    expected = {
        "embedding/token": end,
        "embedding/position/second/table": end,
        "head/unembed": end,
        "stack/leave/inner/norm/scale": end,
        "stack/leave/inner/norm/bias": end,
        **{f"{layer}/attention/{name}": matrix for name in ("query", "key", "value", "out")},
        f"{layer}/attention/query_bias": vector,
        **{f"{layer}/feed_forward/{name}": matrix for name in ("up", "down")},
        **{f"{layer}/residual/{s}/norm/{n}": vector for s in ("attention", "feed_forward") for n in ("scale", "bias")},
    }
    rule = recipe.CompleteP(alpha=alpha, base_depth=2, base_width=16)
    found = {name: (m.learning_rate, m.weight_decay, m.eps) for name, m in by_name(model_of(rule)).items()}
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_allclose(found[name], numbers, rtol=1e-12, err_msg=name)


def test_the_bias_of_the_output_is_no_layers():
    model = sj.decoder(vocab=31, d_model=WIDTH, depth=DEPTH, n_heads=2, recipe=recipe.DepthMuP(base_width=16))
    model = dataclasses.replace(model, head=sj.Head(bias=True))
    assert by_name(model)["head/bias"] == recipe.Multiplier(eps=1 / M_WIDTH)


def test_what_dyt_says_of_its_factor_is_not_said_of_others():
    model = model_of(recipe.DenseFormer(base=recipe.DyT()))
    others = {name: m for name, m in by_name(model).items() if m != recipe.Multiplier()}
    assert list(others) == ["stack/enter/inner/scale"]


def test_depth_mup_is_complete_p_at_one_half():
    half = recipe.CompleteP(alpha=0.5, base_width=16)
    assert by_name(model_of(recipe.DepthMuP(base_width=16))) == by_name(model_of(half))


def test_at_the_base_it_is_pre_norm_to_the_bit():
    base, pre = (model_of(rule, 2, 16) for rule in (recipe.CompleteP(base_depth=2, base_width=16), recipe.PreNorm()))
    assert set(by_name(base).values()) == {recipe.Multiplier()}
    params, tokens = base.init(jax.random.key(0)), jnp.arange(10)[None]
    same = jax.tree.map(np.array_equal, params, pre.init(jax.random.key(0)))
    assert all(jax.tree.leaves(same))
    np.testing.assert_array_equal(output(base, params, tokens), output(pre, params, tokens))


@pytest.mark.thorough
def test_updates_follow_the_table():
    """Adam's first step on gradients of 1 is lr (1 / (1 + k eps) + decay weight), whatever the role."""
    rule = recipe.CompleteP(base_depth=2, base_width=16)
    model = model_of(rule)
    params = model.init(jax.random.key(0))
    optimiser = sj.optim.adamw(model, learning_rate=0.1, weight_decay=0.3, eps=0.5)
    updates, _ = optimiser.update(jax.tree.map(jnp.ones_like, params), optimiser.init(params), params)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    decayed = {
        d.spec.role for d in jax.tree.leaves(model.declaration(), is_leaf=sj.parameter.is_spec)
    } & sj.optim.DECAYED
    for (path, update), weight, m, declared in zip(
        leaves,
        jax.tree.leaves(params),
        by_name(model).values(),
        jax.tree.leaves(model.declaration(), is_leaf=sj.parameter.is_spec),
        strict=True,
    ):
        decay = 0.3 * m.weight_decay * weight if declared.spec.role in decayed else 0.0
        expected = -0.1 * m.learning_rate * (1 / (1 + 0.5 * m.eps) + decay)
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=sj.parameter.path_name(path))


def test_dyt_moves_its_embedding_factor_as_the_paper_does():
    """The paper learns s = sqrt(D) at first; ours is s / sqrt(D): Adam must move s alike."""
    model = model_of(recipe.DyT())
    own = {name: m for name, m in by_name(model).items() if m != recipe.Multiplier()}
    assert own == {"stack/enter/inner/scale": recipe.Multiplier(learning_rate=WIDTH**-0.5, eps=WIDTH**0.5)}
    gradients = jnp.asarray([0.3, -0.7, 0.2])

    def walk(start, gradients, optimiser):
        state, x, path = optimiser.init(start), start, []
        for gradient in gradients:
            update, state = optimiser.update(gradient, state, x)
            x = optax.apply_updates(x, update)
            path.append(x)
        return jnp.stack(path)

    theirs = walk(jnp.float32(WIDTH**0.5), gradients, optax.adam(0.01, eps=0.1))
    ours = walk(jnp.float32(1), gradients * WIDTH**0.5, optax.adam(0.01 * WIDTH**-0.5, eps=0.1 * WIDTH**0.5))
    np.testing.assert_allclose(ours * WIDTH**0.5, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"CompleteP", "DepthMuP", "DyT"}))
def test_one_learning_rate_for_all_elsewhere(name):
    rule = KINDS[name]()
    roles = {*sj.parameter.MATRICES, "bias", "norm", "final_norm", "residual", "embed", "unembed", "position"}
    geometry = recipe.Geometry(depth=7, d_model=32)
    assert {rule.multiplier(role, geometry) for role in roles} == {recipe.Multiplier()}


@pytest.mark.thorough
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_update_size_of_each_parameter_against_depth(alpha):
    """Adam's first step on a real gradient: as L^(alpha - 1) inside the layers, so flat for alpha = 1; flat outside."""
    tokens = jax.random.randint(jax.random.key(1), (4, 16), 0, 31)

    def sizes(depth):
        model = model_of(recipe.CompleteP(alpha=alpha, base_depth=2, base_width=16), depth)
        params = model.init(jax.random.key(0))
        gradient = jax.grad(lambda params: sj.loss.next_token(model.apply(params, tokens)[0], tokens))(params)
        optimiser = sj.optim.adamw(model, learning_rate=1.0, eps=1e-20)
        updates, _ = optimiser.update(gradient, optimiser.init(params), params)
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        return {sj.parameter.path_name(path): jnp.sqrt(jnp.mean(jnp.square(leaf))) for path, leaf in leaves}

    shallow = sizes(2)
    for depth in (8, 32):
        for name, size in sizes(depth).items():
            expected = (depth / 2) ** (alpha - 1) if name.startswith("stack/segments") else 1.0
            np.testing.assert_allclose(size / shallow[name], expected, rtol=1e-2, err_msg=f"{name} at {depth}")


def drift(rule, depth, steps=5, learning_rate=4e-3):
    """RMS of the change of x_L, before the final norm, over a few steps of Adam on a fixed batch."""
    model = model_of(rule, depth)
    optimiser = sj.optim.adamw(model, learning_rate=learning_rate)
    tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, 31)

    def last(params):
        _, result = model.apply(params, tokens, measure=lambda trace: {"x": trace.after})
        return result.measure["x"][-1]

    def loss(params):
        return sj.loss.next_token(model.apply(params, tokens)[0], tokens)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (after, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), None, steps)
        return jnp.sqrt(jnp.mean(jnp.square(last(after) - last(params))))

    return float(jnp.mean(jnp.stack([run(model.init(jax.random.key(seed))) for seed in range(3)])))


@pytest.mark.thorough
def test_coordinate_check():
    """Thresholds set in advance: over depths 2 to 32, the change of x_L stays within a factor 1.5 for alpha = 1 (the
    paper's flat line), and grows at least threefold with the standard parametrisation."""
    depths = (2, 8, 32)
    complete = [drift(recipe.CompleteP(base_depth=2), depth) for depth in depths]
    standard = [drift(recipe.PreNorm(), depth) for depth in depths]
    assert max(complete) / min(complete) < 1.5, complete
    assert standard[-1] / standard[0] > 3, standard
    assert complete[0] == pytest.approx(standard[0], rel=1e-5)
