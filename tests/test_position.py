"""Positions: parity with the formulas, relative encodings shift, padded slots stay out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stackjax as sj
from stackjax import position
from stackjax.position.rotary import turn
from stackjax.position.sinusoidal import sinusoid
from stackjax.testing import normal


def embedded(encoding, x, index):
    specs = sj.parameter.declare(encoding.stream_spec(x.shape[-1]))
    params = sj.parameter.realise(jax.random.key(0), specs, dtype=x.dtype)
    return params, encoding.embed(params, {"index": jnp.asarray(index)}, x)


def test_sinusoid(x64):
    index, d = np.array([0, 1, 7, 1000]), 6
    table = np.zeros((4, d))
    for t, i in enumerate(index):
        for k in range(d // 2):
            angle = i / 10_000 ** (2 * k / d)
            table[t, 2 * k], table[t, 2 * k + 1] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sinusoid(jnp.asarray(index), d), table, atol=1e-12)
    blocks = np.concatenate((table[:, 0::2], table[:, 1::2]), -1)
    np.testing.assert_allclose(sinusoid(jnp.asarray(index), d, interleaved=False), blocks, atol=1e-12)
    x = normal(2, 4, d)
    np.testing.assert_allclose(embedded(position.Sinusoidal(), x, index)[1], np.asarray(x) + table, atol=1e-12)
    with pytest.raises(ValueError, match="even width"):
        sinusoid(jnp.arange(3), 5)


def test_sinusoid_moves_by_a_rotation(x64):
    """PE(t + m) = R_m PE(t) with one R_m for all t."""
    d, m = 8, 5
    now, later = (np.asarray(sinusoid(jnp.arange(6) + shift, d)).reshape(6, d // 2, 2) for shift in (0, m))
    angle = m / 10_000 ** (2 * np.arange(d // 2) / d)
    sine, cosine = now[..., 0], now[..., 1]
    moved = np.stack((sine * np.cos(angle) + cosine * np.sin(angle), cosine * np.cos(angle) - sine * np.sin(angle)), -1)
    np.testing.assert_allclose(later, moved, atol=1e-12)


def test_scalar(x64):
    x, index = normal(2, 3, 4), np.array([0, 5, 10])
    params, y = embedded(position.Scalar(period=5.0), x, index)
    expected = np.asarray(x) + index[:, None] / 5 * np.asarray(params["direction"][0])
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_learned():
    x, index = normal(3, 4), np.array([2, -1, 0])
    params, y = embedded(position.Learned(n_positions=3), x, index)
    np.testing.assert_allclose(y - x, jnp.stack([params["table"][2], jnp.zeros(4), params["table"][0]]), atol=1e-6)
    assert np.isnan(embedded(position.Learned(n_positions=3), x, [0, 1, 3])[1][2]).all()
    with pytest.raises(ValueError, match="5 tokens, but the position table has 4 rows"):
        model = sj.decoder(vocab=7, d_model=8, depth=0, n_heads=2, position=position.Learned(n_positions=4))
        model.apply(model.init(jax.random.key(0)), jnp.zeros((1, 5), int))


def numpy_turn(x, index, width, interleaved, base=10_000.0):
    y = np.array(x)
    for t, i in enumerate(index):
        for k in range(width // 2):
            a, b = (2 * k, 2 * k + 1) if interleaved else (k, k + width // 2)
            angle = i * base ** (-2 * k / width)
            y[..., t, :, a] = x[..., t, :, a] * np.cos(angle) - x[..., t, :, b] * np.sin(angle)
            y[..., t, :, b] = x[..., t, :, a] * np.sin(angle) + x[..., t, :, b] * np.cos(angle)
    return y


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [None, 4])
def test_rotary(x64, interleaved, width):
    encoding = position.Rotary(d_rotary=width, interleaved=interleaved, base=100.0)
    x, index = normal(2, 3, 5, 8), np.array([0, 3, 11])
    where = {"index": jnp.asarray(index)[None]}
    table = encoding.prepare({}, query=where, key=where, new_key=where, n_heads=5, d_head=8)
    expected = numpy_turn(np.asarray(x), index, width or 8, interleaved, base=100.0)
    for side in ("query", "key"):
        np.testing.assert_allclose(encoding.rotate(table, side, x), expected, atol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(encoding.rotate(table, "key", x), axis=-1), jnp.linalg.norm(x, axis=-1))


def test_the_two_pairings_are_one_permutation_apart(x64):
    x, angle = normal(3, 1, 8), normal(3, 4, key=1)
    order = np.arange(8).reshape(2, 4).T.ravel()
    halves = turn(x, jnp.cos(angle), jnp.sin(angle))
    pairs = turn(x[..., order], jnp.cos(angle), jnp.sin(angle), interleaved=True)
    np.testing.assert_allclose(pairs, halves[..., order], atol=1e-12)


@pytest.mark.parametrize(("width", "d_head"), [(3, 8), (10, 8), (None, 7)])
def test_rotary_widths(width, d_head):
    where = {"index": jnp.arange(3)[None]}
    with pytest.raises(ValueError, match="rotary features must be even"):
        position.Rotary(d_rotary=width).prepare({}, query=where, key=where, new_key=where, n_heads=1, d_head=d_head)


@given(st.integers(0, 4096))
def test_rotary_scores_ignore_a_shift(shift):
    with jax.enable_x64(True):
        sublayer = sj.Attention(n_heads=2, position=position.Rotary())
        specs = sj.parameter.declare(sublayer.spec(8))
        params = sj.parameter.realise(jax.random.key(0), specs, dtype=jnp.float64)
        x, index = normal(1, 4, 8), jnp.arange(4)[None]
        plain, moved = (
            sublayer.apply(params, x, sj.SideInputs(position={"index": i}))[0] for i in (index, index + shift)
        )
        np.testing.assert_allclose(moved, plain, rtol=1e-9, atol=1e-11)


def test_absolute_encodings_do_not_ignore_a_shift():
    x = normal(4, 8)
    for encoding in (position.Scalar(), position.Sinusoidal(), position.Learned()):
        assert not np.allclose(embedded(encoding, x, np.arange(4))[1], embedded(encoding, x, np.arange(4) + 3)[1])


def test_both_act():
    both = position.Both(first=position.Rotary(), second=position.Learned(n_positions=9))
    assert both.limit == 9 and position.Both(first=position.Rotary(), second=position.Rotary()).limit is None
    x = normal(4, 8)
    params, y = embedded(both, x, np.arange(4))
    alone = position.Learned(n_positions=9).embed(params["second"], {"index": jnp.arange(4)}, x)
    assert np.array_equal(y, alone) and not np.array_equal(y, x)
    assert both.acts_on(("embed",)) and both.acts_on(("rotate",)) and not both.acts_on(("bias",))
