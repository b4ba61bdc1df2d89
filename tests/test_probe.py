"""Every measure against NumPy, and the gradient measures against the gradients themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax import probe
from stackjax.testing import normal, perturbed
from tests.helpers import daily

D, T, DEPTH = 12, 5, 4
ATTENTION = sj.Attention(n_heads=2, n_kv_heads=1)
LAYER = sj.Layer(sublayers=(ATTENTION, sj.FeedForward(d_hidden=16)))
STACK = sj.Stack.of(LAYER, depth=DEPTH, d_model=D, recipe=sj.recipe.PreNorm())


def numpy_cosine(x, y):
    return np.sum(x * y, -1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def test_measures_of_vectors(x64):
    x, y = np.asarray(normal(2, T, D)), np.asarray(normal(2, T, D, key=1))
    np.testing.assert_allclose(probe.rms(x), np.sqrt(np.mean(x**2)), rtol=1e-12)
    np.testing.assert_allclose(probe.cosine(x, y), numpy_cosine(x, y).mean(), rtol=1e-12)
    pairs = [numpy_cosine(x[:, s], x[:, t]).mean() for s in range(T) for t in range(T) if s != t]
    np.testing.assert_allclose(probe.token_similarity(x), np.mean(pairs), rtol=1e-10)
    away = x - x.mean(1, keepdims=True)
    np.testing.assert_allclose(probe.rank_residual(x), np.linalg.norm(away) / np.linalg.norm(x), rtol=1e-12)


def test_collapsed_tokens():
    x = jnp.broadcast_to(normal(D), (2, T, D))
    np.testing.assert_allclose(probe.token_similarity(x), 1, rtol=1e-5)
    np.testing.assert_allclose(probe.rank_residual(x), 0, atol=1e-6)
    assert probe.token_similarity(x[:, :1]) == 1


@pytest.mark.parametrize("size", [1e-30, 1e-16, 1e16, 1e30])
def test_vanishing_and_exploding_streams_are_still_measured(size):
    """The controls without norms reach such streams, whose squares float32 cannot hold."""
    x, y = normal(2, T, D), normal(2, T, D, key=1)
    np.testing.assert_allclose(probe.rms(size * x), size * probe.rms(x), rtol=1e-5)
    for measure in (
        lambda s: probe.cosine(s * x, s * y),
        lambda s: probe.token_similarity(s * x),
        lambda s: probe.rank_residual(s * x),
    ):
        np.testing.assert_allclose(measure(np.float32(size)), measure(1.0), rtol=1e-4)


def test_zero_streams_are_not_nan():
    x = jnp.zeros((2, T, D))
    for value in (probe.rms(x), probe.cosine(x, x), probe.rank_residual(x)):
        assert value == 0
    assert np.isfinite(probe.token_similarity(x))


def test_attention_entropy(x64):
    logits = np.asarray(normal(2, 3, T, T))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        probe.attention_entropy(weights), -np.mean(np.sum(weights * np.log(weights), -1)), rtol=1e-12
    )
    np.testing.assert_allclose(probe.attention_entropy(jnp.full((2, T, T), 1 / T)), np.log(T), rtol=1e-12)
    assert probe.attention_entropy(jnp.eye(T)) == 0


def test_the_entropy_of_masked_attention_has_a_gradient(x64):
    def entropy(logits):
        return probe.attention_entropy(jax.nn.softmax(jnp.where(jnp.tri(T, dtype=bool), logits, -jnp.inf)))

    logits, step = normal(T, T), 1e-5 * normal(T, T, key=1)
    gradient = jax.grad(entropy)(logits)
    assert jnp.any(gradient != 0)
    np.testing.assert_allclose(jnp.vdot(gradient, step), entropy(logits + step) - entropy(logits), rtol=1e-3)


@pytest.mark.thorough
def test_standard_measures_of_a_stack(x64):
    """Against the same numbers from what each layer saw."""
    params, x = perturbed(STACK.init(jax.random.key(0), jnp.float64)), normal(2, T, D)

    def everything(trace):
        return {
            "before": trace.before,
            "after": trace.after,
            **{
                f"{name}/{k}": v
                for name, seen in trace.intermediates.items()
                for k, v in seen.items()
                if k in ("stream", "input", "output")
            },
            "weights": trace.intermediates["attention"]["weights"],
            "logits": trace.intermediates["attention"]["logits"],
        }

    @jax.jit
    def run(params, x):
        return [STACK.apply(params, x, measure=m)[1].measure for m in (probe.standard, everything)]

    found, saw = jax.tree.map(np.asarray, run(params, x))
    assert set(found) == {
        "stream_rms", "cosine", "token_similarity", "branch_rms/attention", "branch_ratio/attention",
        "branch_rms/feed_forward", "branch_ratio/feed_forward", "attention_entropy/attention", "max_logit/attention",
    }  # fmt: skip
    np.testing.assert_array_equal(saw["before"][0], x)
    np.testing.assert_array_equal(saw["before"][1:], saw["after"][:-1])
    np.testing.assert_array_equal(saw["attention/stream"], saw["before"])
    np.testing.assert_allclose(saw["feed_forward/stream"], saw["before"] + saw["attention/output"], rtol=1e-12)
    np.testing.assert_allclose(saw["after"], saw["feed_forward/stream"] + saw["feed_forward/output"], rtol=1e-12)
    for l in range(DEPTH):
        expected = {
            "stream_rms": np.sqrt(np.mean(saw["after"][l] ** 2)),
            "cosine": numpy_cosine(saw["before"][l], saw["after"][l]).mean(),
            "branch_rms/attention": np.sqrt(np.mean(saw["attention/output"][l] ** 2)),
            "branch_ratio/feed_forward": np.sqrt(
                np.mean(saw["feed_forward/output"][l] ** 2) / np.mean(saw["feed_forward/stream"][l] ** 2)
            ),
            "max_logit/attention": np.abs(saw["logits"][l][np.isfinite(saw["logits"][l])]).max(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][l], value, rtol=1e-10, err_msg=name)
        w = saw["weights"][l]
        entropy = -np.mean(np.sum(np.where(w > 0, w * np.log(np.where(w > 0, w, 1)), 0), -1))
        np.testing.assert_allclose(found["attention_entropy/attention"][l], entropy, rtol=1e-10)


@pytest.mark.parametrize("remat", daily(["none", "nested"], "none"))
def test_taps_are_the_norms_of_the_full_gradients(x64, remat):
    params, x, weights = perturbed(STACK.init(jax.random.key(0), jnp.float64)), normal(2, T, D), normal(2, T, D, key=1)

    def loss(perturbations, taps):
        return jnp.sum(weights * STACK.apply(params, x, perturbations=perturbations, taps=taps, remat=remat)[0])

    full, squares = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros((DEPTH, 2, T, D)), jnp.zeros(DEPTH + 1))
    np.testing.assert_allclose(squares[:-1], np.sum(np.square(full), (1, 2, 3)), rtol=1e-13)
    first = jax.jit(jax.grad(lambda x: jnp.sum(weights * STACK.apply(params, x)[0])))(x)
    np.testing.assert_allclose(full[0], first, rtol=1e-10, atol=1e-13)
    each = probe.stream_gradients(lambda taps: loss(jnp.zeros((DEPTH, 2, T, D)), taps), DEPTH)
    np.testing.assert_allclose(each, np.sqrt(squares), rtol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("looped", [False, True])
def test_norms_of_the_layers_and_the_ends_add_up_to_the_global_norm(x64, looped):
    local = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=2), sj.FeedForward(d_hidden=8)))
    stack = sj.Stack.of(local, LAYER, depth=4 if looped else 5, d_model=D, recipe=sj.recipe.PreNorm(), looped=looped)
    declaration, tree = stack.declaration(), perturbed(stack.init(jax.random.key(0), jnp.float64))
    layers = probe.layer_norms(tree, declaration, stack.depth)
    ends = optax.tree.norm({**tree, "segments": {}})
    np.testing.assert_allclose(np.sum(layers**2) + ends**2, optax.tree.norm(tree) ** 2, rtol=1e-12)
    roles = probe.role_norms(tree, declaration, stack.depth)
    np.testing.assert_allclose(sum(r**2 for r in roles.values()), layers**2, rtol=1e-12)
    assert set(roles) == {"query", "key", "value", "out", "up", "down", "norm"}
    if not looped:
        own = [optax.tree.norm(layer) for layer in sj.convert.unstack(stack, tree)]
        np.testing.assert_allclose(layers, own, rtol=1e-12)
    np.testing.assert_allclose(
        probe.update_ratio(jax.tree.map(lambda x: 0.5 * x, tree), tree, declaration, stack.depth)[:2], 0.5, rtol=1e-9
    )


def test_norms_of_a_deep_stack_take_one_scatter():
    """Every instruction is compiled once a leaf otherwise, in each training program."""
    declaration, tree = STACK.declaration(), jax.eval_shape(STACK.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda tree: probe.layer_norms(tree, declaration, DEPTH))(tree)
    assert str(jaxpr).count("scatter-add[") == 1


def test_angular_distance(x64):
    params, x = perturbed(STACK.init(jax.random.key(0), jnp.float64)), normal(2, T, D)
    _, result = STACK.apply(params, x, measure=lambda trace: {**probe.last_token(trace), "whole": trace.after})
    whole = np.concatenate((np.asarray(x)[None], result.measure.pop("whole")))[:, :, -1]
    found = probe.angular_distance(**result.measure)
    for l, m in np.ndindex(DEPTH + 1, DEPTH + 1):
        expected = np.mean(np.arccos(np.clip(numpy_cosine(whole[l], whole[m]), -1, 1))) / np.pi
        np.testing.assert_allclose(found[l, m], expected, rtol=1e-8, atol=1e-7)


@pytest.mark.thorough
def test_jacobian_gain(x64):
    """Against the Jacobians of single layers, multiplied."""
    params, x, key = perturbed(STACK.init(jax.random.key(0), jnp.float64)), normal(2, T, D), jax.random.key(3)
    layers = sj.convert.unstack(STACK, params)
    single = sj.Stack.of(LAYER, depth=1, d_model=D, recipe=sj.recipe.PreNorm())
    bare = {**single.init(jax.random.key(0), jnp.float64), "segments": None}

    def layer(l):
        own = {**bare, "segments": {"0": {"0": jax.tree.map(lambda a: a[None], layers[l])}}}
        return lambda x: single.apply(own, x, measure=lambda trace: {"x": trace.after})[1].measure["x"][0]

    streams = [x]
    for l in range(DEPTH):
        streams.append(layer(l)(streams[-1]))
    leave = jax.vjp(lambda x: STACK.leave(params, x), streams[-1])[1]
    (u,) = leave(jax.random.normal(key, x.shape, x.dtype))
    expected = []
    for l in reversed(range(DEPTH)):
        (down,) = jax.vjp(layer(l), streams[l])[1](u)
        expected.append(jnp.linalg.norm(down) / jnp.linalg.norm(u))
        u = down
    found = probe.jacobian_gain(STACK, params, x, key)
    np.testing.assert_allclose(found, expected[::-1], rtol=1e-6)


@pytest.mark.thorough
def test_look_at_a_model_and_at_a_stack(x64):
    model = sj.decoder(vocab=7, d_model=D, depth=DEPTH, n_heads=2, feed_forward=sj.FeedForward(d_hidden=16))
    params, tokens = perturbed(model.init(jax.random.key(0), jnp.float64)), jnp.arange(10).reshape(2, 5) % 7

    def loss(logits):
        return sj.loss.next_token(logits, tokens)

    found = jax.jit(lambda p: probe.look(model, p, tokens, loss, jax.random.key(1)))(params)
    gradients = jax.grad(lambda p: loss(model.apply(p, tokens, dtype=jnp.float64)[0]))(params)
    norms = probe.layer_norms(gradients, model.declaration(), DEPTH)
    exact = probe.look(model, params, tokens, loss, jax.random.key(1), dtype=jnp.float64)
    np.testing.assert_allclose(exact["grad_norm"], norms, rtol=1e-9)
    np.testing.assert_allclose(sum(v**2 for k, v in exact.items() if k.startswith("grad_norm/")), norms**2, rtol=1e-9)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in exact.items()}
    assert exact["stream_gradient"].shape == (DEPTH + 1,) and exact["jacobian_gain"].shape == (DEPTH,)
    stack = probe.look(model.stack, params["stack"], normal(2, T, D), jnp.sum, jax.random.key(1), remat="layer")
    assert set(stack) == set(exact) and stack["rank_residual"].shape == (DEPTH,)


@pytest.mark.parametrize(
    "shown", [(), ("weights",), ("logits",), ("weights", "logits")], ids=lambda s: "+".join(s) or "none"
)
def test_standard_measures_what_an_attention_of_your_own_shows(shown):
    class Mean(sj.Sublayer):
        attends = True

        def spec(self, d_model):
            return {}

        def apply(self, params, x, side_inputs):
            weights = jnp.full((2, 1, T, T), 1 / T)
            seen = {"weights": weights, "logits": 3 - 5 * weights}
            return jnp.broadcast_to(x.mean(-2, keepdims=True), x.shape), sj.Aux(
                intermediates={name: seen[name] for name in shown}
            )

    layer = sj.Layer(sublayers=(Mean(name="mean"), sj.FeedForward(d_hidden=16)))
    stack = sj.Stack.of(layer, depth=2, d_model=D, recipe=sj.recipe.PreNorm())
    measured = stack.apply(stack.init(jax.random.key(0)), normal(2, T, D), measure=probe.standard)[1].measure
    assert ("attention_entropy/mean" in measured) == ("weights" in shown)
    assert ("max_logit/mean" in measured) == ("logits" in shown)
    if shown == ("weights", "logits"):
        np.testing.assert_allclose(measured["attention_entropy/mean"], np.log(T), rtol=1e-5)
        np.testing.assert_allclose(measured["max_logit/mean"], 3 - 5 / T, rtol=1e-5)
    assert np.isfinite(measured["branch_rms/mean"]).all()
