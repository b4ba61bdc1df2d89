"""The model: embed, stack, unembed, and the two builders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position, recipe
from stackjax.testing import normal

SMALL = {"vocab": 11, "d_model": 16, "depth": 2, "n_heads": 2}
TOKENS = jax.random.randint(jax.random.key(5), (2, 6), 0, 11)


def run(model, params=None, tokens=TOKENS, **options):
    params = model.init(jax.random.key(0)) if params is None else params
    return jax.jit(lambda params, tokens: model.apply(params, tokens, **options)[0])(params, tokens)


@pytest.mark.thorough
def test_a_model_is_its_parts(x64):
    """Embedding, stack and head by hand."""
    norm = sj.LayerNorm()
    model = dataclasses.replace(
        sj.decoder(**SMALL),
        embedding=sj.Embedding(vocab=11, scale=3.0, n_types=2, norm=norm, position=position.Sinusoidal()),
        head=sj.Head(bias=True, soft_cap=2.0),
    )
    params = jax.tree.map(lambda a: a + 0.1, model.init(jax.random.key(0), jnp.float64))
    types = jnp.array([0, 0, 1, 1, 0, 1])
    found = model.apply(params, TOKENS, types=types, dtype=jnp.float64)[0]
    own, head = params["embedding"], params["head"]
    where = {"index": jnp.arange(6)}
    x = position.Sinusoidal().embed({}, where, 3 * own["token"][TOKENS] + own["type"][types])
    y = model.stack.apply(params["stack"], norm.apply(own["norm"], x))[0]
    np.testing.assert_allclose(found, 2 * np.tanh((y @ head["unembed"] + head["bias"]) / 2), rtol=1e-10)


def test_tied_heads_use_the_embedding():
    model = sj.decoder(**SMALL, tied=True)
    params = model.init(jax.random.key(0))
    assert params["head"] == {"norm": {}} and model.n_params == sj.decoder(**SMALL).n_params - 11 * 16
    x = normal(3, 16)
    np.testing.assert_array_equal(
        model.head.apply(params["head"], params["embedding"]["token"], x), x @ params["embedding"]["token"].T
    )


def test_tying_is_refused_where_the_recipe_treats_the_ends_differently():
    class Louder(recipe.PreNorm):
        def gain(self, role, geometry):
            return 2.0 if role == "embed" else 1.0

    with pytest.raises(ValueError, match="cannot be tied"):
        sj.decoder(**SMALL, tied=True, recipe=Louder())
    sj.decoder(**SMALL, tied=True, recipe=recipe.DeepNorm())


def test_a_decoder_is_causal_and_an_encoder_is_not():
    changed = TOKENS.at[:, -1].set((TOKENS[:, -1] + 1) % 11)
    for make, causal in ((sj.decoder, True), (sj.encoder, False)):
        before, after = (run(make(**SMALL), tokens=tokens) for tokens in (TOKENS, changed))
        assert np.array_equal(before[:, :-1], after[:, :-1]) == causal


def test_the_stream_enters_with_unit_rms():
    model = sj.decoder(vocab=500, d_model=32, depth=0, n_heads=2)
    x = model.embedding.apply(model.init(jax.random.key(0))["embedding"], jnp.arange(500)[None])
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(x**2)), 1, rtol=0.02)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_logits_are_wide_and_the_stream_is_not(dtype):
    model = sj.decoder(**SMALL)
    params = model.init(jax.random.key(0))
    logits, result = model.apply(params, TOKENS, dtype=dtype, measure=lambda trace: {"x": trace.after})
    assert logits.dtype == jnp.float32 and result.measure["x"].dtype == dtype


def test_any_leading_axes():
    for where in (position.Rotary(), position.Learned()):
        model = sj.decoder(**SMALL, position=where)
        params = model.init(jax.random.key(0))
        one, many = run(model, params, TOKENS[0]), run(model, params, TOKENS.reshape(1, 2, 6))
        assert one.shape == (6, 11) and many.shape == (1, 2, 6, 11)
        np.testing.assert_allclose(many[0, 0], one, rtol=1e-4, atol=1e-5)


FLIPS = {
    "vocab": 12,
    "d_model": 8,
    "depth": 3,
    "n_heads": 4,
    "recipe": recipe.PostNorm(),
    "position": position.NoPosition(),
    "attention": sj.Attention(n_heads=2, window=2),
    "feed_forward": sj.FeedForward(gated=True),
    "tied": True,
    "dropout": 0.3,
    "side": "encoder",
}


def test_every_option_of_the_builder_changes_the_output():
    assert set(FLIPS) == set(sj.decoder.__kwdefaults__)
    shallow = {**SMALL, "depth": 1}
    before = run(sj.decoder(**shallow), key=jax.random.key(1))
    for name, value in FLIPS.items():
        after = run(sj.decoder(**{**shallow, name: value}), key=jax.random.key(1))
        assert after.shape != before.shape or not np.allclose(after, before, atol=1e-4), name


def test_options_of_the_sublayers_are_kept():
    attention = sj.Attention(n_heads=4, n_kv_heads=2, window=3, position=position.Rotary(base=100.0), dropout=0.2)
    model = sj.decoder(d_model=16, depth=1, attention=attention, feed_forward=sj.FeedForward(dropout=0.1))
    assert model.stack.segments[0].layers[0].sublayers == (attention, sj.FeedForward(dropout=0.1))
    model = sj.decoder(d_model=16, depth=1, attention=attention, position=position.Learned(), dropout=0.5)
    own, forward = model.stack.segments[0].layers[0].sublayers
    assert own == dataclasses.replace(attention, dropout=0.5) and forward.dropout == 0.5
    assert model.embedding.position == position.Learned() and model.embedding.dropout == 0.5


def test_positions_go_where_they_act():
    both = position.Both(first=position.Rotary(), second=position.Learned())
    for where, inside, on_stream in (
        (None, position.Rotary(), position.NoPosition()),
        (position.NoPosition(), position.NoPosition(), position.NoPosition()),
        (position.Learned(), position.NoPosition(), position.Learned()),
        (both, both, both),
    ):
        model = sj.decoder(**SMALL, position=where)
        assert model.stack.segments[0].layers[0].sublayers[0].position == inside
        assert model.embedding.position == on_stream


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "n_heads must divide d_model; got d_model=16, n_heads=3; try n_heads=2 or 4"),
        ({"depth": -2}, "depth must be 0 or more; got -2"),
        ({"vocab": 0}, "vocab must be positive"),
        ({"dropout": 1.5}, "dropout"),
        ({"attention": sj.Attention(n_heads=4)}, "n_heads=2, but attention has n_heads=4"),
        ({"attention": sj.Attention(n_heads=2, causal=False)}, "attends to itself, a decoder causally"),
        ({"attention": sj.Attention(n_heads=2, cross=True, causal=False)}, "attends to itself"),
        (
            {"attention": sj.Attention(n_heads=2, position=position.Rotary()), "position": position.NoPosition()},
            "give it once",
        ),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        sj.decoder(**{**SMALL, **options})


def test_a_position_that_does_not_act_on_the_stream():
    with pytest.raises(ValueError, match="give it to the attention"):
        sj.Embedding(vocab=3, position=position.Rotary())


def test_tokens_must_be_integers():
    model = sj.decoder(**SMALL)
    with pytest.raises(
        ValueError, match=r"tokens must be an array .* of integers, or vectors .*; got an array .* float32"
    ):
        model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 6)))
