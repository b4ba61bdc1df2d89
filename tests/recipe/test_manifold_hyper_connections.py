"""Manifold-constrained hyper-connections against their equations and DeepSeek-V4's modules, and at their start."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.recipe.form import Branch, FormCoefficients
from stackjax.recipe.manifold_hyper_connections import ManifoldHyperConnected, sinkhorn
from stackjax.testing import largest_difference, normal
from tests.helpers import output
from tests.recipe.toy import rms_norm, sigmoid, toy, toy_run, toy_stack

N = 4


def numpy_sinkhorn(h_res, steps=20):
    """Eq. (9), arXiv:2512.24880: columns, then rows, of exp(H_res)."""
    m = np.exp(h_res)
    for _ in range(steps):
        m = m / m.sum(0, keepdims=True)
        m = m / m.sum(1, keepdims=True)
    return m


def coefficients(p, h):
    """H_pre (N,), H_post (N,), H_res (N, N) of one token, h (N, D): eq. (7) and (8)."""
    raw = rms_norm({}, h.reshape(-1)) @ p["weights"]
    pre, post, res = raw[:N], raw[N : 2 * N], raw[2 * N :]
    (gate_pre, gate_post, gate_res), bias = p["gate"], p["bias"]
    pre = sigmoid(gate_pre * pre + bias[:N])
    post = 2 * sigmoid(gate_post * post + bias[N : 2 * N])
    return pre, post, numpy_sinkhorn((gate_res * res + bias[2 * N :]).reshape(N, N).T)


def test_forward_is_the_papers(x64):
    recipe = sj.recipe.ManifoldHyperConnections(residual=ManifoldHyperConnected(eps=0.0))
    layers, leave, x, y = toy_run(recipe)
    for b, t in np.ndindex(2, 5):
        h = np.tile(x[b, t], (N, 1))
        for layer in layers:
            for name in ("one", "two"):
                p = layer["residual"][name]
                pre, post, res = coefficients(p, h)
                h = res @ h + np.outer(post, toy(layer, name, rms_norm(p["norm"], pre @ h)))
        last = sigmoid(leave["gate"] * (rms_norm({}, h.reshape(-1)) @ leave["weights"]) + leave["bias"])
        np.testing.assert_allclose(y[b, t], rms_norm(leave["norm"], last @ h), rtol=0, atol=1e-12)


def test_mixing_is_doubly_stochastic_at_any_depth(x64):
    each = np.asarray(sinkhorn(normal(1000, N, N)))
    np.testing.assert_allclose(each.sum(-2), 1, atol=2e-6)
    np.testing.assert_allclose(each.sum(-1), 1, atol=2e-3)
    product = reduce(np.matmul, each)
    np.testing.assert_allclose(product.sum(0), 1, atol=2e-3)
    np.testing.assert_allclose(product.sum(1), 1, atol=2e-3)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_gradient_through_sinkhorn_is_finite(size):
    gradient = jax.grad(lambda m: jnp.sum(sinkhorn(m) ** 2 * normal(N, N, key=1)))(size * normal(N, N))
    assert np.isfinite(gradient).all()


def test_sinkhorn_gradient_equals_a_difference_quotient(x64):
    logits, direction, weight = normal(N, N), normal(N, N, key=1), normal(N, N, key=2)

    def f(step):
        return jnp.sum(weight * sinkhorn(logits + step * direction))

    np.testing.assert_allclose(jax.grad(f)(0.0), (f(1e-5) - f(-1e-5)) / 2e-5, rtol=1e-6)


def test_start(x64):
    """Gates of 0.01 away from pre-norm; and pre-norm itself without them, whatever the mixing."""
    plain = toy_stack(sj.recipe.PreNorm(residual=sj.residual.Pre(norm=sj.RMSNorm())), 3)
    x = normal(2, 5, 8, key=1)
    reference = output(plain, plain.init(jax.random.key(0), jnp.float64), x)
    for diagonal in (0.0, 5.0):
        recipe = sj.recipe.ManifoldHyperConnections(residual=ManifoldHyperConnected(diagonal=diagonal))
        stack = toy_stack(recipe, 3)
        params = stack.init(jax.random.key(0), jnp.float64)
        form = params["segments"]["0"]["0"]["residual"]["one"]
        np.testing.assert_allclose(form["gate"], 0.01)
        near = output(stack, params, x)
        assert 1e-6 < largest_difference(near, reference) < 0.05
        closed = jax.tree_util.tree_map_with_path(
            lambda path, a: 0 * a if sj.parameter.path_name(path).endswith("gate") else a, params
        )
        np.testing.assert_allclose(output(stack, closed, x), reference, atol=1e-4)


def test_diagonal_starts_near_the_identity(x64):
    form = ManifoldHyperConnected(diagonal=5.0)
    bias = form.spec(8, 1)["bias"].init(jax.random.key(0), (24,), jnp.int32(0))
    mix = sinkhorn(jnp.asarray(bias[2 * N :], jnp.float64).reshape(N, N))
    np.testing.assert_allclose(jnp.diag(mix), np.exp(5) / (np.exp(5) + N - 1), atol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(bias[:N]), 1 / N, rtol=1e-6)
    np.testing.assert_allclose(2 * jax.nn.sigmoid(bias[N : 2 * N]), 1, rtol=1e-6)


def test_one_stream_is_refused():
    with pytest.raises(ValueError, match="at least 2 streams"):
        ManifoldHyperConnected(n=1)


@pytest.mark.parity
def test_equals_deepseek_v4():
    """Module for module: the hyper-connection, how the decoder layer applies it, and the head."""
    torch = pytest.importorskip("torch")
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek
    from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

    d_model = 16
    config = DeepseekV4Config(hidden_size=d_model, hc_mult=N, hc_sinkhorn_iters=20, hc_eps=1e-6, rms_norm_eps=1e-6)
    theirs, head = deepseek.DeepseekV4HyperConnection(config), deepseek.DeepseekV4HyperHead(config)
    form = ManifoldHyperConnected()
    width = 2 * N + N * N
    ours = {
        "weights": normal(N * d_model, width),
        "bias": normal(width, key=1),
        "gate": normal(3, key=2),
        "norm": {"scale": jnp.ones(d_model)},
    }
    leave = {"weights": normal(N * d_model, N, key=3), "bias": normal(N, key=4), "gate": normal(key=5)}
    streams, branch = np.array(normal(2, 5, N, d_model, key=6)), np.array(normal(2, 5, d_model, key=7))

    def tensor(a):
        return torch.tensor(np.array(a))

    with torch.no_grad():
        theirs.fn.copy_(tensor(ours["weights"].T))
        theirs.base.copy_(tensor(ours["bias"]))
        theirs.scale.copy_(tensor(ours["gate"]))
        head.hc_fn.copy_(tensor(leave["weights"].T))
        head.hc_base.copy_(tensor(leave["bias"]))
        head.hc_scale.copy_(tensor(leave["gate"]).reshape(1))
        post, comb, collapsed = theirs(torch.tensor(streams))
        expected = post.unsqueeze(-1) * torch.tensor(branch).unsqueeze(-2)
        expected = expected + torch.matmul(comb.transpose(-1, -2), torch.tensor(streams))
        expected_head = head(torch.tensor(streams))

    stream, seen = jnp.moveaxis(jnp.asarray(streams), 2, 1), {}

    def f(x, hints):
        seen["x"] = x
        return jnp.asarray(branch), sj.Aux()

    coefficients = FormCoefficients({"alpha": 1.0, "beta": 1.0, "gamma": 1.0})
    new, _ = form.apply(ours, coefficients, stream, Branch(f, stream.dtype))
    np.testing.assert_allclose(jnp.moveaxis(new, 1, 2), expected, atol=5e-6)
    np.testing.assert_allclose(seen["x"], rms_norm({}, collapsed.numpy()), atol=5e-6)
    ended = form.leave(stream, **leave, norm=partial(rms_norm, {}))
    np.testing.assert_allclose(ended, rms_norm({}, expected_head.numpy()), atol=5e-6)
