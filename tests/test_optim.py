"""Optimisers on stacked leaves do what they would do on each layer alone, with the recipe's factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax.recipe import Multiplier
from stackjax.testing import largest_difference, perturbed
from tests.helpers import daily

LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=12, bias=True)))


def stack(depth=3, recipe=sj.recipe.PreNorm(), **options):
    return sj.Stack.of(LAYER, depth=depth, d_model=8, recipe=recipe, **options)


def model(recipe=sj.recipe.PreNorm(), depth=3):
    return sj.decoder(vocab=7, d_model=8, depth=depth, n_heads=2, recipe=recipe, feed_forward=LAYER.sublayers[1])


def start(described, dtype=jnp.float64):
    params = perturbed(described.init(jax.random.key(0), dtype))
    return params, [perturbed(jax.tree.map(jnp.zeros_like, params), key=i, size=1.0) for i in range(3)]


def run(tx, params, gradients):
    """Parameters after a few steps."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


def by_role(described, change, *trees):
    return jax.tree.map(change, described.declaration(), *trees, is_leaf=sj.parameter.is_spec)


def test_adamw_is_optax_where_the_recipe_asks_for_nothing(x64):
    described = model()
    params, gradients = start(described)
    mask = by_role(described, lambda d: d.spec.role in sj.optim.DECAYED)
    options = {"learning_rate": 0.1, "weight_decay": 0.3, "b1": 0.8, "b2": 0.9, "eps": 1e-3}
    found = run(sj.optim.adamw(described, **options), params, gradients)
    expected = run(optax.adamw(**options, mask=mask), params, gradients)
    assert largest_difference(found, expected) < 1e-12
    assert largest_difference(found, params) > 0.01


def test_weight_decay_acts_on_matrices_alone():
    described = model()
    params, _ = start(described, jnp.float32)
    nothing = [jax.tree.map(jnp.zeros_like, params)]
    after = run(sj.optim.adamw(described, learning_rate=0.1, weight_decay=0.5), params, nothing)

    def check(declared, old, new):
        matrix = declared.spec.role not in ("norm", "bias", "final_norm")
        np.testing.assert_allclose(new, 0.95 * old if matrix else old, rtol=1e-5)

    by_role(described, check, params, after)


RULE = sj.recipe.CompleteP(base_depth=2, base_width=2, alpha=0.5)


def factors(declared, described):
    return described.stack.recipe.multiplier(declared.spec.role, described.stack.geometry)


def test_complete_p_learning_rates_reach_the_right_leaves(x64):
    """Adam's first step is lr * sign(gradient) when epsilon is negligible."""
    described = model(RULE)
    params, gradients = start(described)
    after = run(sj.optim.adamw(described, learning_rate=0.1, eps=1e-30), params, gradients[:1])

    def check(declared, old, new, gradient):
        rate = 0.1 * factors(declared, described).learning_rate
        np.testing.assert_allclose(new - old, -rate * np.sign(gradient), rtol=1e-6, err_msg=declared.name)

    by_role(described, check, params, after, gradients[0])
    rates = {
        factors(d, described).learning_rate
        for d in jax.tree.leaves(described.declaration(), is_leaf=sj.parameter.is_spec)
    }
    assert len(rates) == 3


def test_complete_p_epsilon_and_weight_decay_reach_the_right_leaves(x64):
    described = model(RULE)
    params, gradients = start(described)
    after = run(sj.optim.adamw(described, learning_rate=0.1, weight_decay=0.2, eps=0.7), params, gradients[:1])

    def check(declared, old, new, g):
        m = factors(declared, described)
        decay = 0.2 * m.weight_decay if declared.spec.role in sj.optim.DECAYED else 0.0
        step = g / (np.abs(g) + 0.7 * m.eps) + decay * old
        np.testing.assert_allclose(
            new - old, -0.1 * m.learning_rate * step, rtol=1e-5, atol=1e-8, err_msg=declared.name
        )

    by_role(described, check, params, after, gradients[0])


def test_factors_by_layer_reach_their_layers(x64):
    class Ramp(sj.recipe.PreNorm):
        def multiplier(self, role, geometry):
            return Multiplier(learning_rate=1.0 + jnp.arange(geometry.depth)) if role == "up" else Multiplier()

    described = stack(recipe=Ramp())
    params, gradients = start(described)
    moved = jax.tree.map(
        jnp.subtract, run(sj.optim.adamw(described, learning_rate=0.1, eps=1e-30), params, gradients[:1]), params
    )
    forward = moved["segments"]["0"]["0"]["feed_forward"]
    np.testing.assert_allclose(np.abs(forward["up"]).mean((1, 2)), [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(np.abs(forward["down"]), 0.1, rtol=1e-6)


OPTIMISERS = {
    "adamw": lambda described: sj.optim.adamw(described, learning_rate=0.1, weight_decay=0.1),
    "muon": lambda described: sj.optim.muon(described, learning_rate=0.1, weight_decay=0.1),
    "clipped": lambda described: optax.chain(sj.optim.clip_by_layer_norm(described, 0.3), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", daily(OPTIMISERS, "adamw", "muon"))
def test_stacked_layers_train_as_they_would_alone(x64, name):
    """A deep stack against as many stacks of depth one."""
    deep, one = stack(3), stack(1)
    params, gradients = start(deep)
    together = run(OPTIMISERS[name](deep), params, gradients)
    for l in range(3):
        own, *steps = (
            {**tree, "segments": jax.tree.map(lambda a, l=l: a[l : l + 1], tree["segments"])}
            for tree in (params, *gradients)
        )
        alone = run(OPTIMISERS[name](one), own, steps)
        expected = jax.tree.map(lambda a, l=l: a[l : l + 1], together["segments"])
        assert largest_difference(alone["segments"], expected) < 1e-9


def numpy_orthogonal(m):
    """Five Newton-Schulz steps (Jordan et al. 2024)."""
    flip = m.shape[0] > m.shape[1]
    x = (m.T if flip else m) / (np.linalg.norm(m) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


@pytest.mark.parametrize("looped", [False, True])
def test_muon_against_numpy(x64, looped):
    described = stack(2, looped=looped)
    params, gradients = start(described)
    after = run(sj.optim.muon(described, learning_rate=0.1, adam_ratio=0.3, eps=1e-30), params, gradients[:1])

    def check(declared, old, new, gradient):
        if declared.spec.is_matrix:
            n_in, n_out = declared.spec.shape
            layers = np.asarray(gradient).reshape(-1, n_in, n_out)
            update = np.stack([numpy_orthogonal(g) for g in layers]) * max(1, n_out / n_in) ** 0.5
            update = update.reshape(gradient.shape)
        else:
            update = 0.3 * np.sign(gradient)
        np.testing.assert_allclose(old - new, 0.1 * update, rtol=1e-5, atol=1e-7, err_msg=declared.name)

    by_role(described, check, params, after, gradients[0])


def test_statistics_stay_as_they_are():
    norm = sj.BatchNorm()
    described = stack(recipe=sj.recipe.PreNorm(residual=sj.residual.Pre(norm=norm)))
    params, gradients = start(described, jnp.float32)
    for make in (sj.optim.adamw, sj.optim.muon):
        after = run(make(described, learning_rate=0.1, weight_decay=0.1), params, gradients)
        same = by_role(described, lambda d, a, b: np.array_equal(a, b) == (d.spec.role == "statistic"), params, after)
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("make", daily([sj.optim.adamw, sj.optim.muon], sj.optim.adamw))
def test_learning_rate_and_weight_decay_are_lanes(x64, make):
    described = stack(2)
    params, gradients = start(described)

    def train(rate, decay):
        return run(make(described, learning_rate=rate, weight_decay=decay), params, gradients)

    rates, decays = jnp.array([0.1, 0.01]), jnp.array([0.0, 0.5])
    lanes = jax.vmap(train)(rates, decays)
    for i in range(2):
        single = train(float(rates[i]), float(decays[i]))
        assert largest_difference(jax.tree.map(lambda a, i=i: a[i], lanes), single) < 1e-9


def test_learning_rate_may_be_a_schedule(x64):
    described = stack(1)
    params, gradients = start(described)
    ramp = run(sj.optim.adamw(described, learning_rate=lambda step: 0.1 * (step == 0)), params, gradients)
    once = run(sj.optim.adamw(described, learning_rate=0.1), params, gradients[:1])
    assert largest_difference(ramp, once) < 1e-12


def rate_of(make, declared):
    return 1.0 if make is sj.optim.adamw or declared.spec.is_matrix else 0.1


@pytest.mark.parametrize("make", daily([sj.optim.adamw, sj.optim.muon], sj.optim.adamw))
def test_weight_decay_may_be_a_schedule(x64, make):
    """Each step with the number of that step; statistics of Adam and Muon do not depend on it."""
    described = stack(2)
    params, gradients = start(described)
    decays = [0.5, 0.0, 0.25]

    def moved(gradients, decay):
        return run(make(described, learning_rate=0.1, weight_decay=decay), params, gradients)

    scheduled = moved(gradients, lambda step: jnp.array(decays)[step])
    expected = params
    for i, decay in enumerate(decays):
        plain = jax.tree.map(jnp.subtract, moved(gradients[: i + 1], 0.0), moved(gradients[:i], 0.0) if i else params)
        expected = by_role(
            described,
            lambda d, p, u, decay=decay: p + u - 0.1 * decay * p * (d.spec.role in sj.optim.DECAYED) * rate_of(make, d),
            expected,
            plain,
        )
    assert largest_difference(scheduled, expected) < 1e-12
    assert largest_difference(scheduled, moved(gradients, 0.0)) > 0.01


def test_clipping_by_layer():
    described = model()
    params, gradients = start(described, jnp.float32)
    declaration, depth = described.declaration(), described.stack.depth
    gradient = jax.tree.map(lambda g, d: g * (0.001 if d.layers == () else 1.0), gradients[0], declaration)
    before = sj.probe.layer_norms(gradient, declaration, depth)
    limit = float(np.median(before))
    clipped, _ = sj.optim.clip_by_layer_norm(described, limit).update(gradient, optax.EmptyState(), params)
    after = sj.probe.layer_norms(clipped, declaration, depth)
    np.testing.assert_allclose(after, np.minimum(before, limit), rtol=1e-5)
    assert (before > limit).any()
    for end in ("embedding", "head"):
        assert largest_difference(clipped[end], gradient[end]) < 1e-6
    tight, _ = sj.optim.clip_by_layer_norm(described, 1e-4).update(gradient, optax.EmptyState(), params)
    ends = {**tight, "stack": {**tight["stack"], "segments": {}}}
    np.testing.assert_allclose(optax.tree.norm(ends), 1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", daily(OPTIMISERS, "adamw", "muon"))
@pytest.mark.parametrize("options", [{"depth": 0}, {"depth": 2, "looped": True}])
def test_stacks_without_layers_and_looped_ones_train(name, options):
    described = stack(**options)
    params, gradients = start(described, jnp.float32)
    assert largest_difference(run(OPTIMISERS[name](described), params, gradients), params) > 0.01


@pytest.mark.thorough
def test_accumulated_gradients_are_one_step_on_their_mean(x64):
    described = stack(2)
    params, gradients = start(described)
    many = optax.MultiSteps(sj.optim.muon(described, learning_rate=0.1, weight_decay=0.1), every_k_schedule=3)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *gradients)
    once = run(sj.optim.muon(described, learning_rate=0.1, weight_decay=0.1), params, [mean])
    assert largest_difference(run(many, params, gradients), once) < 1e-6  # MultiSteps averages in float32


def test_an_average_of_the_weights_is_optax_too(x64):
    described = stack(1)
    params, _ = start(described)
    average = optax.incremental_update(jax.tree.map(lambda x: x + 1, params), params, step_size=0.25)
    assert largest_difference(average, jax.tree.map(lambda x: x + 0.25, params)) < 1e-12


def test_training_learns():
    """Every optimiser lowers the loss of a small model on one batch."""
    described = model(sj.recipe.DeepNorm(), depth=2)
    tokens = jax.random.randint(jax.random.key(1), (4, 9), 0, 7)

    def loss(params):
        return sj.loss.next_token(described.apply(params, tokens)[0], tokens)

    for make in (sj.optim.adamw, sj.optim.muon):
        tx = optax.chain(optax.clip_by_global_norm(1.0), make(described, learning_rate=0.02))

        @jax.jit
        def train(params, tx=tx):
            def step(carry, _):
                params, state = carry
                value, gradient = jax.value_and_grad(loss)(params)
                updates, state = tx.update(gradient, state, params)
                return (optax.apply_updates(params, updates), state), value

            return jax.lax.scan(step, (params, tx.init(params)), None, length=30)[1]

        values = train(described.init(jax.random.key(0)))
        assert values[-1] < 0.6 * values[0]
