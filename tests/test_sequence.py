"""Tokens split over a mesh: the numbers are those of one device, and each device computes and keeps its share."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import blockwise, sequence, shard
from stackjax.testing import largest_difference

from .test_shard import cost_of_a_step

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

T = 24
BOTH, ALONE = {"data": 2, "sequence": 4}, {"sequence": 8}
SIZES = {"vocab": 16, "d_model": 16, "depth": 2}


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks on each device, the last one not full."""
    monkeypatch.setattr(blockwise, "BLOCK", 4)


def packed():
    """Two documents in each of two rows, the second one padded."""
    index = jnp.concatenate((jnp.arange(10), jnp.arange(11), jnp.full(3, -1)))
    segment = (jnp.arange(T) >= 10).astype(int)
    return {"index": jnp.tile(index, (2, 1)), "segment": jnp.tile(segment, (2, 1))}


def decoder(attention, **options):
    return sj.decoder(**SIZES, attention=attention, **options)


def attention(backend, **options):
    return decoder(sj.Attention(n_heads=4, backend=backend, **options))


def recurrence(sublayer):
    layer = sj.Layer(sublayers=(sublayer, sj.FeedForward()))
    return replace(sj.decoder(**SIZES), stack=sj.Stack.of(layer, depth=2, d_model=16, recipe=sj.recipe.PreNorm()))


def next_token(model, params, tokens, position):
    inputs = (tokens,) * (2 if isinstance(model, sj.EncoderDecoder) else 1)
    side_inputs = None if position is None else sj.SideInputs(position=position)
    logits, result = model.apply(params, *inputs, side_inputs, dtype=jnp.float64)
    weights = None if position is None else position["index"] > 0
    return sj.loss.next_token(logits, tokens, weights) + sum(result.loss.values())


def in_blocks(model, params, tokens, position):
    x, _ = model.hidden(params, tokens, dtype=jnp.float64)
    return sj.loss.blockwise_cross_entropy(partial(model.logits, params), x, jnp.flip(tokens, -1), block=2)


def in_order(model, params, tokens, position):
    """Each token's own loss, whatever the order in which the tokens stand."""
    order = position["index"][0]
    logits, _ = model.apply(params, tokens[:, order], sj.SideInputs(position=position), dtype=jnp.float64)
    return sj.loss.cross_entropy(logits, jnp.flip(tokens, -1)[:, order])


def compare(model, sizes, position=None, loss=next_token, n_tokens=T, there=None, bound=1e-11, batch=None):
    """Loss and gradients on a mesh are those of one device, from perturbed parameters.

    Args:
        model: of SIZES.
        sizes: of the mesh.
        position: of the tokens.
        loss: of (model, params, tokens, position).
        n_tokens: T.
        there: positions on the mesh, where they are others.
        bound: of differences relative to the largest entry.
        batch: B; None takes a row for each device of `data`.
    """
    on, batch = shard.mesh(**sizes), batch or sizes.get("data", 1)
    tokens = jax.random.randint(jax.random.key(1), (batch, n_tokens), 0, 16)
    params = model.init(jax.random.key(0), jnp.float64)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    step = jax.jit(jax.value_and_grad(partial(loss, model)))
    expected, gradient = step(params, tokens, position)
    placed = jax.device_put(params, shard.parameters(model, on)), jax.device_put(tokens, shard.batch(on))
    got, sharded = step(*placed, position if there is None else there)
    assert all(jnp.any(x != 0) for x in jax.tree.leaves(gradient))
    np.testing.assert_allclose(got, expected, rtol=bound)
    assert largest_difference(sharded, gradient) < bound


@pytest.mark.parametrize(
    ("model", "sizes", "documents"),
    [
        (attention("plain", n_kv_heads=2, window=7), BOTH, True),
        pytest.param(
            attention("blockwise", n_kv_heads=2, window=7, sinks=True, position=sj.position.T5Bias()),
            BOTH,
            True,
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_the_numbers_are_those_of_one_device(x64, small_blocks, model, sizes, documents):
    compare(model, sizes, packed() if documents else None)


LATENT = partial(sj.LatentAttention, n_heads=4, d_latent=8, d_head=8, d_rotary=4)
KINDS = {
    "T5": lambda: attention("plain", position=sj.position.T5Bias()),
    "ALiBi": lambda: attention("blockwise", position=sj.position.ALiBi()),
    "Transformer-XL": lambda: attention("plain", position=sj.position.TransformerXL()),
    "Shaw": lambda: attention("blockwise", position=sj.position.Shaw(max_distance=8)),
    "learned": lambda: sj.decoder(**SIZES, position=sj.position.Learned(n_positions=T)),
    "chunk": lambda: attention("blockwise", chunk=5),
    "latent": lambda: decoder(LATENT()),
    "latent, blockwise": lambda: decoder(LATENT(backend="blockwise")),
    "recurrence": lambda: recurrence(sj.GatedDeltaNet(n_heads=4, d_head=4, chunk=4)),
    "encoder": lambda: sj.encoder(**SIZES),
    "encoder-decoder": lambda: sj.encoder_decoder(**SIZES),
    "experts": lambda: sj.decoder(**SIZES, feed_forward=sj.MixtureOfExperts(n_experts=4, top_k=2, d_hidden=16)),
    "several streams": lambda: sj.decoder(**SIZES, recipe=sj.recipe.HyperConnections()),
    "history": lambda: sj.decoder(**SIZES, recipe=sj.recipe.DenseFormer()),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_so_are_those_of_all_kinds(x64, small_blocks, kind):
    compare(KINDS[kind](), BOTH)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["T5", "ALiBi"])
def test_so_are_those_of_a_single_row(x64, small_blocks, kind):
    compare(KINDS[kind](), ALONE)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["plain", "blockwise"])
def test_tokens_that_do_not_divide_stay_whole(x64, small_blocks, backend):
    compare(attention(backend), BOTH, n_tokens=T + 1)


@pytest.mark.thorough
def test_blocks_of_tokens_are_those_of_each_device(x64):
    """The hidden layer and the logits of two tokens of each device at a time."""
    compare(sj.decoder(**SIZES, feed_forward=sj.FeedForward(block=2)), BOTH, loss=in_blocks)


@pytest.mark.thorough
def test_a_fused_kernel(x64):
    """XLA's own computes its softmax in float32."""
    compare(attention("xla", window=5), BOTH, bound=1e-5)


def test_cudnn_is_refused():
    on = shard.mesh(**ALONE)
    params = jax.eval_shape(attention("cudnn").init, jax.random.key(0))
    with jax.set_mesh(on), pytest.raises(ValueError, match="cuDNN's kernels take whole sequences"):
        jax.eval_shape(attention("cudnn").apply, params, jax.ShapeDtypeStruct((1, T), jnp.int32))


@pytest.mark.thorough
def test_decoding_with_a_prompt_that_is_split():
    on, model = shard.mesh(**BOTH), attention("plain", n_kv_heads=2)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, 16)
    expected = sj.decode.generate(model, params, tokens, n_tokens=4).tokens
    placed = jax.device_put(params, shard.parameters(model, on)), jax.device_put(tokens, shard.batch(on))
    assert np.array_equal(sj.decode.generate(model, *placed, n_tokens=4).tokens, expected)


@pytest.mark.thorough
def test_tokens_in_another_order(x64, small_blocks):
    compare(
        attention("blockwise", window=9),
        ALONE,
        {"index": jnp.arange(2 * T)[None]},
        loss=in_order,
        n_tokens=2 * T,
        there={"index": jnp.asarray(sequence.balanced(2 * T, 8))[None]},
    )


@pytest.mark.parametrize("sizes", [BOTH, pytest.param(ALONE, marks=pytest.mark.thorough)], ids=["batch", "one row"])
@pytest.mark.parametrize(
    ("backend", "depth", "n_tokens"),
    [("plain", 2, 1024), pytest.param("blockwise", 24, 2**14, marks=pytest.mark.thorough)],
)
def test_each_device_computes_and_keeps_its_share(backend, depth, n_tokens, sizes):
    """Of a step of training: the keys and values of one layer, whole on each device, are little beside all layers."""
    batch = sizes.get("data", 1)
    model = sj.decoder(vocab=64, d_model=64, depth=depth, attention=sj.Attention(n_heads=4, backend=backend))
    flops, temporary, _ = cost_of_a_step(model, shape=(batch, n_tokens))
    each, its_temporary, program = cost_of_a_step(model, shard.mesh(**sizes), shape=(batch, n_tokens))
    assert each < 1.15 * flops / 8
    assert its_temporary < 1.15 * temporary / 8
    n_each = n_tokens // sizes["sequence"]
    assert f"f32[{depth},1,{n_each},64]" in program, "streams of all layers, each device's tokens"
    assert f"f32[{depth},1,{n_tokens},64]" not in program
    assert f"f32[1,4,{n_tokens},{n_tokens}]" not in program


def test_the_stream_lies_split():
    on = shard.mesh(**BOTH)
    model = attention("plain")
    params = jax.jit(model.init, out_shardings=shard.parameters(model, on))(jax.random.key(0))
    tokens = jax.device_put(jnp.zeros((2, T), int), shard.batch(on))
    x, _ = jax.jit(model.hidden)(params, tokens)
    assert x.sharding.shard_shape(x.shape) == (1, T // 4, 16)


def test_work_under_a_causal_mask():
    """Pairs of blocks that the busiest of eight devices computes, relative to the mean."""
    scores, n_tokens, block = blockwise.Scores(scale=1.0, causal=True), 2048, 16

    def busiest(order):
        keys = {"index": jnp.asarray(order).reshape(-1, 1, block)}
        _, count = blockwise._reach(scores, keys, keys)
        each = np.sum(count.reshape(8, -1), -1)
        return each.max() / each.mean()

    assert 1.8 < busiest(np.arange(n_tokens)) < 2
    order = sequence.balanced(n_tokens, 8)
    assert sorted(order) == list(range(n_tokens))
    assert busiest(order) < 1.05
    with pytest.raises(ValueError, match="8 devices take two pieces each"):
        sequence.balanced(2056, 8)
