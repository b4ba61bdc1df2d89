"""What must hold for every input: causality, independence of examples, symmetry, padding, depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stackjax as sj
from stackjax import position, recipe, testing
from stackjax.testing import perturbed
from tests.helpers import daily

D, VOCAB = 16, 11
NORMS = {"layer": sj.LayerNorm(), "rms": sj.RMSNorm(), "tanh": sj.DynamicTanh(), "none": sj.NoNorm()}


def build(make=sj.decoder, **options):
    return make(
        **{"vocab": VOCAB, "d_model": D, "depth": 2, "n_heads": 2, "feed_forward": sj.FeedForward(d_hidden=8)} | options
    )


@pytest.mark.parametrize("name", daily(NORMS, "layer", "none"))
def test_every_norm_by_token_is_causal(name):
    testing.check_causality(build(recipe=recipe.PreNorm(residual=sj.residual.Pre(norm=NORMS[name]))))


def test_batch_norm_is_neither():
    with pytest.raises(AssertionError, match="causality: token 0 depends on"):
        testing.check_causality(build(recipe=recipe.PreNorm(residual=sj.residual.Pre(norm=sj.BatchNorm()))))


@functools.cache
def compiled(kind):
    """A model, its parameters and its compiled forward pass on (tokens, index)."""
    make, where = {
        "encoder without positions": (sj.encoder, position.NoPosition()),
        "decoder": (sj.decoder, position.Rotary()),
        "encoder": (sj.encoder, position.Rotary()),
        "learned": (sj.decoder, position.Learned(n_positions=64)),
    }[kind]
    model = build(make, position=where)
    params = perturbed(model.init(jax.random.key(0)))

    @jax.jit
    def run(tokens, index):
        return model.apply(params, tokens, sj.SideInputs(position={"index": index}))[0]

    return run


TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=8, max_size=8)


@given(TOKENS, st.permutations(range(8)))
def test_an_encoder_without_positions_commutes_with_permutations(tokens, order):
    run, tokens, order = compiled("encoder without positions"), jnp.array([tokens]), jnp.array(order)
    index = jnp.arange(8)[None]
    np.testing.assert_allclose(run(tokens[:, order], index), run(tokens, index)[:, order], rtol=1e-4, atol=1e-4)


@given(TOKENS, st.integers(1, 100))
def test_rotary_models_ignore_a_shift_of_all_positions(tokens, shift):
    for kind in ("decoder", "encoder"):
        run, tokens = compiled(kind), jnp.atleast_2d(jnp.array(tokens))
        index = jnp.arange(8)[None]
        np.testing.assert_allclose(run(tokens, index + shift), run(tokens, index), rtol=1e-3, atol=1e-3)


@settings(max_examples=12)
@given(TOKENS, st.lists(st.integers(0, VOCAB - 1), min_size=8, max_size=8), st.integers(1, 8))
@pytest.mark.parametrize("kind", ["decoder", "encoder", "learned"])
def test_padding_never_matters(kind, tokens, other, n):
    """What stands in empty slots changes nothing, and neither does the side on which they are."""
    run, capacity = compiled(kind), jnp.arange(8)
    right, left = jnp.where(capacity < n, capacity, -1), jnp.where(capacity >= 8 - n, capacity - (8 - n), -1)
    tokens, other = jnp.array(tokens), jnp.array(other)
    rows = [jnp.where(capacity < n, tokens, pad) for pad in (0, other)]
    moved = [jnp.roll(row, 8 - n) for row in rows]
    found = run(jnp.stack([*rows, *moved]), jnp.stack([right, right, left, left]))
    np.testing.assert_array_equal(found[0, :n], found[1, :n])
    np.testing.assert_array_equal(found[2, 8 - n :], found[3, 8 - n :])
    np.testing.assert_allclose(found[2, 8 - n :], found[0, :n], rtol=1e-3, atol=1e-4)
    assert np.isfinite(found).all()


def test_padding_is_as_good_as_a_shorter_sequence():
    for kind in ("decoder", "encoder", "learned"):
        run, tokens = compiled(kind), jnp.array([[3, 1, 4, 1, 5]])
        short = run(tokens, jnp.arange(5)[None])
        padded = run(jnp.pad(tokens, ((0, 0), (2, 1))), jnp.array([[-1, -1, 0, 1, 2, 3, 4, -1]]))
        np.testing.assert_allclose(padded[:, 2:7], short, rtol=1e-3, atol=1e-4)


def test_packed_documents_do_not_see_each_other():
    model = build()
    params = perturbed(model.init(jax.random.key(0)))
    run = jax.jit(lambda tokens, where: model.apply(params, tokens, sj.SideInputs(position=where))[0])
    first, second = jnp.array([3, 1, 4]), jnp.array([1, 5, 9, 2, 6])
    where = {"index": jnp.array([[0, 1, 2, 0, 1, 2, 3, 4]]), "segment": jnp.array([[0, 0, 0, 1, 1, 1, 1, 1]])}
    packed = run(jnp.concatenate((first, second))[None], where)
    for document, found in ((first, packed[:, :3]), (second, packed[:, 3:])):
        alone = run(
            document[None], {"index": jnp.arange(len(document))[None], "segment": jnp.zeros((1, len(document)), int)}
        )
        np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("rule", [recipe.PreNorm(), recipe.DeepNorm()], ids=lambda rule: type(rule).__name__)
def test_a_thousand_layers_have_finite_gradients(rule):
    model = build(recipe=rule, depth=1000, feed_forward=sj.FeedForward(d_hidden=8))
    tokens = jax.random.randint(jax.random.key(1), (1, 8), 0, VOCAB)

    @jax.jit
    def look(key, taps):
        params = model.init(key)

        def loss(params, taps):
            logits, _ = model.apply(params, tokens, taps=taps, remat="nested")
            return sj.loss.next_token(logits, tokens)

        value, (gradient, squares) = jax.value_and_grad(loss, (0, 1))(params, taps)
        return value, sj.probe.layer_norms(gradient["stack"], model.stack.declaration(), 1000), squares

    value, norms, squares = look(jax.random.key(0), jnp.zeros(1001))
    assert np.isfinite(value) and np.isfinite(norms).all() and np.isfinite(squares).all()
    assert norms.min() > 0 and squares.min() > 0
