"""Prompts that are read a few rows of the batch after another: the numbers of all at once, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.backend import rows_together
from stackjax.testing import largest_difference, normal, perturbed

V, D, B, T = 11, 16, 6, 4
INDEX = jnp.where(jnp.arange(T) < jnp.array([[4], [2], [1], [3], [4], [2]]), jnp.arange(T), -1)


def model_of(*mixers, d_model=D, **options):
    layers = [sj.Layer(sublayers=(mixer, sj.FeedForward(d_hidden=24))) for mixer in mixers]
    stack = sj.Stack.of(*layers, depth=2 * len(layers), d_model=d_model, recipe=sj.recipe.PreNorm(), **options)
    return sj.Model(embedding=sj.Embedding(vocab=V), stack=stack)


MIXERS = (
    sj.Attention(n_heads=2, window=3, position=sj.position.Rotary()),
    sj.LatentAttention(n_heads=2, d_head=4, d_rotary=4, d_latent=8),
    sj.GatedDeltaNet(n_heads=2, d_head=4),
)


@pytest.mark.parametrize("deepest", [pytest.param(0, marks=pytest.mark.thorough), 48])
def test_rows_after_rows_are_all_at_once(deepest, x64, monkeypatch):
    """Logits, indices and the whole cache, in one piece or with the layers taken apart; left and right padding."""
    monkeypatch.setattr(sj.unrolled, "DEEPEST", deepest)
    model = model_of(*MIXERS)
    params = perturbed(model.init(jax.random.key(0), jnp.float64), size=0.3)
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, V)
    where = sj.SideInputs(position={"index": jnp.concatenate((INDEX[:3], INDEX[3:, ::-1]))})

    def read(together):
        monkeypatch.setattr(sj.backend, "TOGETHER", together)
        begin = partial(sj.prompt.begin, model, n_tokens=5, dtype=jnp.float64)
        return jax.jit(lambda params: begin(params, tokens, where)[1:])(params)

    (_, whole), (_, parts) = read(B * T), read(2 * T)
    assert np.array_equal(parts.index, whole.index) and len(set(whole.index.tolist())) > 2
    assert jax.tree.structure(parts) == jax.tree.structure(whole)
    assert largest_difference(parts, whole) < 1e-12
    assert all(np.any(leaf) for leaf in jax.tree.leaves(whole.cache.segments))


def test_what_a_prompt_takes_is_that_of_a_few_rows(monkeypatch):
    """What a layer makes of the tokens, here in its hidden layer, is there for two rows at a time."""
    rows, length, hidden = 16, 64, 512
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=hidden)))
    stack = sj.Stack.of(layer, depth=2, d_model=D, recipe=sj.recipe.PreNorm())
    model = sj.Model(embedding=sj.Embedding(vocab=V), stack=stack)
    params, tokens = jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def temporary(together):
        monkeypatch.setattr(sj.backend, "TOGETHER", together)
        begin = partial(sj.prompt.begin, model, side_inputs=None, n_tokens=1)
        program = jax.jit(lambda params, tokens: begin(params, tokens)[2]).lower(params, tokens).compile()
        analysis = program.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    whole, few = temporary(rows * length), temporary(2 * length)
    assert whole - few > 0.8 * (rows - 2) * length * hidden * 4


def test_generation_and_search_read_rows_after_rows(monkeypatch):
    monkeypatch.setattr(sj.backend, "TOGETHER", 3 * T)
    model = model_of(sj.Attention(n_heads=2))
    params = jax.eval_shape(model.init, jax.random.key(0))
    hidden, shapes = sj.Model.hidden, []

    def seen(self, params, tokens, *others, **options):
        shapes.append(tokens.shape)
        return hidden(self, params, tokens, *others, **options)

    monkeypatch.setattr(sj.Model, "hidden", seen)
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    jax.eval_shape(partial(sj.decode.generate, model, n_tokens=3), params, tokens)
    jax.eval_shape(partial(sj.beam.search, model, n_tokens=3, n_beams=2), params, tokens)
    assert set(shapes) == {(3, T), (B, 1), (2 * B, 1)}


def test_rows_that_are_seen_together_are_read_together(monkeypatch):
    """By an edit whose array is as long as the batch, or with a memory."""
    monkeypatch.setattr(sj.backend, "TOGETHER", T)
    tokens, rows = jnp.zeros((B, T), jnp.int32), normal(B, 3, D)

    def generated(model, side_inputs=None, edit=None):
        def run(params):
            return sj.decode.generate(model, params, tokens, side_inputs, n_tokens=2, edit=edit)

        return jax.eval_shape(run, jax.eval_shape(model.init, jax.random.key(0))).tokens.shape

    def shifted(shift, layer, y):
        return y + shift

    one = model_of(sj.Attention(n_heads=2))
    assert generated(one, edit={"attention/output": jax.tree_util.Partial(shifted, rows[:, :1])}) == (B, 2)
    two = sj.encoder_decoder(vocab=V, d_model=D, depth=1, n_heads=2).decoder
    assert generated(two, sj.SideInputs(memory=rows)) == (B, 2)


def test_how_many_rows(monkeypatch):
    monkeypatch.setattr(sj.backend, "TOGETHER", 1024)
    sizes = [(32, 512), (32, 16), (6, 400), (7, 200), (5, 4096), (1, 1)]
    assert [rows_together(*size) for size in sizes] == [2, 32, 2, 1, 1, 1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert rows_together(32, 512) == 32
