"""The arithmetic of attention against plain NumPy and against jax.nn.dot_product_attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackjax import dot_product
from stackjax.testing import largest_difference, normal
from tests.helpers import daily


def numpy_attend(query, key, value, *, scale, mask=None, score=None, bias=None, soft_cap=None, sinks=None):
    """Attention one query at a time, in loops."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, n_queries, n_heads, _ = query.shape
    n_keys, n_groups = key.shape[1:3]
    full = (batch, n_heads, n_queries, n_keys)
    mask = np.broadcast_to(True if mask is None else mask, full)
    score = np.broadcast_to(0.0 if score is None else score, full)
    bias = np.broadcast_to(0.0 if bias is None else bias, full)
    y = np.zeros((batch, n_queries, n_heads, value.shape[-1]))
    for b, h, t in np.ndindex(batch, n_heads, n_queries):
        g = h // (n_heads // n_groups)
        seen = np.flatnonzero(mask[b, h, t])
        logits = scale * (key[b, seen, g] @ query[b, t, h] + score[b, h, t, seen])
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        weights = np.exp(logits + bias[b, h, t, seen])
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[h]))
        if seen.size:
            y[b, t, h] = weights @ value[b, seen, g] / total
    return y


def drawn(batch=2, n_queries=4, n_keys=4, heads=4, groups=2, width=3, key=0):
    query = normal(batch, n_queries, heads, width, key=key)
    return query, normal(batch, n_keys, groups, width, key=key + 1), normal(batch, n_keys, groups, width, key=key + 2)


OPTIONS = {
    "nothing": {},
    "mask": {"mask": np.random.default_rng(0).random((2, 4, 4, 4)) < 0.6},
    "mask for all heads and examples": {"mask": np.tri(4, dtype=bool)[None, None]},
    "score": {"score": np.random.default_rng(1).normal(size=(2, 4, 4, 4))},
    "bias": {"bias": np.random.default_rng(2).normal(size=(1, 4, 4, 4))},
    "soft cap": {"soft_cap": 0.5},
    "sinks": {"sinks": np.array([0.0, 1.0, -2.0, 3.0])},
    "everything": {
        "mask": np.random.default_rng(3).random((2, 1, 4, 4)) < 0.5,
        "score": np.random.default_rng(4).normal(size=(2, 4, 4, 4)),
        "bias": np.random.default_rng(5).normal(size=(2, 4, 4, 4)),
        "soft_cap": 2.0,
        "sinks": np.array([0.5, -0.5, 0.0, 1.0]),
    },
}


@pytest.mark.parametrize("groups", daily([4, 2, 1], 2))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_in_parts(dtype, groups):
    """As if they stood in one array, with scores, biases and sinks; sums in 16 bits are rounded once."""
    query, key, value = (x.astype(dtype) for x in drawn(n_keys=7, groups=groups))
    bias, mask = normal(1, 4, 4, 7, key=9), jnp.tri(4, 7, 3, dtype=bool)[None, None]
    options = {"scale": 0.5, "mask": mask, "bias": bias, "score": bias**2, "soft_cap": 3.0, "sinks": normal(4, key=8)}
    key_parts, value_parts = ((x[:, :2], x[:, 2:2], x[:, 2:]) for x in (key, value))
    whole = dot_product.dot_product_attention(query, key, value, **options)
    parts = dot_product.weighted_sum(dot_product.attention_weights(query, key_parts, **options)[0], value_parts)
    assert parts.dtype == whole.dtype == dtype
    assert largest_difference(parts, whole) <= float(jnp.finfo(dtype).eps) * 2 * float(jnp.abs(whole).max())
    np.testing.assert_array_equal(dot_product.joined(key_parts), key)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_parity(x64, name, groups):
    query, key, value = drawn(groups=groups)
    options = {k: v if k == "soft_cap" else jnp.asarray(v) for k, v in OPTIONS[name].items()}
    y = dot_product.dot_product_attention(query, key, value, scale=0.7, **options)
    expected = numpy_attend(query, key, value, scale=0.7, **OPTIONS[name])
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)


def test_weights_sum_to_one_and_to_less_with_sinks(x64):
    query, key, _ = drawn()
    weights, logits = dot_product.attention_weights(query, key, scale=1.0)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)
    assert weights.shape == logits.shape == (2, 4, 4, 4)
    assert np.all(dot_product.attention_weights(query, key, scale=1.0, sinks=jnp.zeros(4))[0].sum(-1) < 1)


def test_a_row_that_may_look_nowhere_gives_zero_and_finite_gradients(x64):
    query, key, value = drawn()
    mask = jnp.ones((1, 1, 4, 4), bool).at[..., 1, :].set(False)

    def total(query, key, value, sinks):
        return jnp.sum(dot_product.dot_product_attention(query, key, value, scale=1.0, mask=mask, sinks=sinks) ** 2)

    assert not np.any(dot_product.dot_product_attention(query, key, value, scale=1.0, mask=mask)[:, 1])
    for sinks in (None, jnp.zeros(4)):
        gradients = jax.grad(total, (0, 1, 2))(query, key, value, sinks)
        assert all(np.isfinite(g).all() for g in gradients) and not np.any(gradients[0][:, 1])


def test_large_logits_do_not_overflow():
    query, key, value = (300 * x for x in drawn())
    assert np.isfinite(dot_product.dot_product_attention(query, key, value, scale=1.0)).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_values_but_wide_weights(dtype):
    query, key, value = (x.astype(dtype) for x in drawn())
    weights, logits = dot_product.attention_weights(query, key, scale=1.0)
    assert weights.dtype == logits.dtype == jnp.float32
    y = dot_product.dot_product_attention(query, key, value, scale=1.0)
    assert y.dtype == dtype
    expected = numpy_attend(query, key, value, scale=1.0)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=8 * float(jnp.finfo(dtype).eps))


CASES = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([(4, 4), (4, 2), (3, 1)]),
        "tokens": st.sampled_from([(5, 5), (3, 6)]),
        "causal": st.booleans(),
        "window": st.sampled_from([None, 1, 3]),
        "masked": st.booleans(),
        "biased": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


@pytest.mark.thorough
@settings(max_examples=12)
@given(CASES)
def test_fused_equals_plain_on_random_cases(case):
    """Values and gradients, with rows that may look nowhere."""
    (heads, groups), (n_queries, n_keys) = case["groups"], case["tokens"]
    causal = case["causal"] and n_queries == n_keys
    rng = np.random.default_rng(case["seed"])
    query, key, value = drawn(2, n_queries, n_keys, heads, groups, 4, key=case["seed"])
    bias = jnp.asarray(rng.normal(size=(1, heads, n_queries, n_keys)), jnp.float32) if case["biased"] else None
    extra = rng.random((2, 1, n_queries, n_keys)) < 0.5 if case["masked"] else None
    where = [{"index": jnp.arange(n)[None]} for n in (n_queries, n_keys)]
    mask = dot_product.visible(*where, causal=causal, window=case["window"])
    mask = mask if extra is None else mask & extra
    weights = normal(2, n_queries, heads, 4, key=7)

    def plain(*inputs):
        return jnp.sum(weights * dot_product.dot_product_attention(*inputs, scale=0.4, mask=mask, bias=bias))

    def fused(*inputs):
        options = {"causal": causal, "window": case["window"], "mask": extra, "bias": bias}
        return jnp.sum(weights * dot_product.fused_attention(*inputs, backend="xla", scale=0.4, **options))

    both = jax.jit(lambda *inputs: [jax.value_and_grad(f, (0, 1, 2))(*inputs) for f in (plain, fused)])
    # One scale for the three gradients: a token that sees itself alone has none for its query and key.
    expected, found = ((y, jnp.concatenate([*map(jnp.ravel, g)])) for y, g in both(query, key, value))
    assert largest_difference(found, expected) < 2e-5


INDICES = st.sampled_from((1, 5)).flatmap(lambda n: st.lists(st.integers(-1, 6), min_size=n, max_size=n))
"""Of one token or of several; each length is compiled anew."""


@settings(max_examples=30)
@given(
    INDICES,
    INDICES,
    st.booleans(),
    st.sampled_from([None, 1, 2, 4]),
    st.booleans(),
)
def test_visible_is_what_it_says(queries, keys, causal, window, packed):
    query, key = {"index": np.array(queries)}, {"index": np.array(keys)}
    if packed:
        query["segment"], key["segment"] = np.arange(len(queries)) // 2, np.arange(len(keys)) // 2
    seen = np.asarray(dot_product.visible(query, key, causal=causal, window=window))
    assert seen.shape == (1, len(queries), len(keys))
    for t, i in enumerate(queries):
        for s, j in enumerate(keys):
            expected = j >= 0 and (not causal or j <= i) and (window is None or abs(i - j) < window)
            assert seen[0, t, s] == (expected and (not packed or t // 2 == s // 2))


def test_visible_broadcasts_segments_against_shared_positions():
    index, segment = jnp.arange(4)[None], jnp.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    position = {"index": index, "segment": segment}
    seen = dot_product.visible(position, position, causal=True)
    assert seen.shape == (2, 1, 4, 4)
    assert np.array_equal(seen[1, 0], np.tri(4, dtype=bool) & (segment[1][:, None] == segment[1][None]))


def test_segments_may_be_numbered_as_one_likes():
    index, far = jnp.array([[0, 1, 0, 1]]), 2**30
    dot_product.refuse_repeats({"index": index, "segment": jnp.array([[1, 1, 1 + far, 1 + far]])})
    with pytest.raises(ValueError, match="must not stand twice"):
        dot_product.refuse_repeats({"index": index, "segment": jnp.array([[far, far, far, far]])})
