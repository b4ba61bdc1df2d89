"""Documents to training and validation: copies stay together, and validation has its share."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.lab.data.split import FEW, LEAST, MOST, share, sides

TEXTS = st.builds(
    lambda name, times: b"document %d " % name * times,
    st.integers(0, 60),
    st.one_of(st.integers(0, 3), st.integers(1, 300)),
)
COPIED = st.lists(st.tuples(TEXTS, st.integers(1, 12)), min_size=1, max_size=60).map(
    lambda groups: [text for text, n in groups for _ in range(n)]
)
"""Documents, some of them several times, of lengths that differ a hundredfold."""


def documents(side):
    return side.split(b"\0")


@settings(max_examples=400, deadline=None)
@given(COPIED.flatmap(st.permutations))
def test_no_document_is_on_both_sides_and_the_share_is_in_its_band(texts):
    try:
        train, valid, how = sides(texts)
    except ValueError as error:
        assert "too short to be split" in str(error) and sum(map(len, texts)) < 10 * len(texts)
        return
    assert LEAST <= share(train, valid) <= MOST
    if "whole" in how:
        assert len(set(texts)) >= FEW and not set(documents(train)) & set(documents(valid))
        assert Counter(documents(train)) + Counter(documents(valid)) == Counter(texts)
    else:
        pairs = zip(documents(train), documents(valid), strict=True)
        assert [head + tail for head, tail in pairs] == list(texts)
    assert sides(texts) == (train, valid, how)


@settings(max_examples=100, deadline=None)
@given(COPIED, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(texts, random):
    """Where whole documents are held out, it is by their content alone."""
    shuffled = random.sample(texts, len(texts))
    try:
        one, other = sides(texts), sides(shuffled)
    except ValueError:
        return
    if "whole" in one[2]:
        assert one == other


def test_copies_of_a_document_go_together():
    """The same corpus two hundred times with one document of five copies, which no cut may divide."""
    for seed in range(200):
        texts = [b"Subscribe to letter %d. " % seed * 30] * 5
        texts += [b"document %d %d " % (seed, i) * 30 for i in range(45)]
        train, valid, how = sides(texts)
        assert "whole" in how and not set(documents(train)) & set(documents(valid))
    train, valid, _ = sides([b"number %d " % (i // 10) * 50 for i in range(200)])
    assert not set(documents(train)) & set(documents(valid))
    assert {len(documents(train)), len(documents(valid))} == {180, 20}


def test_copies_alone_are_few_documents():
    train, valid, how = sides([b"the same licence text " * 30] * 30)
    assert "last tenth of each" in how and not set(documents(train)) & set(documents(valid))


@pytest.mark.parametrize("heavy", [0.3, 0.5, 0.9, 0.94])
@pytest.mark.parametrize("name", range(20))
def test_a_document_that_is_most_of_the_corpus_is_trained_on(heavy, name):
    """Wherever its hash puts it."""
    small = [b"small %02d " % i * 20 for i in range(40)]
    total = sum(map(len, small)) / (1 - heavy)
    large = (b"large %02d " % name * int(total))[: int(heavy * total)]
    train, valid, how = sides([*small, large])
    assert "whole" in how and large in documents(train)
    assert LEAST <= share(train, valid) <= MOST


def test_a_document_that_leaves_too_little_to_the_others_gives_its_end():
    small = [b"small %02d " % i for i in range(40)]
    large = b"large " * 10_000
    train, valid, how = sides([*small, large])
    assert "last tenth of each" in how and large[:-6000] in documents(train) and large[-6000:] in documents(valid)


@pytest.mark.thorough
def test_documents_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"3 documents of 9 bytes are too short .* would hold 38%"):
        sides([b"abc", b"def", b"ghi"])
