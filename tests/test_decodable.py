"""What can be decoded: caches that are overrun, and sublayers that keep nothing, a state, or what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import perturbed
from tests.test_decode import MODEL, PARAMS, SIZES, D, V, again


def fed(model, params, tokens, capacity):
    """Tokens one by one into a cache: the logits of each, and the cache before the last of them."""

    @jax.jit
    def step(params, tokens, where, cache):
        x, cache = sj.decode.extend(model, params, tokens, where, cache)
        return model.logits(params, x), cache

    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    cache = sj.cache.empty(model.stack, params["stack"], sj.SideInputs(position={"index": index}), capacity)
    rows = []
    for t in range(tokens.shape[1]):
        before = cache
        where = sj.SideInputs(position={"index": index[:, t : t + 1]})
        logits, cache = step(params, tokens[:, t : t + 1], where, cache)
        rows.append(logits)
    return jnp.concatenate(rows, 1), before


def test_a_cache_that_is_overrun():
    """Without a window the oldest token would be lost: refused where it is seen, NaN where it is traced."""
    tokens = jax.random.randint(jax.random.key(2), (2, 7), 0, V)
    whole = jax.jit(MODEL.apply)(PARAMS, tokens)[0]
    traced, cache = fed(MODEL, PARAMS, tokens, 6)
    np.testing.assert_allclose(traced[:, :6], whole[:, :6], atol=1e-4)
    assert np.isnan(traced[:, 6:]).all()
    seventh = sj.SideInputs(position={"index": jnp.full((2, 1), 6)})
    with pytest.raises(ValueError, match=r"room for 6 tokens, .* row 0 would have the indices \[6\]"):
        sj.decode.extend(MODEL, PARAMS, tokens[:, 6:], seventh, cache)
    late = sj.SideInputs(position={"index": jnp.arange(100, 106)[None]})
    cache = sj.cache.empty(MODEL.stack, PARAMS["stack"], late, 6)
    assert np.isfinite(sj.decode.extend(MODEL, PARAMS, tokens[:1, :6], late, cache)[0]).all()


def test_a_window_overruns_nothing():
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=3), sj.FeedForward(d_hidden=24)))
    stack = sj.Stack.of(layer, depth=2, d_model=D, recipe=sj.recipe.PreNorm())
    model = dataclasses.replace(MODEL, stack=stack)
    params = perturbed(model.init(jax.random.key(0)), size=0.3)
    tokens = jax.random.randint(jax.random.key(2), (2, 9), 0, V)
    np.testing.assert_allclose(fed(model, params, tokens, 4)[0], jax.jit(model.apply)(params, tokens)[0], atol=1e-4)
    short = fed(model, params, tokens[:, :3], 2)[0]
    assert np.isfinite(short[:, :2]).all() and np.isnan(short[:, 2]).all()


def test_packed_prompts_do_not_share_entries():
    tokens = jnp.zeros((1, 4), jnp.int32)
    position = {"index": jnp.array([[0, 1, 0, 1]]), "segment": jnp.array([[0, 0, 1, 1]])}
    packed = sj.SideInputs(position=position)
    cache = sj.cache.empty(MODEL.stack, PARAMS["stack"], packed, 8)
    with pytest.raises(ValueError, match="decode packed documents one by one"):
        sj.decode.extend(MODEL, PARAMS, tokens, packed, cache)
    assert np.isnan(jax.jit(partial(sj.decode.extend, MODEL, PARAMS))(tokens, packed, cache)[0]).all()


def test_a_token_that_the_cache_holds_already():
    index = sj.SideInputs(position={"index": jnp.array([[0, 1]])})
    cache = sj.cache.empty(MODEL.stack, PARAMS["stack"], index, 4)
    _, cache = sj.decode.extend(MODEL, PARAMS, jnp.zeros((1, 2), int), index, cache)
    with pytest.raises(ValueError, match="for a token that was decoded before, a cache without it"):
        sj.decode.extend(MODEL, PARAMS, jnp.zeros((1, 2), int), index, cache)


class Shift(sj.Sublayer):
    """Each token gets the one before it."""

    def spec(self, d_model):
        return {}

    def apply(self, params, x, side_inputs):
        return jnp.roll(x, 1, -2).at[..., 0, :].set(0), sj.Aux()


class Cached(Shift):
    """The same as a recurrence: the state is the newest token."""

    def cache(self, batch, capacity, d_model, dtype):
        return {"last": jnp.zeros((batch, 1, d_model), dtype)}

    def apply(self, params, x, side_inputs):
        if side_inputs.cache is None:
            return super().apply(params, x, side_inputs)
        before = jnp.concatenate((side_inputs.cache["last"].astype(x.dtype), x), -2)[:, :-1]
        return before, sj.Aux(state={"cache": {"last": x}})


class ByItself(Shift):
    """Each token by itself."""

    mixes_tokens = False

    def apply(self, params, x, side_inputs):
        return jnp.tanh(x), sj.Aux()


def with_mixer(mixer, rule=sj.recipe.PreNorm()):
    layer = sj.Layer(sublayers=(mixer, sj.FeedForward(d_hidden=24)))
    stack = sj.Stack.of(layer, depth=2, d_model=D, recipe=rule)
    model = dataclasses.replace(MODEL, stack=stack)
    return model, perturbed(model.init(jax.random.key(0)), size=0.3)


@pytest.mark.parametrize("wrap", [lambda mixer: mixer, lambda mixer: sj.Parallel(sublayers=(mixer, sj.FeedForward()))])
def test_a_mixer_of_your_own_needs_a_cache(wrap):
    model, params = with_mixer(wrap(Shift(name="shift")))
    tokens = jnp.array([[1, 2, 3]])
    with pytest.raises(
        ValueError, match=r"Shift \('shift'\) does not say what it keeps .*override `cache`.*mixes_tokens"
    ):
        sj.decode.generate(model, params, tokens, n_tokens=2)
    with pytest.raises(ValueError, match="override `cache`"):
        sj.beam.search(model, params, tokens, n_tokens=2, n_beams=2)


@pytest.mark.parametrize("mixer", [Cached(name="shift"), ByItself(name="tanh")], ids=lambda one: one.name)
def test_what_keeps_a_state_or_needs_none_is_decoded(mixer):
    model, params = with_mixer(mixer)
    out = sj.decode.generate(model, params, jnp.array([[1, 2, 3]]), n_tokens=6)
    assert out.tokens[0].tolist() == again(model, params, [1, 2, 3], 6)[0]


def test_sublayers_say_whether_they_mix_tokens():
    attention = sj.Attention(n_heads=2)
    assert attention.mixes_tokens and sj.LatentAttention(n_heads=2, d_head=4, d_rotary=4, d_latent=4).mixes_tokens
    assert not dataclasses.replace(attention, cross=True).mixes_tokens and not sj.FeedForward().mixes_tokens
    assert not sj.MixtureOfExperts(n_experts=2, d_hidden=4).mixes_tokens
    assert sj.Parallel(sublayers=(attention, sj.FeedForward())).mixes_tokens
    assert not sj.Parallel(sublayers=(sj.FeedForward(),)).mixes_tokens
    (layer,) = with_mixer(attention, sj.recipe.SigmaReparam())[0].stack.segments[0].layers
    assert [sublayer.mixes_tokens for sublayer in layer.sublayers] == [True, False]


def test_norms_over_the_batch_are_not_decoded_with():
    forms = {training: sj.residual.Pre(norm=sj.BatchNorm(training=training)) for training in (True, False)}
    model, params = with_mixer(sj.Attention(n_heads=2), sj.recipe.PreNorm(residual=forms[True]))
    tokens = jnp.array([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"BatchNorm\(\) normalises over the tokens of a batch; .*training=False"):
        sj.decode.generate(model, params, tokens, n_tokens=2)
    model, params = with_mixer(sj.Attention(n_heads=2), sj.recipe.PreNorm(residual=forms[False]))
    out = sj.decode.generate(model, params, tokens, n_tokens=4)
    assert out.tokens[0].tolist() == again(model, params, [1, 2, 3], 4)[0]


@pytest.mark.parametrize("attention", [None, sj.LatentAttention(n_heads=2, d_head=4, d_rotary=4, d_latent=4)])
def test_an_encoder_is_not_decoded_with(attention):
    model = sj.encoder(**SIZES, depth=1, attention=attention)
    with pytest.raises(ValueError, match="decoding needs causal attention; 'attention' has causal=False"):
        sj.decode.generate(model, model.init(jax.random.key(0)), jnp.array([[1, 2]]), n_tokens=1)
