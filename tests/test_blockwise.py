"""Blockwise attention: equal to attention written out, in values and gradients, in memory that grows with T."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import blockwise, dot_product, position
from stackjax.testing import normal, perturbed
from tests.helpers import daily

B, T, H, D, BLOCK = 2, 11, 4, 16, 4

POSITIONS = {
    "none": position.NoPosition(),
    "rotary": position.Rotary(),
    "alibi": position.ALiBi(),
    "t5": position.T5Bias(n_buckets=4, max_distance=8),
    "shaw": position.Shaw(max_distance=2),
    "transformer_xl": position.TransformerXL(),
    "fire": position.FIRE(d_hidden=4, threshold=3.0),
    "tree_bias": position.Both(first=position.Rotary(), second=position.TreeBias(max_steps=2)),
}

OPTIONS = {
    "causal": {},
    "both_ways": {"causal": False},
    "window": {"window": 3},
    "chunk": {"chunk": 4, "causal": False},
    "capped_with_sinks": {"soft_cap": 2.0, "sinks": True},
    "grouped": {"n_kv_heads": 2},
}

WHERE = {
    "index": jnp.stack([jnp.r_[-1, -1, jnp.arange(9)], jnp.r_[jnp.arange(6), jnp.arange(5)]]),
    "segment": jnp.stack([jnp.zeros(T, int), jnp.r_[jnp.zeros(6, int), jnp.ones(5, int)]]),
    "path": jax.random.randint(jax.random.key(8), (B, T, 3), -1, 3),
}
"""A row with padding in front and a row of two packed documents."""


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries and keys, the last ones not full."""
    monkeypatch.setattr(blockwise, "BLOCK", BLOCK)


def run(attention, side_inputs):
    """Values and gradients with respect to the parameters, the shared ones and x."""
    specs = sj.parameter.declare({"layer": attention.spec(D), "shared": attention.shared(D)})
    params = perturbed(sj.parameter.realise(jax.random.key(0), specs, dtype=jnp.float64))
    x, weights = normal(B, T, D, key=1), normal(B, T, D, key=2)

    @jax.jit
    def both(params, x):
        def loss(params, x):
            prepared = attention.prepare(params["shared"], side_inputs, T, D)
            y, _ = attention.apply(params["layer"], x, side_inputs.replace(prepared=prepared))
            return jnp.sum(weights * y), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    return both(params, x)


CASES = [(name, options) for name in POSITIONS for options in OPTIONS]


@pytest.mark.parametrize(
    ("name", "options"), daily(CASES, *(("rotary", options) for options in OPTIONS), ("tree_bias", "causal"))
)
def test_equals_attention_written_out(name, options, small_blocks, x64):
    plain = sj.Attention(n_heads=H, position=POSITIONS[name], backend="plain", **OPTIONS[options])
    side_inputs = sj.SideInputs(position={k: v for k, v in WHERE.items() if k != "path" or name.startswith("tree")})
    expected = run(plain, side_inputs)
    found = run(dataclasses.replace(plain, backend="blockwise"), side_inputs)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected) if leaf.size)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13 * scale)


@pytest.mark.thorough
def test_a_query_that_may_look_nowhere_gives_zeros(small_blocks):
    query, key, value = (normal(1, n, H, 4, key=i) for i, n in enumerate((5, 9, 9)))
    where = {"index": jnp.arange(5)[None]}, {"index": jnp.full((1, 9), 7)}

    def total(query):
        scores = blockwise.Scores(scale=0.5, causal=True)
        return jnp.sum(blockwise.blockwise_attention(scores, {"position": {}, "shared": {}}, query, key, value, where))

    y, gradient = jax.value_and_grad(total)(query)
    assert y == 0 and not np.any(gradient)


@pytest.mark.parametrize("chunk", daily([None, 5], 5))
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_no_block_that_is_seen_is_passed_over(causal, window, chunk):
    """`may_meet` is True wherever `visible` is True for any pair, on random positions, segments and padding."""
    reach = {"causal": causal, "window": window, "chunk": chunk}
    random = np.random.default_rng(0)
    skipped = 0
    for _ in range(200):
        query, key = (
            {"index": jnp.asarray(random.integers(-1, 12, 3)), "segment": jnp.asarray(random.integers(0, 3, 3))}
            for _ in range(2)
        )
        seen = bool(jnp.any(dot_product.visible(query, key, **reach) & (query["index"] >= 0)[:, None]))
        meet = bool(dot_product.may_meet(dot_product.ranges(query), dot_product.ranges(key), **reach))
        assert meet or not seen
        skipped += not meet
    assert skipped > 0


def test_a_window_visits_the_blocks_that_it_reaches():
    """T W and not T²: with blocks of 256 and a window of 256, two blocks of keys for each block of queries."""
    index = {"index": jnp.arange(4096, dtype=jnp.int32)[None]}
    blocks = blockwise._blocks(index, 256)
    for window, expected in ((256, 2), (None, 16)):
        order, count = blockwise._reach(blockwise.Scores(scale=1.0, causal=True, window=window), blocks, blocks)
        assert int(jnp.max(count)) == expected
        assert set(np.asarray(order[-1, :expected])) == set(range(16 - expected, 16))


def temporary_bytes(n_tokens, backend, remat="none"):
    """Of the gradient of two layers."""
    attention = sj.Attention(n_heads=4, backend=backend)
    model = sj.decoder(vocab=16, d_model=32, depth=2, attention=attention, feed_forward=sj.FeedForward(d_hidden=32))
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, n_tokens), jnp.int32)

    def loss(params, tokens):
        return sj.loss.next_token(model.apply(params, tokens, remat=remat)[0], tokens)

    return jax.jit(jax.grad(loss)).lower(params, tokens).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", daily(["none", "layer"], "none"))
def test_memory_grows_with_the_tokens_and_not_with_their_square(remat):
    short, long = (temporary_bytes(n, "blockwise", remat) for n in (2048, 4096))
    assert long < 2.2 * short
    assert long < temporary_bytes(4096, "plain", remat) / 8


@pytest.mark.thorough
@pytest.mark.parametrize(("remat", "gigabytes"), [("none", 0.35), ("layer", 0.1)])
def test_a_backward_pass_over_4096_tokens_fits(remat, gigabytes):
    """8 layers of 4 heads and width 128, where the scores of each layer alone would be 0.27 GB."""
    model = sj.decoder(vocab=64, d_model=128, depth=8, n_heads=4)
    params, tokens = jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, 4096), "int32")

    def loss(params, tokens):
        return sj.loss.next_token(model.apply(params, tokens, remat=remat)[0], tokens)

    compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < gigabytes * 1e9


def test_it_is_taken_for_long_inputs_unless_another_is_asked_for():
    choose = sj.Attention(n_heads=4)
    assert "weights" in choose.apply(*parts(choose, 64))[1].intermediates
    assert "weights" not in jax.eval_shape(lambda: choose.apply(*parts(choose, 1024))[1].intermediates)
    plain = dataclasses.replace(choose, backend="plain")
    assert "weights" in jax.eval_shape(lambda: plain.apply(*parts(plain, 1024))[1].intermediates)


def parts(attention, n_tokens):
    params = sj.parameter.realise(jax.random.key(0), sj.parameter.declare(attention.spec(D)))
    return params, jnp.ones((1, n_tokens, D)), sj.SideInputs()


def test_weights_that_are_no_softmax_are_refused():
    with pytest.raises(ValueError, match="never has a row"):
        sj.recipe.shaped.ShapedAttention(n_heads=2, backend="blockwise")
