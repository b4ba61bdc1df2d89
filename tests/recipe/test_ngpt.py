"""nGPT against its equations, and its matrices on the sphere while it trains."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax.position import Learned, NoPosition
from stackjax.recipe import NGPT, StochasticDepth
from stackjax.recipe.ngpt import INWARD, OUTWARD
from stackjax.testing import normal, perturbed
from tests.helpers import daily, output
from tests.recipe.toy import numpy, sigmoid, softmax

D, H, F, V = 8, 2, 12, 11


def model(*, gated=True, position=sj.position.Rotary(), **options):
    activation = sj.feed_forward.silu if gated else sj.feed_forward.gelu_tanh
    forward = sj.FeedForward(d_hidden=F, gated=gated, activation=activation)
    return sj.decoder(
        vocab=V, d_model=D, depth=3, n_heads=H, recipe=NGPT(), position=position, feed_forward=forward, **options
    )


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def attention(p, h):
    """Eq. (15) and (16), arXiv:2410.01131, without positions: s = s_qk / (1/sqrt(D)), logits times sqrt(K)."""
    n_tokens, width = h.shape[0], D // H
    s = p["query_key_scale"] * np.sqrt(D)
    query, key, value = ((h @ p[name]).reshape(n_tokens, H, width) for name in ("query", "key", "value"))
    logits = np.sqrt(width) * np.einsum("thk,shk->hts", s * unit(query), s * unit(key))
    logits = np.where(np.tril(np.ones((n_tokens, n_tokens))) > 0, logits, -np.inf)
    return np.einsum("hts,shk->thk", softmax(logits, -1), value).reshape(n_tokens, -1) @ p["out"]


def feed_forward(p, h):
    """Eq. (18) to (21): u s_u, v s_v sqrt(D), SiLU(v) u; without a gate, GELU of v."""
    u = h @ p["up"] * p["up_scale"]
    if "gate" not in p:
        v = u * np.sqrt(D)
        return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))) @ p["down"]
    v = h @ p["gate"] * p["gate_scale"] * np.sqrt(D)
    return (v * sigmoid(v) * u) @ p["down"]


@pytest.mark.parametrize("gated", daily([True, False], True))
def test_forward_is_the_papers(gated, x64):
    net = model(gated=gated, position=NoPosition())
    params = perturbed(net.init(jax.random.key(0), jnp.float64), size=0.3)
    tokens = jax.random.randint(jax.random.key(1), (5,), 0, V)
    logits, _ = net.apply(params, tokens, dtype=jnp.float64)
    h = unit(numpy(params["embedding"]["token"])[tokens])
    for layer in map(numpy, sj.convert.unstack(net.stack, params["stack"])):
        for name, branch in (("attention", attention), ("feed_forward", feed_forward)):
            step = np.abs(layer["residual"][name]["step"] * 0.05 * np.sqrt(D))
            h = unit(h + step * (unit(branch(layer[name], h)) - h))
    head = numpy(params["head"])
    np.testing.assert_allclose(logits, (h @ head["unembed"]) * head["scale"] * np.sqrt(D), rtol=0, atol=1e-9)


def norms(net, params):
    """Norms of the vectors that should be on the sphere, by role; the other leaves' names."""
    found, free = {}, []
    declared = jax.tree.leaves(net.declaration(), is_leaf=sj.parameter.is_spec)
    for d, leaf in zip(declared, jax.tree.leaves(params), strict=True):
        if d.spec.role in INWARD | OUTWARD:
            axis = -2 if d.spec.role in INWARD else -1
            found[d.name] = np.linalg.norm(leaf, axis=axis)
        else:
            free.append(d.name)
    return found, free


def test_every_matrix_is_normalised_along_the_embedding_dimension():
    net = model()
    params = net.init(jax.random.key(0))
    found, free = norms(net, params)
    assert {name.split("/")[-1] for name in free} == {
        "step",
        "query_key_scale",
        "up_scale",
        "gate_scale",
        "scale",
    }
    # The embedding dimension is the one that is reduced: what is left are the other axes.
    shapes = {name: norm.shape for name, norm in found.items()}
    assert shapes["embedding/token"] == shapes["head/unembed"] == (V,)
    for name, width in (("attention/query", D), ("attention/out", D), ("feed_forward/up", F), ("feed_forward/down", F)):
        assert shapes[name] == (3, width)
    for norm in found.values():
        np.testing.assert_allclose(norm, 1, atol=1e-6)


def train(net, optimiser, after=lambda params: params, steps=5):
    params = net.init(jax.random.key(0))
    state = optimiser.init(params)
    tokens = jax.random.randint(jax.random.key(1), (4, 9), 0, V)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(
            lambda p: sj.loss.next_token(net.apply(p, tokens, key=jax.random.key(2))[0], tokens)
        )(params)
        updates, state = optimiser.update(grads, state, params)
        return after(optax.apply_updates(params, updates)), state, loss

    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, losses


@pytest.mark.parametrize("name", daily(["adamw", "muon", "elsewhere"], "adamw"))
def test_matrices_stay_on_the_sphere(name):
    """With our optimisers by themselves; with one from elsewhere by the line that `Recipe.project` documents."""
    net = model()
    if name == "elsewhere":
        params, losses = train(net, optax.adam(0.02), after=net.project)
        loose, _ = train(net, optax.adam(0.02), steps=1)
        assert any(np.abs(norm - 1).max() > 1e-3 for norm in norms(net, loose)[0].values())
    else:
        params, losses = train(net, getattr(sj.optim, name)(net, learning_rate=0.02, weight_decay=0.1))
    assert losses[-1] < losses[0]
    for norm in norms(net, params)[0].values():
        np.testing.assert_allclose(norm, 1, atol=2e-6)
    again = net.project(params)
    np.testing.assert_allclose(jax.tree.leaves(again)[0], jax.tree.leaves(params)[0], atol=2e-7)


def test_other_recipes_are_left_alone():
    """No rounding from a constraint that is none."""
    net = sj.decoder(vocab=V, d_model=D, depth=2, n_heads=H)
    params = net.init(jax.random.key(0))
    assert net.project(params) is params


def test_stream_stays_on_the_sphere_and_steps_start_at_their_value():
    net = model()
    params = net.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, V)

    def measure(trace):
        return {
            "norm": jnp.linalg.norm(trace.after, axis=-1),
            "chord": jnp.linalg.norm(trace.after - trace.before, axis=-1),
        }

    found = net.apply(params, tokens, measure=measure)[1].measure
    np.testing.assert_allclose(found["norm"], 1, atol=1e-6)
    # Two steps a layer, each 0.05 of a chord that is at most 2.
    assert 0 < found["chord"].max() <= 0.2
    form = params["stack"]["segments"]["0"]["0"]["residual"]["attention"]
    np.testing.assert_allclose(form["step"], D**-0.5, rtol=1e-6)


def test_no_weight_decay():
    net = model()
    leaves = jax.tree.leaves(net.multipliers(), is_leaf=lambda m: isinstance(m, sj.recipe.Multiplier))
    assert {m.weight_decay for m in leaves} == {0.0}


def test_grouped_keys_equal_repeated_ones(x64):
    x = normal(5, D, key=1)
    grouped = sj.Stack.of(
        sj.Layer(sublayers=(sj.Attention(n_heads=2, n_kv_heads=1),)), depth=1, d_model=D, recipe=NGPT()
    )
    full = sj.Stack.of(sj.Layer(sublayers=(sj.Attention(n_heads=2),)), depth=1, d_model=D, recipe=NGPT())
    params = perturbed(grouped.init(jax.random.key(0), jnp.float64))
    repeated = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.tile(a, 2) if sj.parameter.path_name(path).endswith(("key", "value")) else a, params
    )
    np.testing.assert_allclose(output(grouped, params, x), output(full, repeated, x), atol=1e-12)


@pytest.mark.thorough
def test_inside_another_recipe():
    net = sj.decoder(vocab=V, d_model=D, depth=2, n_heads=H, recipe=StochasticDepth(base=NGPT()))
    params, _ = train(net, sj.optim.adamw(net, learning_rate=0.01), steps=2)
    for norm in norms(net, params)[0].values():
        np.testing.assert_allclose(norm, 1, atol=2e-6)


@pytest.mark.parametrize(
    "sublayer",
    [
        sj.Attention(n_heads=2, bias=("query",)),
        sj.Attention(n_heads=2, qk_norm=sj.RMSNorm()),
        sj.Attention(n_heads=2, value_norm=sj.RMSNorm()),
        sj.Attention(n_heads=2, sinks=True),
        sj.FeedForward(bias=True),
        sj.FeedForward(inner_norm=sj.RMSNorm()),
        sj.Sublayer(),
    ],
)
def test_what_it_has_no_rule_for_is_refused(sublayer):
    with pytest.raises(ValueError, match="nGPT has"):
        sj.Stack.of(sj.Layer(sublayers=(sublayer,)), depth=1, d_model=D, recipe=NGPT())


def test_a_scale_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"scale is sqrt\(K\)"):
        sj.Stack.of(sj.Layer(sublayers=(sj.Attention(n_heads=2, scale=7.0),)), depth=1, d_model=D, recipe=NGPT())


def test_only_its_own_side_of_an_encoder_decoder_is_on_the_sphere():
    sizes = {"vocab": V, "d_model": D, "depth": 1, "n_heads": H}
    plain = sj.encoder_decoder(**sizes)
    net = replace(plain, decoder=sj.encoder_decoder(**sizes, recipe=NGPT()).decoder)
    params = jax.tree.map(lambda a: 2 * a, net.init(jax.random.key(0)))
    after = net.project(params)
    same = jax.tree.map(np.array_equal, after["encoder"], params["encoder"])
    assert all(jax.tree.leaves(same))
    out = after["decoder"]["stack"]["segments"]["0"]["0"]["attention"]["out"]
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), 1, atol=1e-6)


def test_learned_positions_stay_on_the_sphere():
    net = model(position=Learned(n_positions=16))
    tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, V)
    first = net.apply(
        net.init(jax.random.key(0)), tokens, measure=lambda t: {"norm": jnp.linalg.norm(t.before, axis=-1)}
    )[1].measure["norm"][0]
    np.testing.assert_allclose(first, 1, atol=1e-6)
