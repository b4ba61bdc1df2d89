"""Readings from the left: no path knows what comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.lab.trees import prefix

PYTHON = b'''def f(x, y=[1, 2]):
    """Doc
with lines"""
    if x:  # why
        return {"k": 'a\\'b'}

    y = g(x,
          2)
\treturn y \\
        + 1
  odd
g()
'''
JSON = b'{"a": [1, {"b": "x\\"]"}], "c": null}\n[2]'
PIECES = st.sampled_from(
    [b"a", b"if x:", b"\n", b"    ", b"\t", b"(", b")", b"[", b"]", b"{", b"}", b",", b'"', b"'", b'"""', b"\\", b"#"]
)


def places(text, language="python"):
    reading = prefix.read(text, language)
    assert b"".join(reading.tokens()) == text
    return [
        (token, tuple(int(b) for b in row if b >= 0))
        for token, row in zip(reading.tokens(), reading.path, strict=True)
        if not token.isspace()
    ]


def test_statements_and_groups_nest():
    text = b"if x:\n  f(a, [b])\n  c\nd\n"
    assert places(text) == [
        (b"if", (0, 0)),
        (b"x", (0, 2)),
        (b":", (0, 3)),
        (b"f", (0, 5, 0)),
        (b"(", (0, 5, 1)),
        (b"a", (0, 5, 1, 0, 0)),
        (b",", (0, 5, 1)),
        (b"[", (0, 5, 1, 1, 1)),
        (b"b", (0, 5, 1, 1, 1, 0, 0)),
        (b"]", (0, 5, 1, 1, 1)),
        (b")", (0, 5, 1)),
        (b"c", (0, 6, 0)),
        (b"d", (1, 0)),
    ]


def test_json_keys_come_first_in_their_element():
    at = dict(places(b'{"a":1,"b":{"c":2}}', "json"))
    assert at[b'"a"'] == (0, 0, 0, 0) and at[b"1"] == (0, 0, 0, 2)
    assert at[b'"b"'] == (0, 0, 1, 0) and at[b'"c"'] == (0, 0, 1, 2, 0, 0)


def test_indentation_is_where_a_statement_would_begin():
    reading = prefix.read(b"a\n  b\n    c\n  d\n", "python").by_byte()
    paths = [tuple(int(b) for b in row if b >= 0) for row in reading.path]
    statement = {letter: paths[reading.text.index(letter)][:-2] for letter in (b"b", b"c", b"d")}
    assert statement[b"d"] != statement[b"b"] == statement[b"c"][:-1]
    for letter in (b"b", b"c", b"d"):
        before = reading.text.index(letter) - 1
        assert paths[before][:-1] == statement[letter]


def test_blank_lines_and_strings_of_many_lines_open_nothing():
    at = dict(places(b'a\n\n      \nb = """\n    (\n"""\nc\n'))
    assert at[b"b"] == (1, 0) and at[b"c"] == (2, 0)


@pytest.mark.parametrize(("text", "language"), [(PYTHON, "python"), (JSON, "json")])
def test_the_reading_of_a_prefix_is_the_prefix_of_the_reading(text, language):
    whole = prefix.read(text, language).by_byte().path
    for cut in range(len(text)):
        np.testing.assert_array_equal(prefix.read(text[:cut], language).by_byte().path, whole[:cut])


@given(st.lists(PIECES, max_size=25), st.lists(PIECES, max_size=4), st.sampled_from(["python", "json"]))
def test_no_future_changes_a_path(before, after, language):
    text = b"".join(before)
    alone = prefix.read(text, language).by_byte()
    longer = prefix.read(text + b"".join(after), language).by_byte()
    np.testing.assert_array_equal(longer.path[: len(text)], alone.path)


@given(st.binary(max_size=60), st.integers(0, 60), st.sampled_from(["python", "json"]))
def test_any_bytes_will_do(text, cut, language):
    whole = prefix.read(text, language)
    assert b"".join(whole.tokens()) == text
    part = prefix.read(text[:cut], language).by_byte().path
    np.testing.assert_array_equal(part, whole.by_byte().path[: len(part)])


def test_deep_nesting_is_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="deeper than 6 steps"):
        reading = prefix.read(b"(" * 1000, "json", n_steps=6)
    np.testing.assert_array_equal(reading.path[10], reading.path[-1])


def test_unknown_languages_are_named():
    with pytest.raises(ValueError, match="no scan for 'html'; there are python, json"):
        prefix.read(b"", "html")
