"""Rotary positions: pairings, partial rotation, scalings and their public counterparts."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from stackjax import position
from stackjax.position import rotary, rotary_scaling
from stackjax.testing import normal
from tests.position.helpers import index, logits, prepared

AT = index(0, 4, 1, 7, 5)
I = np.array(AT["index"][0])


def turned(x, at, frequency, interleaved):
    """The paper's rotation, one pair at a time."""
    x = x.copy()
    for k, theta in enumerate(frequency):
        first, second = (2 * k, 2 * k + 1) if interleaved else (k, k + len(frequency))
        a, b = x[first], x[second]
        x[first], x[second] = (
            a * math.cos(at * theta) - b * math.sin(at * theta),
            a * math.sin(at * theta) + b * math.cos(at * theta),
        )
    return x


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("d_rotary", [None, 4])
def test_rotation_is_the_papers(interleaved, d_rotary, x64):
    encoding = position.Rotary(d_rotary=d_rotary, base=500.0, interleaved=interleaved)
    x = normal(1, 5, 2, 8, key=1)
    got = encoding.rotate(prepared(encoding, AT), "query", x)
    width = d_rotary or 8
    frequency = 500.0 ** (-np.arange(0, width, 2) / width)
    for t in range(5):
        for h in range(2):
            expected = turned(np.asarray(x[0, t, h]), I[t], frequency, interleaved)
            np.testing.assert_allclose(got[0, t, h], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("d_rotary", [None, 4])
def test_converted_weights_give_the_same_scores(d_rotary, x64):
    weights, biases = normal(2, 16, 16, key=1), normal(2, 16, key=2)
    halves = rotary.to_halves(weights, d_head=8, d_rotary=d_rotary)
    assert np.abs(halves - weights).max() > 0.1
    np.testing.assert_array_equal(rotary.to_interleaved(halves, d_head=8, d_rotary=d_rotary), weights)
    x = normal(1, 5, 16, key=3)

    def scores(weights, biases, interleaved):
        query, key = ((x @ w + b).reshape(1, 5, 2, 8) for w, b in zip(weights, biases, strict=True))
        return logits(position.Rotary(d_rotary=d_rotary, interleaved=interleaved), AT, query, key)

    converted = scores(halves, rotary.to_halves(biases, d_head=8, d_rotary=d_rotary), False)
    np.testing.assert_allclose(converted, scores(weights, biases, True), rtol=1e-12, atol=1e-13)
    assert np.abs(converted - scores(weights, biases, False)).max() > 1e-2


def test_ranges_of_features_are_checked():
    for d_rotary in (3, 10):
        with pytest.raises(ValueError, match="rotary features must be even"):
            prepared(position.Rotary(d_rotary=d_rotary), AT)
    with pytest.raises(ValueError, match="d_rotary must be positive; got 0"):
        position.Rotary(d_rotary=0)


SCALINGS = {
    "linear": (rotary_scaling.Linear(factor=4.0), {"factor": 4.0}),
    "dynamic": (rotary_scaling.DynamicNTK(factor=2.0, original_length=32), {"factor": 2.0}),
    "yarn": (
        rotary_scaling.YaRN(factor=8.0, original_length=512),
        {"factor": 8.0, "original_max_position_embeddings": 512},
    ),
    "yarn_whole": (
        rotary_scaling.YaRN(factor=8.0, original_length=512, truncate=False, beta_fast=16.0, attention_factor=1.5),
        {
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "truncate": False,
            "beta_fast": 16.0,
            "attention_factor": 1.5,
        },
    ),
    "llama3": (
        rotary_scaling.Llama3(original_length=256),
        {"factor": 8.0, "original_max_position_embeddings": 256, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "longrope": (
        rotary_scaling.LongRoPE(
            factor=4.0,
            original_length=32,
            short=tuple(1 + k / 10 for k in range(16)),
            long=tuple(2.0 + k for k in range(16)),
        ),
        {
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "short_factor": [1 + k / 10 for k in range(16)],
            "long_factor": [2.0 + k for k in range(16)],
        },
    ),
    "proportional": (rotary_scaling.Proportional(share=0.3, factor=2.0), {"partial_rotary_factor": 0.3, "factor": 2.0}),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [20, 32, 100])
def test_scalings_equal_transformers(name, length):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, options = SCALINGS[name]
    kind = name.split("_")[0]
    config = LlamaConfig(
        head_dim=32,
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=32,
        rope_parameters={"rope_type": kind, "rope_theta": 5000.0, **options},
    )
    theirs, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    ours = scaling.frequencies(32, 5000.0, jnp.array([[length]]))
    np.testing.assert_allclose(np.broadcast_to(ours.reshape(-1, 16), (1, 16))[0], theirs.numpy(), rtol=2e-6)
    assert scaling.attention == pytest.approx(attention)


def test_scalings_at_their_ends(x64):
    """What each paper says of the fastest and the slowest pair."""

    def frequencies(scaling, length=64):
        return np.asarray(scaling.frequencies(32, 10_000.0, jnp.array([[length]]))).reshape(-1)

    plain = frequencies(rotary_scaling.Scaling())
    np.testing.assert_allclose(plain, 10_000.0 ** (-np.arange(16) / 16))
    np.testing.assert_allclose(frequencies(rotary_scaling.Linear(factor=4.0)), plain / 4)
    ntk = frequencies(rotary_scaling.NTK(factor=4.0))
    np.testing.assert_allclose(plain[[0, -1]] / ntk[[0, -1]], [1, 4])
    for scaling in (
        rotary_scaling.YaRN(factor=4.0, original_length=512),
        rotary_scaling.Llama3(factor=4.0, original_length=512),
    ):
        ratio = plain / frequencies(scaling)
        np.testing.assert_allclose(ratio[[0, -1]], [1, 4])
        assert np.all(np.diff(ratio) >= 0) and np.any((ratio > 1.01) & (ratio < 3.9))
    dynamic = rotary_scaling.DynamicNTK(original_length=64)
    np.testing.assert_allclose(frequencies(dynamic), plain)
    np.testing.assert_allclose(frequencies(dynamic, 256), ntk)
    share = frequencies(rotary_scaling.Proportional(share=0.25))
    np.testing.assert_allclose(share, np.where(np.arange(16) < 4, plain, 0))


def test_yarn_multiplies_queries_and_keys(x64):
    scaling = rotary_scaling.YaRN(factor=4.0, original_length=512)
    assert scaling.attention == pytest.approx(0.1 * math.log(4) + 1)
    query, key = normal(1, 5, 2, 8, key=1), normal(1, 5, 2, 8, key=2)
    at_once = logits(position.Rotary(scaling=scaling), AT, query, key)
    without = rotary_scaling.YaRN(factor=4.0, original_length=512, attention_factor=1.0)
    np.testing.assert_allclose(
        at_once, scaling.attention**2 * logits(position.Rotary(scaling=without), AT, query, key), rtol=1e-12
    )


def test_a_long_row_does_not_change_a_short_one(x64):
    """The dynamic base follows each row, so no example sees another."""
    encoding = position.Rotary(scaling=rotary_scaling.DynamicNTK(original_length=4))
    short, long = index(0, 1, 2), index(7, 8, 9)
    both = {"index": jnp.concatenate((short["index"], long["index"]))}
    x = normal(2, 3, 2, 8, key=1)
    np.testing.assert_array_equal(logits(encoding, both, x, x)[:1], logits(encoding, short, x[:1], x[:1]))
    assert np.abs(logits(encoding, both, x, x)[1:] - logits(position.Rotary(), long, x[1:], x[1:])).max() > 1e-3


def test_longrope_wants_a_factor_for_each_pair():
    scaling = rotary_scaling.LongRoPE(factor=2.0, original_length=4, short=(1.0,), long=(2.0,))
    with pytest.raises(ValueError, match="each of the 4 pairs"):
        prepared(position.Rotary(scaling=scaling), AT)
