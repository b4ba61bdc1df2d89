"""Shaw, Transformer-XL, T5, ALiBi and FIRE against their papers in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position
from stackjax.position import alibi, t5
from stackjax.testing import normal, perturbed
from tests.position.helpers import index, logits, prepared

AT = index(3, 0, 1, 2, 9, 11)
I = np.array(AT["index"][0])


def own(encoding, n_heads=2, d_head=8):
    specs = {"own": encoding.spec(n_heads, d_head), "shared": encoding.shared(n_heads, d_head)}
    params = sj.parameter.realise(jax.random.key(0), sj.parameter.declare(specs), dtype=float)
    return perturbed(params)


def heads(key):
    return normal(1, len(I), 2, 8, key=key)


def test_shaw_is_the_papers_sum(x64):
    encoding = position.Shaw(max_distance=3)
    params = own(encoding)["own"]
    query, key, weights = heads(1), heads(2), normal(1, 2, 6, 6, key=3)
    score, added = logits(encoding, AT, query, key, params), encoding.value(params, prepared(encoding, AT), weights)
    q, k, a_key, a_value = (np.asarray(x) for x in (query[0], key[0], params["key"], params["value"]))
    for h in range(2):
        for i in range(6):
            near = [int(np.clip(j - I[i], -3, 3)) + 3 for j in I]
            expected = [q[i, h] @ (k[j, h] + a_key[near[j]]) for j in range(6)]
            np.testing.assert_allclose(score[0, h, i], expected, rtol=1e-12)
            expected = sum(float(weights[0, h, i, j]) * a_value[near[j]] for j in range(6))
            np.testing.assert_allclose(added[0, i, h], expected, rtol=1e-12)


def test_shaw_without_values_has_no_second_term():
    encoding = position.Shaw(on_values=False)
    assert set(encoding.spec(2, 8)) == {"key"}
    assert encoding.value({}, prepared(encoding, AT), normal(1, 2, 6, 6)) is None


def test_transformer_xl_is_the_papers_four_terms(x64):
    encoding = position.TransformerXL(d_relative=10)
    params = own(encoding)["own"]
    query, key = heads(1), heads(2)
    score = logits(encoding, AT, query, key, params)
    q, k = np.asarray(query[0]), np.asarray(key[0])
    u, v = np.asarray(params["content_bias"]), np.asarray(params["position_bias"])
    relative = np.asarray(params["relative"]).reshape(10, 2, 8)
    frequency = 1 / 10_000 ** (np.arange(0, 10, 2) / 10)
    for h in range(2):
        for i in range(6):
            for j in range(6):
                angle = (I[i] - I[j]) * frequency
                r = np.concatenate((np.sin(angle), np.cos(angle))) @ relative[:, h]
                four = q[i, h] @ k[j, h] + q[i, h] @ r + u[h] @ k[j, h] + v[h] @ r
                np.testing.assert_allclose(score[0, h, i, j], four, rtol=1e-11, atol=1e-12)


def test_transformer_xl_is_the_papers_relative_shift(x64):
    """Appendix B: (q + v) times W R of the distances T - 1 .. 0, a column of zeros put in front, rows read anew."""
    encoding, length = position.TransformerXL(), 6
    params = own(encoding)["own"]
    query, key = heads(1), heads(2)
    score = logits(encoding, index(*range(length)), query, key, params)
    q, k = np.asarray(query[0]), np.asarray(key[0])
    u, v = np.asarray(params["content_bias"]), np.asarray(params["position_bias"])
    angle = np.arange(length)[::-1, None] / 10_000 ** (np.arange(0, 16, 2) / 16)
    relative = np.concatenate((np.sin(angle), np.cos(angle)), -1) @ np.asarray(params["relative"])
    for h, r in enumerate(np.split(relative, 2, -1)):
        unshifted = (q[:, h] + v[h]) @ r.T
        shifted = np.pad(unshifted, ((0, 0), (1, 0))).reshape(length + 1, length)[1:].reshape(length, length)
        expected = np.tril((q[:, h] + u[h]) @ k[:, h].T + shifted)
        np.testing.assert_allclose(np.tril(score[0, h]), expected, rtol=1e-11, atol=1e-12)


def test_transformer_xl_shares_keys_between_heads(x64):
    encoding = position.TransformerXL()
    params = own(encoding, n_heads=4)["own"]
    query, key = normal(1, 6, 4, 8, key=1), normal(1, 6, 2, 8, key=2)
    table = prepared(encoding, AT, n_heads=4)
    grouped = encoding.score(params, table, query, key)
    repeated = encoding.score(params, table, query, jnp.repeat(key, 2, 2))
    np.testing.assert_allclose(grouped, repeated, rtol=1e-12)


def t5_bucket(relative, n_buckets, max_distance, bidirectional):
    """From the paper's released code, one distance at a time."""
    first = 0
    if bidirectional:
        n_buckets //= 2
        first = n_buckets if relative > 0 else 0
        n = abs(relative)
    else:
        n = max(-relative, 0)
    exact = n_buckets // 2
    if n < exact:
        return first + n
    far = np.log(n / exact) / np.log(max_distance / exact) * (n_buckets - exact)
    return first + min(exact + int(far + 1e-9), n_buckets - 1)


@pytest.mark.parametrize("options", [(32, 128, True), (32, 128, False), (8, 20, True), (6, 50, False), (2, 5, False)])
def test_t5_buckets(options):
    n_buckets, max_distance, bidirectional = options
    relative = np.arange(-300, 301)
    got = t5.bucket(jnp.asarray(relative), n_buckets=n_buckets, max_distance=max_distance, bidirectional=bidirectional)
    np.testing.assert_array_equal(got, [t5_bucket(r, *options) for r in relative])


@pytest.mark.parity
@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_buckets_equal_transformers(bidirectional):
    torch = pytest.importorskip("torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = np.arange(-1000, 1001)
    theirs = T5Attention._relative_position_bucket(torch.tensor(relative), bidirectional, 32, 128)
    np.testing.assert_array_equal(t5.bucket(jnp.asarray(relative), bidirectional=bidirectional), theirs.numpy())


@pytest.mark.parametrize("per_layer", [True, False])
def test_t5_bias_is_a_row_of_the_table(per_layer, x64):
    encoding = position.T5Bias(bidirectional=True, per_layer=per_layer)
    params = own(encoding)
    assert bool(params["own"]) == per_layer and bool(params["shared"]) == (not per_layer)
    table = params["own"]["table"] if per_layer else params["shared"]["t5bias"]["table"]
    zero = jnp.zeros((1, 6, 2, 8))
    bias = logits(encoding, AT, zero, zero, params["own"], params["shared"])
    for i in range(6):
        for j in range(6):
            np.testing.assert_allclose(bias[0, :, i, j], table[t5_bucket(I[j] - I[i], 32, 128, True)])


@pytest.mark.parametrize("options", [{"n_buckets": 1}, {"n_buckets": 5, "bidirectional": True}, {"max_distance": 16}])
def test_t5_refuses_impossible_buckets(options):
    with pytest.raises(ValueError, match="T5 needs at least 2 buckets"):
        position.T5Bias(**options)


def test_alibi_slopes():
    np.testing.assert_allclose(alibi.slopes(8), [2.0**-h for h in range(1, 9)])
    np.testing.assert_allclose(alibi.slopes(2), [2.0**-4, 2.0**-8])
    np.testing.assert_allclose(alibi.slopes(1), [2.0**-8])
    twelve = [2.0**-h for h in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    np.testing.assert_allclose(alibi.slopes(12), twelve)


@pytest.mark.parity
@pytest.mark.parametrize("n_heads", [1, 3, 8, 12, 20])
def test_alibi_equals_transformers(n_heads):
    torch = pytest.importorskip("torch")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 7), n_heads, torch.float32).numpy()[:, 0]
    ours = logits(position.ALiBi(), index(*range(7)), *[jnp.zeros((1, 7, n_heads, 2))] * 2)[0, :, -1]
    np.testing.assert_allclose(ours - ours[:, :1], theirs, rtol=1e-6)


def test_alibi_falls_with_distance_on_both_sides():
    zero = jnp.zeros((1, 6, 2, 8))
    bias = logits(position.ALiBi(), AT, zero, zero)
    for h, slope in enumerate((2.0**-4, 2.0**-8)):
        np.testing.assert_allclose(bias[0, h], -slope * np.abs(I[:, None] - I), rtol=1e-6)


def test_fire_is_the_papers_network(x64):
    encoding = position.FIRE(d_hidden=5, threshold=4.0)
    params = own(encoding)["shared"]
    zero = jnp.zeros((1, 6, 2, 8))
    bias = logits(encoding, AT, zero, zero, {}, params)
    p = jax.tree.map(np.asarray, params["fire"])

    def psi(x):
        return np.log(abs(p["curvature"] * x) + 1)

    for i in range(6):
        for j in range(6):
            share = psi(abs(I[i] - I[j])) / (psi(max(I[i], abs(4 * p["threshold"]))) + 1e-6)
            hidden = np.maximum(share * p["up"][0] + p["up_bias"], 0)
            np.testing.assert_allclose(bias[0, :, i, j], hidden @ p["down"] + p["down_bias"], rtol=1e-11)


def test_shared_parameters_of_one_name_must_agree():
    layers = [
        sj.Layer(sublayers=(sj.Attention(n_heads=2, position=position.T5Bias(n_buckets=n)), sj.FeedForward()))
        for n in (8, 16)
    ]
    stack = sj.Stack.of(*layers, depth=2, d_model=16, recipe=sj.recipe.PreNorm())
    with pytest.raises(ValueError, match="share parameters 't5bias'"):
        stack.declaration()


def test_attention_that_looks_both_ways_has_buckets_in_both():
    """One-sided buckets in an encoder would be blind to the order of all that follows."""
    sizes = {"vocab": 11, "d_model": 8, "n_heads": 2, "depth": 1}
    both = position.Both(first=position.Rotary(), second=position.T5Bias())
    for inside, decided in ((position.T5Bias(), lambda p: p), (both, lambda p: p.second)):
        seq2seq = sj.encoder_decoder(**sizes, position=inside)
        stacks = [sj.encoder(**sizes, position=inside).stack, sj.decoder(**sizes, position=inside).stack]
        stacks += [seq2seq.encoder, seq2seq.decoder.stack]
        sublayers = [stack.segments[0].layers[0].sublayers[0] for stack in stacks]
        assert [decided(each.position).bidirectional for each in sublayers] == [True, False, True, False]
    told = position.T5Bias(bidirectional=False)
    assert sj.encoder(**sizes, position=told).stack.segments[0].layers[0].sublayers[0].position == told
    model = sj.encoder(**sizes, position=position.T5Bias())
    params = perturbed(model.init(jax.random.key(0)))
    apply = jax.jit(model.apply)
    first, swapped = (apply(params, jnp.array([tokens]))[0][0, 0] for tokens in ([1, 2, 3], [1, 3, 2]))
    assert np.abs(first - swapped).max() > 1e-3


@pytest.mark.parametrize("backend", ["plain", "blockwise"])
def test_attention_made_by_hand_decides_too(backend):
    def output(bidirectional):
        encoding = position.T5Bias(bidirectional=bidirectional)
        attention = sj.Attention(n_heads=2, causal=False, backend=backend, position=encoding)
        layer = sj.Layer(sublayers=(attention,))
        stack = sj.Stack.of(layer, depth=1, d_model=8, recipe=sj.recipe.PreNorm(), side="encoder")
        return stack.apply(perturbed(stack.init(jax.random.key(0))), normal(1, 5, 8, key=1))[0]

    np.testing.assert_array_equal(output(None), output(True))
    assert np.abs(output(None) - output(False)).max() > 1e-3
