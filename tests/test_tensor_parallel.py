"""The stream split over devices that share heads: the numbers of one device, each device's share, and where it lies."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import shard, tensor_parallel

from .test_sequence import KINDS, SIZES, attention, compare
from .test_shard import cost_of_a_step

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

MESH, THREE = {"data": 2, "model": 4}, {"data": 2, "sequence": 2, "model": 2}
DROPPING = sj.decoder(**SIZES, n_heads=4, dropout=0.2)


def dropping(model, params, tokens, position):
    logits, _ = model.apply(params, tokens, key=jax.random.key(2), dtype=jnp.float64)
    return sj.loss.next_token(logits, tokens)


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        pytest.param(MESH, 8, id="rows", marks=pytest.mark.thorough),
        pytest.param(THREE, 2, id="tokens"),
        pytest.param(MESH, 2, id="tokens alone", marks=pytest.mark.thorough),
        pytest.param(THREE, 8, id="rows beside tokens", marks=pytest.mark.thorough),
    ],
)
def test_the_numbers_are_those_of_one_device(x64, sizes, batch):
    """Loss and gradients, with dropout, whose masks each device draws for its own tokens."""
    compare(DROPPING, sizes, loss=dropping, batch=batch)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_so_are_those_of_all_kinds(x64, kind):
    compare(KINDS[kind](), MESH)


@pytest.mark.thorough
def test_so_are_those_of_sublayers_side_by_side(x64):
    both = sj.Parallel(sublayers=(sj.Attention(n_heads=4), sj.FeedForward(dropout=0.1)), dropout=0.1)
    stack = sj.Stack.of(sj.Layer(sublayers=(both,)), depth=2, d_model=16, recipe=sj.recipe.PreNorm())
    compare(sj.Model(embedding=sj.Embedding(vocab=16), stack=stack), MESH, loss=dropping)


@pytest.mark.thorough
@pytest.mark.parametrize("remat", ["layer", "nested", jax.checkpoint_policies.save_only_these_names("attention_heads")])
def test_so_are_those_of_layers_computed_again(x64, remat):
    def loss(model, params, tokens, position):
        return sj.loss.next_token(model.apply(params, tokens, remat=remat, dtype=jnp.float64)[0], tokens)

    compare(attention("plain"), MESH, loss=loss)


@pytest.mark.thorough
def test_so_are_those_of_what_does_not_divide(x64):
    compare(attention("plain"), MESH, n_tokens=25)


def lies(shape, sizes, function=tensor_parallel.between):
    """The axes over which a stream of some shape is split on a mesh."""
    axes = []
    with jax.set_mesh(shard.mesh(**sizes)):
        jax.eval_shape(lambda x: axes.append(function(x)), jax.ShapeDtypeStruct(shape, jnp.float32))
    return axes[0]


def test_the_axes_of_a_stream():
    """Rows of the batch where they divide, else tokens, else neither; a single token is left as it was."""
    assert lies((8, 24, 16), MESH) == (("data", "model"), ())
    assert lies((2, 24, 16), MESH) == (("data",), ("model",))
    assert lies((2, 24, 16), THREE) == (("data",), ("sequence", "model"))
    assert lies((3, 24, 16), MESH) == ((), ("model",))
    assert lies((2, 26, 16), THREE) == (("data",), ("sequence",))
    for shape in ((2, 25, 16), (8, 1, 16), (24, 16)):
        assert lies(shape, MESH) == lies(shape, MESH, tensor_parallel.inside)


def test_decoding_and_what_does_not_divide_are_as_before():
    """The very program of one device."""
    model = attention("plain")
    params = jax.eval_shape(model.init, jax.random.key(0))

    def program(shape, on=None):
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
        with contextlib.nullcontext() if on is None else jax.set_mesh(on):
            return re.sub(r"\n *ctx_mesh=.*", "", str(jax.make_jaxpr(model.apply)(params, tokens)))

    for shape in ((8, 1), (3, 25)):
        assert program(shape, shard.mesh(model=8)) == program(shape)
    assert program((8, 8), shard.mesh(model=8)) != program((8, 8))


@pytest.mark.parametrize(
    ("shape", "whole", "share"),
    [
        ((16, 48), "f32[8,16,48,64]", "f32[8,2,48,64]"),
        pytest.param((4, 192), "f32[8,4,192,64]", "f32[8,4,24,64]", marks=pytest.mark.thorough),
    ],
    ids=["rows", "tokens"],
)
def test_each_device_computes_and_keeps_its_share(shape, whole, share):
    """Of a step of training: what is kept of all layers is each device's own, and no weight is gathered."""
    model = sj.decoder(vocab=64, d_model=64, depth=8, n_heads=8)
    flops, temporary, _ = cost_of_a_step(model, shape=shape)
    each, its_temporary, program = cost_of_a_step(model, shard.mesh(model=8), shape=shape)
    assert each < 1.15 * flops / 8
    assert its_temporary < 1.15 * temporary / 8
    assert share in program, "streams of all layers, each device's rows or tokens"
    assert whole not in program
    gathered = {line.split("[")[1].split("]")[0] for line in program.splitlines() if " all-gather(" in line}
    assert gathered == {f"{shape[0]},{shape[1]},64"}


@pytest.mark.thorough
def test_masks_of_dropout_are_those_of_each_device():
    params, tokens = jax.eval_shape(DROPPING.init, jax.random.key(0)), jax.ShapeDtypeStruct((8, 24), jnp.int32)

    def loss(params, tokens):
        return sj.loss.next_token(DROPPING.apply(params, tokens, key=jax.random.key(2))[0], tokens)

    with jax.set_mesh(shard.mesh(model=8)):
        program = jax.jit(jax.grad(loss)).lower(params, tokens).compile().as_text()
    assert "pred[2,1,24,16]" in program and "pred[2,8,24,16]" not in program


@pytest.mark.thorough
def test_decoding_behind_a_prompt_that_is_split():
    model, on = attention("plain", n_kv_heads=4), shard.mesh(**MESH)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, 16)
    expected = sj.decode.generate(model, params, tokens, n_tokens=4).tokens
    placed = jax.device_put(params, shard.parameters(model, on)), jax.device_put(tokens, shard.batch(on))
    assert np.array_equal(sj.decode.generate(model, *placed, n_tokens=4).tokens, expected)


def test_vectors_looked_up_go_to_replicas_first(capfd):
    """XLA exchanges parts of width for rows of the batch; from a table to both axes at once it replicated the batch."""
    model, on = sj.decoder(vocab=16, d_model=64, depth=1), shard.mesh(replica=2, data=2, model=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    places = shard.parameters(model, on), shard.batch(on)
    embed = jax.jit(lambda params, tokens: sj.pin.pin(model.embed(params, tokens)), in_shardings=places)
    with jax.set_mesh(on):
        program = embed.lower(shapes, jax.ShapeDtypeStruct((8, 24), jnp.int32)).compile().as_text()
    assert " all-to-all(" in program and "f32[8,24,64]" not in program
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
