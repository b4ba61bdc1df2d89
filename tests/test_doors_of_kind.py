"""Numbers of the wrong kind: sizes, keys and dtypes are refused, positions of any integer dtype mean the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.check import checked_positions
from tests.doors import BOTH, BOTH_PARAMS, MODEL, PARAMS, SIZES, TOKENS, D, T, apply, at

KINDS = {
    "depth, a real": (lambda: sj.decoder(depth=2.0), "depth must be an integer; got float 2.0"),
    "depth, a string": (lambda: sj.decoder(depth="2"), "depth must be an integer; got the string '2'"),
    "depth, a truth value": (lambda: sj.decoder(depth=True), "depth must be an integer; got bool True"),
    "width": (lambda: sj.decoder(d_model=16.0), "d_model must be an integer; got float 16.0"),
    "heads": (lambda: sj.Attention(n_heads=2.0), "Attention: n_heads must be an integer; got float 2.0"),
    "window": (lambda: sj.Attention(n_heads=2, window=1.5), "window must be an integer or None; got float 1.5"),
    "rate": (lambda: sj.FeedForward(dropout="0.1"), "FeedForward: dropout must be a number; got the string '0.1'"),
    "array": (lambda: sj.Attention(n_heads=2, scale=jnp.ones(())), "scale must be a number or None; got an array"),
    "word for yes": (lambda: sj.FeedForward(gated="no"), "FeedForward: gated must be True or False; got the string"),
    "name": (lambda: sj.FeedForward(name=1), "FeedForward: name must be a string; got int 1"),
    "one bias": (lambda: sj.Attention(n_heads=2, bias="query"), "bias must be a tuple, each entry a string; got the"),
}


@pytest.mark.parametrize("name", KINDS)
def test_fields_of_another_kind(name):
    mistake, message = KINDS[name]
    with pytest.raises(ValueError, match=message):
        mistake()


def test_numbers_of_numpy_are_numbers():
    model = sj.decoder(**{**SIZES, "d_model": np.int64(D)}, depth=np.int32(2), dropout=np.float64(0.0))
    assert model == MODEL and hash(model) == hash(MODEL)


KEYS = {
    "a seed": (0, "got int 0"),
    "several": (jax.random.split(jax.random.key(0)), r"got an array of shape \(2,\)"),
    "other numbers": (jnp.arange(2), r"got an array of shape \(2,\) and dtype int32"),
}


@pytest.mark.parametrize("name", KEYS)
def test_what_is_not_one_key(name):
    key, got = KEYS[name]
    doors = [
        lambda: MODEL.init(key),
        lambda: BOTH.init(key),
        lambda: apply(key=key),
        lambda: BOTH.apply(BOTH_PARAMS, TOKENS, TOKENS, key=key),
        lambda: MODEL.stack.apply(PARAMS["stack"], jnp.ones((T, D)), key=key),
    ]
    for door in doors:
        with pytest.raises(ValueError, match=rf"key must be one PRNG key, as jax.random.key\(0\) makes it; {got}"):
            door()


def test_both_kinds_of_key():
    old, new = MODEL.init(jax.random.PRNGKey(0)), MODEL.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, old, new)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_a_stream_of_whole_numbers(dtype):
    doors = [
        lambda: MODEL.init(jax.random.key(0), dtype),
        lambda: apply(dtype=dtype),
        lambda: MODEL.stack.apply(PARAMS["stack"], jnp.ones((T, D), dtype)),
    ]
    for door in doors:
        with pytest.raises(ValueError, match="must be of a floating-point dtype, such as bfloat16; got"):
            door()


@pytest.mark.parametrize("options", [{"label_smoothing": 1.5}, {"label_smoothing": -0.1}, {"z_loss": -1.0}])
def test_shares_that_are_none(options):
    with pytest.raises(ValueError, match="label_smoothing must be a share, 0 to 1, and z_loss 0 or more; got"):
        sj.loss.next_token(jnp.zeros((2, T, 3)), jnp.zeros((2, T), int), **options)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32, jnp.int8, np.int64])
def test_positions_of_any_integer_dtype_mean_the_same(dtype):
    """Differences of unsigned indices wrap, and a window of 200 does not fit into 8 bits."""
    attention = sj.Attention(n_heads=2, causal=False, window=3)
    model = sj.encoder(**SIZES, depth=1, attention=attention, position=sj.position.ALiBi())
    params = sj.testing.perturbed(model.init(jax.random.key(0)))
    index, segment = np.array([0, 1, 2, 0, 1]), np.array([0, 0, 0, 200, 200])
    wanted = apply(model, params, side_inputs=at(index=index, segment=segment))
    narrow = {"index": index.astype(dtype), "segment": segment.astype(np.uint8)}
    got = apply(model, params, side_inputs=sj.SideInputs(position=narrow))
    np.testing.assert_array_equal(got, wanted)
    checked = checked_positions("position", narrow, (2, T))
    assert {x.dtype.itemsize for x in checked.values()} <= {4, 8}


def test_positions_that_are_no_integers():
    for entry, value in {"index": jnp.arange(T) / 2, "segment": jnp.zeros(T), "path": jnp.zeros((T, 2))}.items():
        with pytest.raises(ValueError, match=rf"position\['{entry}'\] must be integers; got an array"):
            checked_positions("position", {"index": jnp.arange(T), entry: value}, (2, T))


def test_positions_whose_axes_are_in_another_order():
    with pytest.raises(ValueError, match=r"must begin with the axes of the tokens, \(2, 3, 5\)"):
        checked_positions("position", {"index": jnp.tile(jnp.arange(T), (3, 2, 1))}, (2, 3, T))
    one = checked_positions("position", {"index": jnp.arange(T)[None], "path": jnp.zeros((1, T, 2), int)}, (T,))
    assert (one["index"].shape, one["path"].shape) == ((T,), (T, 2))


@pytest.mark.parametrize("unroll", [0, -1, True, 1.0])
def test_layers_per_step_of_a_scan(unroll):
    with pytest.raises(ValueError, match=r"unroll must be (an integer|1 or more layers per scan step); got"):
        apply(unroll=unroll)
