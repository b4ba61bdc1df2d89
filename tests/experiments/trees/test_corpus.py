"""Corpora of trees: split, cached, and cut into windows that keep their paths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.lab.data.found import LeftOut
from experiments.lab.trees import corpus, grammar, prefix, slices, source
from experiments.lab.trees.corpus import TreeCorpus

DOCUMENTS = [f"def f{i}(x):\n    y = {i}\n    return [x, y]\n\n\nf{i}(1)\n".encode() * (1 + i % 3) for i in range(20)]


def read(documents=DOCUMENTS, *, unit="bytes", causal=True, **options):
    return TreeCorpus.of("some", documents, "python", unit=unit, causal=causal, n_steps=12, **options)


@pytest.mark.parametrize(("unit", "causal"), [("bytes", True), ("bytes", False), ("leaves", True), ("leaves", False)])
def test_windows_keep_the_paths_of_their_document(unit, causal):
    made = read(unit=unit, causal=causal)
    reader = prefix.read if causal else grammar.read
    readings = [reader(text, "python", n_steps=12) for text in DOCUMENTS]
    whole = [(r.by_byte() if unit == "bytes" else r).path.tolist() for r in readings]
    window = made.batch(seed=1, step=2, batch=6, n=15)
    assert window["path"].shape == (6, 15, 12) and window["tokens"].max() < made.vocab
    for rows in window["path"].tolist():
        assert any(rows == path[at : at + 15] for path in whole for at in range(len(path) - 14))


def test_bytes_are_the_text():
    made = read()
    window = made.batch(seed=0, step=0, batch=4, n=20)
    for row in window["tokens"]:
        assert any(bytes(row.astype(np.uint8)) in text for text in DOCUMENTS)


def test_short_documents_are_padded():
    documents = [b"a%d = %d\n" % (i, 10**i) for i in range(9)]
    made = read(documents)
    window = made.batch(seed=0, step=0, batch=5, n=20)
    for tokens, index, path in zip(window["tokens"], window["index"], window["path"], strict=True):
        length = int((index >= 0).sum())
        assert bytes(tokens[:length].astype(np.uint8)) in documents
        np.testing.assert_array_equal(index, [*range(length), *[-1] * (20 - length)])
        assert (path[length:] == -1).all()


def test_batches_follow_from_seed_and_step():
    made, again = read(), read(DOCUMENTS[::-1])
    first = made.batch(seed=3, step=5, batch=4, n=20)
    for name, value in again.batch(seed=3, step=5, batch=4, n=20).items():
        np.testing.assert_array_equal(value, first[name])
    assert (made.batch(seed=3, step=6, batch=4, n=20)["tokens"] != first["tokens"]).any()
    assert (made.batch(seed=4, step=5, batch=4, n=20)["tokens"] != first["tokens"]).any()


def test_no_document_is_on_both_sides():
    made = read(DOCUMENTS + DOCUMENTS[:3])

    def texts(split):
        return {
            bytes(split.tokens[a:b].astype(np.uint8)) for a, b in zip(split.bounds[:-1], split.bounds[1:], strict=True)
        }

    train, valid = texts(made.train), texts(made.valid)
    assert train and valid and not train & valid and train | valid == set(DOCUMENTS)
    assert len(made.train.bounds) + len(made.valid.bounds) - 2 == len(DOCUMENTS)


def test_leaves_have_numbers_by_frequency_and_share_the_rest():
    made = read(unit="leaves", causal=False, vocab=40)
    assert made.vocab == 40 and made.train.tokens.max() < 40 and made.train.tokens.min() > corpus.MASK
    with pytest.raises(ValueError, match="do not fit in a vocabulary of 5"):
        read(unit="leaves", causal=False, vocab=5)


def test_the_cache_gives_the_same_and_survives_damage(tmp_path):
    made = read(cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    stamp = kept.stat().st_mtime_ns
    again = read(cache=tmp_path)
    assert kept.stat().st_mtime_ns == stamp and again.sha256 == made.sha256
    np.testing.assert_array_equal(again.train.path, made.train.path)
    kept.write_bytes(kept.read_bytes()[:100])
    mended = read(cache=tmp_path)
    np.testing.assert_array_equal(mended.valid.tokens, made.valid.tokens)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    read(cache=tmp_path, vocab=99)
    assert len(list(tmp_path.iterdir())) == 2


class Trap:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_cached_file_that_is_anothers_or_holds_a_pickle_is_made_again(tmp_path):
    made = read(cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    read(DOCUMENTS[:12], cache=tmp_path)
    (other,) = set(tmp_path.iterdir()) - {kept}
    trap = np.array([Trap()], object)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF

    def damaged():
        yield other.read_bytes()
        yield bytes(flipped)
        for names in (corpus.ARRAYS, ("vocab",)):
            np.savez(kept, allow_pickle=True, named=np.array(kept.stem), **dict.fromkeys(names, trap))
            yield kept.read_bytes()

    for raw in damaged():
        kept.write_bytes(raw)
        np.testing.assert_array_equal(read(cache=tmp_path).valid.tokens, made.valid.tokens)
        assert len(kept.read_bytes()) == len(whole)


@pytest.mark.parametrize("documents", [[b"a", b"a", b""], [b""], [b"a = 1\n", b"b = 22\n", b"c = 333\n"]])
def test_too_few_documents_cannot_be_split(documents):
    with pytest.raises(ValueError, match=r"documents cannot be split: .* 5% to 20% of the bytes"):
        read(documents)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(0, 100_000))
def test_validation_has_its_share_of_the_bytes(sizes, heavy):
    """Also where one document is longer than all others together; never more than a fifth."""
    sizes = [heavy + 1, *sizes]
    valid = corpus.held_out(sizes)
    taken = sum(size for size, held_out in zip(sizes, valid, strict=True) if held_out)
    assert taken <= 0.2 * sum(sizes)
    if max(sizes) <= 0.1 * sum(sizes):
        assert taken >= 0.1 * sum(sizes)
        before = np.cumsum([0, *sizes[:-1]])
        assert valid == [bool(b < 0.1 * sum(sizes)) for b in before]


def test_many_deep_documents_warn_once():
    deep = [b"[" * n + b"]" * n for n in range(40, 50)]
    with pytest.warns(UserWarning, match="10 of 10 documents") as caught:
        TreeCorpus.of("deep", deep, "json", unit="bytes", causal=True, n_steps=8)
    assert len(caught) == 1


def named(text, language, reader):
    reading = reader(text, language)
    found = zip(reading.tokens(), slices.label(reading, language), strict=True)
    return [(token, slices.SLICES[label]) for token, label in found if label]


def test_slices_of_python():
    text = b"if a:\n  b(c)\n  d(b)\ne(a)\n"
    assert named(text, "python", prefix.read) == [
        (b")", "closing bracket"),
        (b"b", "identifier bound near"),
        (b")", "closing bracket"),
        (b"e", "dedent"),
        (b"a", "identifier bound near"),
        (b")", "closing bracket"),
    ]
    far = b"a = 1\nif 1:\n  if 2:\n    if 3:\n      a\n"
    assert named(far, "python", prefix.read)[-1] == (b"a", "identifier bound far")
    assert (b"\n", "dedent") in named(text, "python", grammar.read)


def test_slices_of_json():
    text = b'[{"a":1,"b":["a"]},{"a":2,"c":3}]'
    for reader, key in ((prefix.read, b'"a"'), (grammar.read, b"a")):
        assert [token for token, label in named(text, "json", reader) if label == "repeated key"] == [key]
        assert [t for t, label in named(text, "json", reader) if label == "closing bracket"] == [b"]", b"}", b"}", b"]"]


def test_a_dedent_is_decided_at_its_first_byte():
    reading = prefix.read(b"if a:\n  b\nlong\n", "python")
    labels = slices.by_byte(slices.label(reading, "python"), reading)
    assert np.flatnonzero(labels == slices.DEDENT).tolist() == [reading.text.index(b"long")]


def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "a.py").write_bytes(b"a = '\xff'\n")
    (tmp_path / "b.py").write_bytes(b"")
    (tmp_path / ".hidden.py").write_bytes(b"no\n")
    (tmp_path / "note.txt").write_bytes(b"no\n")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.py").write_bytes(b"def broken(:\n")
    with pytest.warns(LeftOut) as caught:
        documents = source.folder(str(tmp_path), "python", 1000)
    (said,) = [str(warning.message) for warning in caught]
    assert all(words in said for words in (".hidden.py (hidden)", "gone.py (a link to nothing)", "note.txt (no python"))
    assert sorted(documents) == [b"a = '\xff'\n", b"def broken(:\n"]
    assert source.folder(str(tmp_path / "a.py"), "python", 1000) == [b"a = '\xff'\n"]
    with pytest.warns(LeftOut, match=r"1 of 2 different documents are within 12 bytes \(--limit\)"):
        source.folder(str(tmp_path), "python", 12)
    with pytest.raises(ValueError, match="at most 3 bytes"):
        source.folder(str(tmp_path), "python", 3)
    with pytest.raises(ValueError, match=r"no files that end in \.json or \.ipynb"):
        source.folder(str(tmp_path), "json", 1000)
    with pytest.raises(ValueError, match="no grammar for 'cobol'"):
        source.folder(str(tmp_path), "cobol", 1000)


def test_sources_on_this_machine():
    python, objects = source.python_sources(30_000), source.json_documents(30_000)
    assert 10_000 < sum(map(len, python)) <= 30_000 and 10_000 < sum(map(len, objects)) <= 30_000
    assert python == source.python_sources(30_000)
    assert all(text[:1] in b"{[" for text in objects)
