"""Beam search against trying everything, and against the same search written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import perturbed

V, N, STOP = 4, 4, 0
MODEL = sj.decoder(vocab=V, d_model=8, depth=2, n_heads=2, feed_forward=sj.FeedForward(d_hidden=12))
PARAMS = perturbed(MODEL.init(jax.random.key(0)), size=0.4)
PROMPTS = [[1, 2, 3], [2]]
FORWARD = jax.jit(lambda params, tokens: jax.nn.log_softmax(MODEL.apply(params, tokens)[0]))


def everything(prompt):
    """Log-probability of every continuation of N tokens, {tokens: score}, cut at the first stop."""
    texts = list(itertools.product(range(V), repeat=N))
    tokens = jnp.array([[*prompt, *text] for text in texts])
    log_prob = np.asarray(FORWARD(PARAMS, tokens))
    scores = {}
    for row, text in enumerate(texts):
        length = text.index(STOP) + 1 if STOP in text else N
        at = len(prompt) - 1 + np.arange(length)
        scores[(*text[:length], *[STOP] * (N - length))] = (log_prob[row, at, text[:length]].sum(), length)
    return scores


def test_wide_enough_a_beam_finds_the_best():
    tokens, where = sj.decode.pad(PROMPTS, left=True)
    n_beams = V ** (N - 1)
    beams = sj.beam.search(MODEL, PARAMS, tokens, where, n_tokens=N, n_beams=n_beams, stop=STOP)
    for row, prompt in enumerate(PROMPTS):
        best = sorted(everything(prompt).items(), key=lambda item: -item[1][0])
        assert beams.tokens[row, :5].tolist() == [list(text) for text, _ in best[:5]]
        np.testing.assert_allclose(beams.score[row, :5], [score for _, (score, _) in best[:5]], rtol=1e-4)
        assert beams.length[row, :5].tolist() == [length for _, (_, length) in best[:5]]


def test_narrow_beams_are_the_search_written_out():
    n_beams = 3
    tokens, where = sj.decode.pad(PROMPTS)
    found = sj.beam.search(MODEL, PARAMS, tokens, where, n_tokens=N, n_beams=n_beams, stop=STOP)
    for row, prompt in enumerate(PROMPTS):
        beams = [((), 0.0)]
        for _ in range(N):
            longer = []
            for text, score in beams:
                if STOP in text:
                    longer.append(((*text, STOP), score))
                    continue
                padded = jnp.array([[*prompt, *text, *[0] * (N - len(text))]])
                log_prob = np.asarray(FORWARD(PARAMS, padded))[0, len(prompt) + len(text) - 1]
                longer += [((*text, v), score + log_prob[v]) for v in range(V)]
            beams = sorted(longer, key=lambda item: -item[1])[:n_beams]
        assert found.tokens[row].tolist() == [list(text) for text, _ in beams]
        np.testing.assert_allclose(found.score[row], [score for _, score in beams], rtol=1e-4)


def test_one_beam_is_greedy():
    tokens, where = sj.decode.pad(PROMPTS)
    greedy = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=N)
    beam = sj.beam.search(MODEL, PARAMS, tokens, where, n_tokens=N, n_beams=1)
    np.testing.assert_array_equal(beam.tokens[:, 0], greedy.tokens)
    np.testing.assert_allclose(beam.score[:, 0], greedy.log_prob.sum(-1), rtol=1e-5)


def test_length_penalty_ranks():
    tokens, where = sj.decode.pad(PROMPTS)
    n_beams, power = V ** (N - 1), 2.0
    beams = sj.beam.search(MODEL, PARAMS, tokens, where, n_tokens=N, n_beams=n_beams, stop=STOP, length_penalty=power)
    for row, prompt in enumerate(PROMPTS):
        scores = [score / ((5 + length) / 6) ** power for score, length in everything(prompt).values()]
        np.testing.assert_allclose(beams.score[row, 0], max(scores), rtol=1e-4)
        assert (np.diff(beams.score[row]) <= 0).all()


def test_with_a_memory():
    """Each source of the batch keeps its own beams: beside another one or beside itself it finds the same."""
    model = sj.encoder_decoder(vocab=V, d_model=8, depth=1, n_heads=2, feed_forward=sj.FeedForward(d_hidden=12))
    params = perturbed(model.init(jax.random.key(0)), size=0.4)
    memory, _ = jax.jit(model.encode)(params, jnp.array([[1, 2], [3, 1]]))

    def search(memory):
        first = jnp.ones((2, 1), jnp.int32)
        return sj.beam.search(
            model.decoder, params["decoder"], first, n_tokens=N, n_beams=2, side_inputs=sj.SideInputs(memory=memory)
        )

    both, alone = search(memory), search(memory[jnp.array([1, 1])])
    np.testing.assert_array_equal(both.tokens[1], alone.tokens[0])
    np.testing.assert_allclose(both.score[1], alone.score[0], rtol=1e-5)
    assert (both.score[0] != both.score[1]).all()


def test_one_compile(traced):
    counts = []
    for prompts in (PROMPTS, [[1], [2, 3]]):
        tokens, where = sj.decode.pad(prompts, 3)
        for power in (0.0, 1.0):
            sj.beam.search(MODEL, PARAMS, tokens, where, n_tokens=2, n_beams=2, stop=1, length_penalty=power)
            counts.append(len(traced))
    assert counts == counts[:1] * 4


def test_several_stop_tokens():
    """A beam ends at any of them: the same as trying everything with all of them as ends."""
    stops = (0, 2)
    tokens, where = sj.decode.pad(PROMPTS)
    beams = sj.beam.search(MODEL, PARAMS, tokens, where, n_tokens=N, n_beams=V ** (N - 1), stop=stops)
    for row, prompt in enumerate(PROMPTS):
        scores = {}
        texts = list(itertools.product(range(V), repeat=N))
        log_prob = np.asarray(FORWARD(PARAMS, jnp.array([[*prompt, *text] for text in texts])))
        for i, text in enumerate(texts):
            length = next((j + 1 for j, token in enumerate(text) if token in stops), N)
            at = len(prompt) - 1 + np.arange(length)
            line = (*text[:length], *[text[length - 1]] * (N - length))
            scores[line] = (log_prob[i, at, text[:length]].sum(), length)
        best = sorted(scores.items(), key=lambda item: -item[1][0])[:5]
        assert beams.tokens[row, :5].tolist() == [list(text) for text, _ in best]
        np.testing.assert_allclose(beams.score[row, :5], [score for _, (score, _) in best], rtol=1e-4)
        assert beams.length[row, :5].tolist() == [length for _, (_, length) in best]


def test_beams_that_there_are_not():
    for n_beams in (0, V + 1):
        with pytest.raises(ValueError, match=rf"n_beams must be 1 .. V\^n, all continuations there are; got {n_beams}"):
            sj.beam.search(MODEL, PARAMS, jnp.ones((1, 2), int), n_tokens=1, n_beams=n_beams)
    with pytest.raises(ValueError, match=r"stop must be 0 .. 3; got 4"):
        sj.beam.search(MODEL, PARAMS, jnp.ones((1, 2), int), n_tokens=1, n_beams=1, stop=4)
