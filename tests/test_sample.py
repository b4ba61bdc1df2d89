"""Sampling: the support and the frequencies of what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np

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
