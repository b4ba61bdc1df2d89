"""Folding a list of layers into scans."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stackjax as sj
from stackjax.segment import Segment, fold

KINDS = [sj.Layer(sublayers=(sj.FeedForward(d_hidden=width),)) for width in range(1, 10)]


def folded(text):
    """`text` names one layer a letter; the answer reads like '4x(aab) 2x(a)'."""
    segments = fold([KINDS["abcdefghi".index(letter)] for letter in text])
    names = ["".join("abcdefghi"[KINDS.index(layer)] for layer in segment.layers) for segment in segments]
    return " ".join(f"{segment.n}x({name})" for segment, name in zip(segments, names, strict=True))


@settings(max_examples=200)
@given(st.lists(st.sampled_from(KINDS[:4]), max_size=24))
def test_segments_expand_back_to_the_list(layers):
    segments = fold(layers)
    assert [layer for segment in segments for layer in segment.layers * segment.n] == layers
    assert all(segment.n > 1 or len(segment.layers) == 1 for segment in segments)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(KINDS[:3]), min_size=1, max_size=4), st.integers(2, 50))
def test_a_repeated_period_is_one_segment(pattern, n):
    (segment,) = fold(pattern * n)
    assert len(segment.layers) <= len(pattern) and segment.depth == n * len(pattern)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("a" * 100, "100x(a)"),
        ("aaaaab" * 4 + "aa", "4x(aaaaab) 2x(a)"),
        ("b" * 3 + "a" * 9, "3x(b) 9x(a)"),
        ("ab" * 13, "13x(ab)"),
        ("a" * 5 + "b" * 5, "5x(a) 5x(b)"),
        ("ababcdefgh", "2x(ab) 1x(c) 1x(d) 1x(e) 1x(f) 1x(g) 1x(h)"),
        ("baaaa", "1x(b) 4x(a)"),
        ("", ""),
    ],
)
def test_patterns(layers, expected):
    assert folded(layers) == expected


def test_equal_layers_need_not_be_the_same_object():
    assert fold([sj.Layer(sublayers=(sj.FeedForward(d_hidden=3),)) for _ in range(7)]) == (
        Segment(layers=(KINDS[2],), n=7),
    )


def test_a_thousand_different_layers_fold_in_a_moment():
    layers = [sj.Layer(sublayers=(sj.FeedForward(d_hidden=width + 1),)) for width in range(1000)]
    assert len(fold(layers)) == 1000
