"""Vectors in place of tokens: a prompt that was learned, or what another model saw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position, recipe
from stackjax.interop import hf
from stackjax.testing import normal, perturbed
from tests.helpers import output

TOKENS = jax.random.randint(jax.random.key(5), (2, 6), 0, 11)
SMALL = {"vocab": 11, "d_model": 16, "depth": 2, "n_heads": 2}
MODELS = {
    "rotary": sj.decoder(**SMALL),
    "learned": sj.decoder(**SMALL, position=position.Learned(n_positions=12)),
    "louder embedding": sj.decoder(**SMALL, recipe=recipe.CompleteP()),
    "types": dataclasses.replace(
        sj.encoder(**SMALL), embedding=sj.Embedding(vocab=11, scale=3.0, n_types=2, norm=sj.LayerNorm())
    ),
}


def vectors(model, params, tokens=TOKENS, where=None):
    where = {"index": jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)} if where is None else where
    return model.embedding.vectors(params["embedding"], tokens, where, multiplier=model.stack.coefficients()["embed"])


@pytest.mark.parametrize("name", MODELS)
def test_vectors_of_tokens_are_as_good_as_tokens(name):
    model = MODELS[name]
    params = perturbed(model.init(jax.random.key(0)))
    run = jax.jit(lambda tokens: model.apply(params, tokens)[0])
    expected = run(TOKENS)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(run(vectors(model, params)), expected, atol=1e-6 * np.abs(expected).max())


def test_an_encoder_reads_vectors():
    model = sj.encoder_decoder(**{**SMALL, "depth": 1})
    params = perturbed(model.init(jax.random.key(0)))
    by_tokens = model.encode(params, TOKENS)[0]
    seen = model.decoder.embedding.vectors(params["decoder"]["embedding"], TOKENS, {"index": jnp.arange(6)})
    np.testing.assert_allclose(model.encode(params, seen)[0], by_tokens, atol=1e-6 * np.abs(by_tokens).max())
    both, _ = model.apply(params, seen, TOKENS)
    np.testing.assert_allclose(both, output(model, params, TOKENS, TOKENS), atol=1e-5)


@pytest.mark.thorough
def test_a_prompt_of_vectors_is_continued():
    model = MODELS["learned"]
    params = perturbed(model.init(jax.random.key(0)))
    tokens, side_inputs = sj.decode.pad([[3, 1, 4], [1, 5, 9, 2, 6]], left=True)
    prompt = vectors(model, params, tokens, side_inputs.position)
    for continued in (
        sj.decode.generate,
        lambda *given, n_tokens: sj.beam.search(*given, n_tokens=n_tokens, n_beams=2),
    ):
        by_tokens = continued(model, params, tokens, side_inputs, n_tokens=5)
        np.testing.assert_array_equal(
            continued(model, params, prompt, side_inputs, n_tokens=5).tokens, by_tokens.tokens
        )


@pytest.mark.thorough
def test_a_prompt_is_learned():
    """Gradients reach the vectors before the tokens, and the tokens' logits depend on them."""
    model = MODELS["rotary"]
    params = model.init(jax.random.key(0))

    def loss(prompt):
        both = jnp.concatenate((jnp.broadcast_to(prompt, (2, 3, 16)), vectors(model, params)), -2)
        return sj.loss.cross_entropy(model.apply(params, both)[0][:, 3:], TOKENS)

    slopes = jax.grad(loss)(normal(3, 16))
    assert (jnp.abs(slopes).max(-1) > 1e-4).all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (jnp.zeros((2, 6, 15)), r"or vectors \(\.\.\., T, 16\) in their place; got .*2, 6, 15"),
        (jnp.zeros(16), r"or vectors \(\.\.\., T, 16\) in their place; got .*16"),
        (jnp.zeros((2, 6), bool), r"tokens must be an array .* of integers"),
    ],
)
def test_other_shapes_are_refused(tokens, message):
    model = MODELS["rotary"]
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        model.apply(params, tokens)
    with pytest.raises(ValueError, match=message):
        sj.decode.generate(model, params, tokens, n_tokens=1)


def test_patches_of_an_image():
    """Each patch holds its channels and lines; a row of zeros is in front."""
    image = np.arange(2 * 4 * 6).reshape(2, 4, 6).astype(np.float32)
    rows = hf.patches(jnp.asarray(image), 2)
    assert rows.shape == (7, 8) and not rows[0].any()
    for n in range(6):
        line, column = 2 * (n // 3), 2 * (n % 3)
        np.testing.assert_array_equal(rows[1 + n], image[:, line : line + 2, column : column + 2].ravel())


def test_a_head_of_its_own_width():
    model = dataclasses.replace(MODELS["rotary"], head=sj.Head(n_outputs=3, bias=True))
    params = model.init(jax.random.key(0))
    assert model.apply(params, TOKENS)[0].shape == (2, 6, 3)
    with pytest.raises(ValueError, match=r"a tied head .* n_outputs=3"):
        sj.Head(tied=True, n_outputs=3)
