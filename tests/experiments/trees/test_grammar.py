"""Readings by tree-sitter: aligned byte for byte, tolerant of anything."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.lab.trees import grammar

PYTHON = b"""def f(x):
    return [1, "a"]  # c

f(2)
"""


def places(reading):
    """{token: path} of a reading whose tokens differ."""
    return {
        text: tuple(int(b) for b in row if b >= 0) for text, row in zip(reading.tokens(), reading.path, strict=True)
    }


def test_paths_are_those_of_the_syntax_tree():
    at = places(grammar.read(PYTHON, "python"))
    assert at[b"def"] == (0, 0) and at[b"f"][0] == 1 and at[b"):"[:1]][0] in (0, 1)
    block = at[b"return"][:-1]
    assert block[0] == 0 and at[b"1"][: len(block)] == block
    bracket = at[b"["][:-1]
    assert at[b"1"][:-1] == at[b"]"][:-1] == at[b","][:-1] == bracket
    assert [at[token][-1] for token in (b"[", b"1", b",", b"]")] == [0, 1, 2, 4]
    assert at[b"\n\n"] == ()


@pytest.mark.parametrize(
    ("language", "text", "inner", "outer"),
    [
        ("json", b'{"a": [1, {"b": null}]}', b"null", b"1"),
        ("html", b"<p>one <b>two</b></p>", b"two", b"one"),
        ("xml", b"<a><b>one</b>two</a>", b"one", b"two"),
        ("markdown", b"one\n\n- *two*\n", b"two", b"one"),
    ],
)
def test_every_grammar_nests(language, text, inner, outer):
    reading = grammar.read(text, language)
    assert b"".join(reading.tokens()) == text
    at = {text.strip(): path for text, path in places(reading).items()}
    assert len(at[inner]) > len(at[outer]) > 0


@given(st.binary(max_size=80), st.sampled_from(["python", "json", "html", "xml", "markdown"]))
def test_any_bytes_are_read_and_aligned(text, language):
    reading = grammar.read(text, language)
    assert b"".join(reading.tokens()) == text
    by_byte = reading.by_byte()
    assert len(by_byte) == len(text) and by_byte.path.shape == (len(text), 32)


@given(st.integers(0, len(PYTHON)), st.binary(max_size=6))
def test_broken_documents_keep_their_alignment(at, noise):
    text = PYTHON[:at] + noise + PYTHON[at + 3 :]
    assert b"".join(grammar.read(text, "python").tokens()) == text


def test_an_error_leaves_what_is_around_it():
    whole, broken = (places(grammar.read(text, "python")) for text in (b"x = [1]\ny = 2\n", b"x = [1]\ny = 2\n) (\n"))
    for token in (b"x", b"[", b"1", b"y", b"2"):
        assert broken[token] == whole[token]


def test_no_bytes_no_tokens():
    reading = grammar.read(b"", "python")
    assert len(reading) == len(reading.by_byte()) == 0 and reading.path.shape == (0, 32)
    assert reading.start.shape == (0,)


def test_a_thousand_levels_are_clipped_with_a_warning():
    text = b"[" * 1000 + b"]" * 1000
    with pytest.warns(UserWarning, match="1986 of 2000 tokens lie deeper than 8 steps"):
        reading = grammar.read(text, "json", n_steps=8)
    assert b"".join(reading.tokens()) == text
    np.testing.assert_array_equal(reading.path[7:1993], np.broadcast_to(reading.path[500], (1986, 8)))
    assert (reading.path[:7] != reading.path[1:8]).any(1).all()


def test_bytes_are_children_of_their_token():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_byte = grammar.read(b"abc = 1\n", "python").by_byte()
    path = by_byte.path[:3]
    parent = (path >= 0).sum(1)[0] - 1
    np.testing.assert_array_equal(path[:, parent], [0, 1, 2])
    np.testing.assert_array_equal(path[:, :parent], np.broadcast_to(path[0, :parent], (3, parent)))


def test_unknown_languages_are_named():
    with pytest.raises(ValueError, match="no grammar for 'cobol'; there are python"):
        grammar.read(b"", "cobol")
