"""Sampling: the support and the frequencies of what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stackjax import sample

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)) + 3.0


def kept(logits):
    return np.flatnonzero(np.isfinite(logits)).tolist()


def test_top_k():
    assert [kept(sample.top_k(LOGITS, k)) for k in (1, 3, 5, 99)] == [[1], [1, 3, 4], list(range(5)), list(range(5))]
    np.testing.assert_array_equal(sample.top_k(LOGITS, 3)[1], LOGITS[1])


def test_top_p():
    """The smallest set that reaches p; the set that exactly reaches it is enough."""
    assert [kept(sample.top_p(LOGITS, p)) for p in (1e-6, 0.39, 0.41, 0.64, 0.66, 1.0)] == [
        [1],
        [1],
        [1, 3],
        [1, 3],
        [1, 3, 4],
        list(range(5)),
    ]
    assert len(kept(sample.top_p(jnp.zeros(10), 0.35))) == 4


def test_numbers_may_be_traced_and_differ_by_row():
    rows = jnp.stack((LOGITS, LOGITS))
    both = jax.jit(sample.top_k)(rows, jnp.array([[1], [3]]))
    assert [kept(row) for row in both] == [[1], [1, 3, 4]]
    both = jax.jit(sample.top_p)(rows, jnp.array([[0.41], [1.0]]))
    assert [kept(row) for row in both] == [[1, 3], list(range(5))]


def frequencies(**adjust):
    n = 20_000
    drawn = sample.draw(jax.random.key(0), jnp.broadcast_to(LOGITS, (n, 5)), **adjust)
    return np.bincount(drawn, minlength=5) / n


def test_drawn_as_often_as_they_should_be():
    """Within five standard deviations of a multinomial."""
    for adjust, wanted in (
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"top_k": 2}, PROBABILITIES * [0, 1, 0, 1, 0]),
        ({"temperature": 2.0, "top_k": 4, "top_p": 0.7}, PROBABILITIES**0.5 * [0, 1, 0, 1, 1]),
    ):
        wanted = wanted / wanted.sum()
        error = np.sqrt(wanted * (1 - wanted) / 20_000)
        assert (np.abs(frequencies(**adjust) - wanted) <= 5 * error).all(), adjust


def test_without_a_key_the_best():
    assert sample.draw(None, LOGITS) == 1
    assert np.isfinite(sample.draw(jax.random.key(0), jnp.where(jnp.arange(5) == 2, 0, -jnp.inf))) and (
        sample.draw(jax.random.key(0), jnp.where(jnp.arange(5) == 2, 0, -jnp.inf)) == 2
    )


@pytest.mark.parametrize("logits", [LOGITS, -LOGITS, LOGITS.at[1].set(0.0) - 5.0, jnp.zeros(5)], ids=range(4))
def test_temperature_zero_is_greedy(logits):
    keys = jax.random.split(jax.random.key(0), 100)

    def draw(t):
        return jax.vmap(lambda key: sample.draw(key, logits, temperature=t))(keys)

    for drawn in (draw(0.0), draw(0), jax.jit(draw)(0.0)):
        assert (drawn == jnp.argmax(logits)).all()
    tiny = jax.vmap(lambda key: sample.draw(key, logits + 100.0 * jnp.arange(5), temperature=1e-38))(keys)
    assert (tiny == 4).all()


def test_temperature_zero_in_some_rows():
    rows = jnp.broadcast_to(LOGITS, (2, 20_000, 5))
    t = jnp.array([0.0, 0.5])[:, None, None]
    for draw in (sample.draw, jax.jit(sample.draw)):
        greedy, drawn = draw(jax.random.key(0), rows, temperature=t)
        assert (greedy == 1).all()
        wanted = PROBABILITIES**2 / (PROBABILITIES**2).sum()
        error = np.sqrt(wanted * (1 - wanted) / 20_000)
        assert (np.abs(np.bincount(drawn, minlength=5) / 20_000 - wanted) <= 5 * error).all()


OUT_OF_RANGE = [
    ("temperature", -1.0, "temperature must be 0, which is greedy, or more; got -1.0"),
    ("temperature", float("nan"), "temperature must be"),
    ("top_k", 0, "top_k must be a whole number, 1 or more; got 0"),
    ("top_k", -1, "top_k must be"),
    ("top_k", 2.5, "top_k must be"),
    ("top_p", 0.0, "top_p must be above 0 and at most 1; got 0.0"),
    ("top_p", 1.5, "top_p must be"),
    ("top_p", float("nan"), "top_p must be"),
]


@pytest.mark.parametrize(("name", "number", "message"), OUT_OF_RANGE)
def test_numbers_out_of_their_range(name, number, message):
    key, change = jax.random.key(0), getattr(sample, name)
    with pytest.raises(ValueError, match=message):
        sample.draw(key, LOGITS, **{name: number})
    with pytest.raises(ValueError, match=message):
        change(LOGITS, number)
    assert np.isnan(jax.jit(change)(LOGITS, number)).all()
    assert jax.jit(lambda n: sample.draw(key, LOGITS, **{name: n}))(number) == -1
    good = {"temperature": 1.0, "top_k": 5, "top_p": 1.0}[name]
    mixed = jax.jit(change)(jnp.stack((LOGITS, LOGITS)), jnp.array([[good], [number]]))
    assert np.isfinite(mixed[0]).all() and np.isnan(mixed[1]).all()


def test_numbers_without_a_key():
    for name, number in {"temperature": 1.0, "top_k": 3, "top_p": 0.5}.items():
        with pytest.raises(ValueError, match=f"drawing by {name} needs a key"):
            sample.draw(None, LOGITS, **{name: number})
    with pytest.raises(ValueError, match=r"drawing is adjusted by temperature, top_k, top_p; got temprature=1.0"):
        sample.draw(jax.random.key(0), LOGITS, temprature=1.0)


def test_no_token_where_there_is_none_to_choose():
    key = jax.random.key(0)
    rows = jnp.stack((LOGITS, LOGITS.at[2].set(jnp.nan), jnp.full(5, -jnp.inf)))
    for drawn in (sample.draw(None, rows), sample.draw(key, rows), sample.draw(key, rows, top_k=2, top_p=0.9)):
        assert drawn[0] >= 0 and drawn[1:].tolist() == [-1, -1]
