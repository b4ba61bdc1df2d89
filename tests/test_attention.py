"""The attention sublayer against NumPy, its backends against each other, and what its options change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import normal, perturbed
from tests.helpers import daily
from tests.test_dot_product import numpy_attend

D, T = 12, 5


def drawn(sublayer, dtype=None, size=0.3):
    specs = sj.parameter.declare(sublayer.spec(D))
    return perturbed(sj.parameter.realise(jax.random.key(0), specs, dtype=dtype or jnp.result_type(float)), size=size)


def prepared(sublayer, side_inputs, n_tokens=T):
    return side_inputs.replace(prepared=sublayer.prepare({}, side_inputs, n_tokens, D))


def run(sublayer, params, x, side_inputs=sj.SideInputs()):
    return jax.jit(lambda params, x: sublayer.apply(params, x, side_inputs))(params, x)


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


@pytest.mark.parametrize("groups", daily([None, 2, 1], 2))
def test_parity_with_everything(x64, groups):
    sublayer = sj.Attention(
        n_heads=4,
        n_kv_heads=groups,
        d_head=6,
        window=3,
        scale=0.3,
        soft_cap=2.0,
        sinks=True,
        qk_norm=sj.RMSNorm(),
        inner_norm=sj.RMSNorm(),
        bias=("query", "key", "value", "out"),
    )
    params, x = drawn(sublayer), normal(2, T, D)
    p, h = jax.tree.map(np.asarray, params), np.asarray(x)
    query, key, value = ((h @ p[name] + p[f"{name}_bias"]).reshape(2, T, -1, 6) for name in ("query", "key", "value"))
    query, key = rms(query, p["query_norm"]["scale"]), rms(key, p["key_norm"]["scale"])
    near = np.tri(T, dtype=bool) & ~np.tri(T, k=-3, dtype=bool)
    y = numpy_attend(query, key, value, scale=0.3, mask=near[None, None], soft_cap=2.0, sinks=p["sinks"])
    y = rms(y.reshape(2, T, 24), p["inner_norm"]["scale"]) @ p["out"] + p["out_bias"]
    np.testing.assert_allclose(run(sublayer, params, x)[0], y, rtol=1e-11, atol=1e-12)


def test_default_scale_and_head_width(x64):
    sublayer = sj.Attention(n_heads=3, causal=False)
    params, x = drawn(sublayer), normal(1, T, D)
    p, h = jax.tree.map(np.asarray, params), np.asarray(x)
    query, key, value = ((h @ p[name]).reshape(1, T, 3, 4) for name in ("query", "key", "value"))
    y = numpy_attend(query, key, value, scale=0.5).reshape(1, T, D) @ p["out"]
    np.testing.assert_allclose(run(sublayer, params, x)[0], y, rtol=1e-11, atol=1e-12)


def test_a_transform_of_the_values(x64):
    """What the hook returns is what attention mixes; observers see the values before it."""
    plain = sj.Attention(n_heads=3)
    halved = sj.Attention(n_heads=3, transform_value=halve)
    params, x = drawn(plain), normal(2, T, D)
    (y, aux), (half, seen) = run(plain, params, x), run(halved, params, x)
    np.testing.assert_allclose(half, 0.5 * y, rtol=1e-12)
    np.testing.assert_array_equal(seen.intermediates["value"], aux.intermediates["value"])


def halve(value, side_inputs):
    return 0.5 * value


def test_cross_attention_reads_the_memory_alone(x64):
    sublayer = sj.Attention(n_heads=3, cross=True, causal=False)
    params, x, memory = drawn(sublayer), normal(2, T, D), normal(2, 7, D, key=1)
    p = jax.tree.map(np.asarray, params)
    query = (np.asarray(x) @ p["query"]).reshape(2, T, 3, 4)
    key, value = ((np.asarray(memory) @ p[name]).reshape(2, 7, 3, 4) for name in ("key", "value"))
    mask = np.arange(7) < 4
    y = numpy_attend(query, key, value, scale=0.5, mask=mask[None, None, None]).reshape(2, T, D) @ p["out"]
    index = jnp.where(jnp.arange(7) < 4, jnp.arange(7), -1)[None]
    side_inputs = sj.SideInputs(memory=memory, memory_position={"index": index})
    np.testing.assert_allclose(run(sublayer, params, x, side_inputs)[0], y, rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match="memory"):
        run(sublayer, params, x)


def positions(**changes):
    left = jnp.array([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
    return sj.SideInputs(position={"index": left} | changes)


BACKENDS = {
    "causal": (sj.Attention(n_heads=4), sj.SideInputs()),
    "bidirectional": (sj.Attention(n_heads=4, causal=False), sj.SideInputs()),
    "grouped and rotary": (
        sj.Attention(n_heads=4, n_kv_heads=2, d_head=4, position=sj.position.Rotary()),
        sj.SideInputs(),
    ),
    "one key head": (sj.Attention(n_heads=4, n_kv_heads=1), sj.SideInputs()),
    "causal window": (sj.Attention(n_heads=4, window=2), sj.SideInputs()),
    "window": (sj.Attention(n_heads=4, window=2, causal=False), sj.SideInputs()),
    "left padding": (sj.Attention(n_heads=4), positions()),
    "bidirectional padding": (sj.Attention(n_heads=4, causal=False, window=3), positions()),
    "segments": (sj.Attention(n_heads=4), positions(segment=jnp.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 2]]))),
    "norms": (sj.Attention(n_heads=4, qk_norm=sj.RMSNorm(), scale=0.2), sj.SideInputs()),
}


@pytest.mark.parametrize(
    "name", daily(BACKENDS, "grouped and rotary", "causal window", "window", "left padding", "segments")
)
def test_xla_equals_plain(name):
    plain, side_inputs = BACKENDS[name]
    plain = dataclasses.replace(plain, backend="plain")
    fused = dataclasses.replace(plain, backend="xla")
    params, x, weights = drawn(plain), normal(2, T, D), normal(2, T, D, key=5)

    def loss(sublayer, params, x):
        return jnp.sum(weights * run(sublayer, params, x, prepared(sublayer, side_inputs))[0])

    def both(params, x):
        return [jax.value_and_grad(loss, (1, 2))(sublayer, params, x) for sublayer in (plain, fused)]

    expected, found = jax.jit(both)(params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_leading_axes(x64):
    sublayer = sj.Attention(n_heads=3, position=sj.position.Rotary())
    params, x = drawn(sublayer), normal(2, 3, T, D)
    y = run(sublayer, params, x)[0]
    assert y.shape == x.shape
    np.testing.assert_allclose(y.reshape(6, T, D), run(sublayer, params, x.reshape(6, T, D))[0], rtol=1e-12)
    np.testing.assert_allclose(y[1, 2], run(sublayer, params, x[1, 2])[0], rtol=1e-10, atol=1e-12)
    index = jnp.arange(6).reshape(2, 3, 1) + jnp.arange(T)
    moved = run(sublayer, params, x, sj.SideInputs(position={"index": index}))[0]
    np.testing.assert_allclose(moved, y, rtol=1e-9, atol=1e-11)


def test_without_a_table_it_prepares_its_own(x64):
    sublayer = sj.Attention(n_heads=3, window=2)
    params, x = drawn(sublayer), normal(2, T, D)
    assert np.array_equal(run(sublayer, params, x)[0], run(sublayer, params, x, prepared(sublayer, sj.SideInputs()))[0])


BASE = sj.Attention(n_heads=4, position=sj.position.Rotary(d_rotary=2))
FLIPS = {
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_head": 6,
    "causal": False,
    "window": 2,
    "chunk": 2,
    "position": sj.position.NoPosition(),
    "scale": 0.1,
    "soft_cap": 0.3,
    "sinks": True,
    "gate": "head",
    "qk_norm": sj.LayerNorm(),
    "value_norm": sj.RMSNorm(),
    "inner_norm": sj.RMSNorm(),
    "bias": ("value",),
    "dropout": 0.5,
    "weight_dropout": 0.5,
}


def test_every_option_changes_the_output_or_raises():
    untested = {"name", "backend", "cross", "transform_value"}  # a name, an equal way, another input, tested above
    assert set(FLIPS) | untested == {field.name for field in dataclasses.fields(sj.Attention)}
    x, side_inputs = normal(2, T, D), sj.SideInputs(key=jax.random.key(0))
    before = run(BASE, drawn(BASE), x, side_inputs)[0]
    for name, value in FLIPS.items():
        sublayer = dataclasses.replace(BASE, **{name: value})
        assert not np.allclose(run(sublayer, drawn(sublayer), x, side_inputs)[0], before, atol=1e-4), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads must divide"),
        ({"n_heads": 4, "n_kv_heads": 0}, "n_kv_heads must be positive"),
        ({"n_heads": 0}, "n_heads must be positive"),
        ({"n_heads": 4, "d_head": 0}, "d_head must be positive"),
        ({"n_heads": 4, "weight_dropout": 1.0}, "weight_dropout must be at least 0 and below 1"),
        ({"n_heads": 4, "weight_dropout": 0.1, "backend": "xla"}, "backend='plain'"),
        ({"n_heads": 4, "window": 0}, "window must be positive"),
        ({"n_heads": 4, "soft_cap": 0.0}, "soft_cap must be positive"),
        ({"n_heads": 4, "bias": ("q",)}, "bias names projections"),
        ({"n_heads": 4, "chunk": 0}, "chunk must be positive"),
        ({"n_heads": 4, "gate": "tanh"}, "gate must be 'head' or 'feature' or None"),
        ({"n_heads": 4, "backend": "flash"}, "backend must be"),
        ({"n_heads": 4, "backend": "xla", "soft_cap": 5.0}, "backend='plain'"),
        ({"n_heads": 4, "backend": "cudnn", "sinks": True}, "backend='plain'"),
        ({"n_heads": 4, "cross": True, "window": 2}, "sees all of the memory"),
        ({"n_heads": 4, "position": sj.position.Learned()}, "give it to the model's embedding"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        sj.Attention(**options)


def test_heads_that_do_not_divide_are_told_what_would():
    with pytest.raises(ValueError, match="d_model=100, n_heads=8; try n_heads=5 or 10"):
        sj.Attention(n_heads=8).head_width(100)


@pytest.mark.thorough
def test_weight_dropout_is_on_the_weights():
    """With a key, the mean over many keys is the sum without dropout, and a dropped weight's value is not seen."""
    sublayer = sj.Attention(n_heads=1, d_head=T, causal=False, weight_dropout=0.4)
    params = drawn(sublayer)
    identity = {**params, "value": jnp.eye(D, T), "out": jnp.eye(T, D)}
    x = normal(1, T, D).at[..., :T].set(jnp.eye(T))
    calm, _ = run(sublayer, identity, x)
    weights = run(sublayer, identity, x)[1].intermediates["weights"][0, 0]
    np.testing.assert_allclose(calm[0, :, :T], weights, rtol=1e-5)
    seen = jax.vmap(lambda key: run(sublayer, identity, x, sj.SideInputs(key=key))[0])(
        jax.random.split(jax.random.key(1), 4000)
    )[:, 0, :, :T]
    dropped = np.asarray(seen == 0)
    assert abs(dropped.mean() - 0.4) < 5 * np.sqrt(0.24 / dropped.size)
    scaled = np.broadcast_to(weights / 0.6, seen.shape)
    np.testing.assert_allclose(np.where(dropped, 0, seen), np.where(dropped, 0, scaled), rtol=1e-5)
    np.testing.assert_allclose(seen.mean(0), weights, atol=5 * float(weights.max()) * np.sqrt(0.4 / 0.6 / 4000))


def test_weight_dropout_and_output_dropout_are_drawn_apart():
    sublayer = sj.Attention(n_heads=2, weight_dropout=0.5, dropout=0.5)
    params, x, key = drawn(sublayer), normal(2, T, D), sj.SideInputs(key=jax.random.key(0))
    both, _ = run(sublayer, params, x, key)
    output, _ = run(dataclasses.replace(sublayer, weight_dropout=0.0), params, x, key)
    weights, _ = run(dataclasses.replace(sublayer, dropout=0.0), params, x, key)
    np.testing.assert_array_equal(both == 0, (output == 0) | (weights == 0))
    assert not np.allclose(both, output, atol=1e-4)
    np.testing.assert_array_equal(run(sublayer, params, x)[0], run(sj.Attention(n_heads=2), params, x)[0])


@pytest.mark.parametrize("backend", ["blockwise", "xla", "cudnn"])
def test_weight_dropout_needs_the_weights(backend):
    with pytest.raises(ValueError, match=r"dropped? weights|drops weights"):
        sj.Attention(n_heads=2, weight_dropout=0.1, backend=backend)
