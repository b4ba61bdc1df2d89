"""Files to tokens, and tokens to batches."""

import gzip
import json
import math
import os

import numpy as np
import pytest

from experiments.lab import data
from experiments.lab.corpus import Corpus, entropies


def text_of(tokens):
    return bytes(np.asarray(tokens, np.uint8))


def test_standard_library_is_the_default_and_does_not_change():
    one, two = data.load(), data.standard_library()
    assert one.sha256 == two.sha256 and one.vocab == 256
    assert len(one.train) > 5 * len(one.valid) > 1_000_000
    assert 2.0 < one.bigram < one.unigram < math.log(256)


def test_documents_are_split_whole_and_copies_stay_together(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"document number {i // 2:02}\n")
    corpus = data.load(str(tmp_path))
    train, valid = (set(text_of(split).split(b"\0")) for split in (corpus.train, corpus.valid))
    assert len(text_of(corpus.valid).split(b"\0")) == 4
    assert len(train | valid) == 20 and len(train & valid) <= 1


def test_where_a_folder_lies_does_not_matter(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(25):
            (tmp_path / folder / f"{folder}{i}.md").write_text(f"{i} " * 20)
    one, two = data.load(str(tmp_path / "a")), data.load(str(tmp_path / "b" / "*.md"))
    assert one.sha256 == two.sha256


def test_few_documents_give_their_last_tenth(tmp_path):
    (tmp_path / "one.txt").write_bytes(b"a" * 90 + b"b" * 10)
    corpus = data.load(str(tmp_path / "one.txt"))
    assert text_of(corpus.train) == b"a" * 90 and text_of(corpus.valid) == b"b" * 10


def test_faulty_utf8_is_replaced_and_hidden_or_binary_files_are_passed_over(tmp_path):
    (tmp_path / "good.txt").write_bytes(b"x" * 99 + b"\xff" + b"y" * 100)
    (tmp_path / "picture.png").write_bytes(b"\x00\x01" * 50)
    (tmp_path / ".hidden").write_text("z" * 50)
    tokens = data.load(str(tmp_path))
    assert text_of(np.concatenate((tokens.train, tokens.valid))) == b"x" * 99 + "\ufffd".encode() + b"y" * 100


def test_text_may_be_zipped(tmp_path):
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(b"a" * 90 + b"b" * 10))
    assert text_of(data.load(str(tmp_path)).valid) == b"b" * 10


@pytest.mark.parametrize("zipped", [False, True])
def test_records(tmp_path, zipped):
    lines = "\n".join(json.dumps({"body": f"record {i}", "n": i}) for i in range(30)) + "\n\n"
    path = tmp_path / ("r.jsonl.gz" if zipped else "r.jsonl")
    path.write_bytes(gzip.compress(lines.encode()) if zipped else lines.encode())
    corpus = data.load(str(path), text_field="body")
    found = set(text_of(corpus.train).split(b"\0")) | set(text_of(corpus.valid).split(b"\0"))
    assert found == {f"record {i}".encode() for i in range(30)}


def test_token_files_are_mapped(tmp_path):
    tokens = np.arange(1000, dtype="<u2") % 300
    tokens.tofile(tmp_path / "all.bin")
    corpus = data.load(str(tmp_path / "all.bin"))
    assert isinstance(corpus.train, np.memmap) and corpus.vocab == 300
    assert len(corpus.train) == 900 and (np.concatenate((corpus.train, corpus.valid)) == tokens).all()
    assert corpus.bigram is not None

    both = tmp_path / "both"
    both.mkdir()
    tokens[:600].tofile(both / "train.bin")
    tokens[600:].tofile(both / "val.bin")
    corpus = data.load(str(both), vocab=50304)
    assert (len(corpus.train), len(corpus.valid), corpus.vocab, corpus.bigram) == (600, 400, 50304, None)
    assert data.load(str(both), vocab=400).sha256 != corpus.sha256


def bad_inputs(folder):
    """Everything that cannot be used: {name: (options, what is said)}."""
    (folder / "empty").mkdir()
    (folder / "empty.txt").touch()
    (folder / "binary.txt").write_bytes(b"\x00\xff" * 1000)
    (folder / "latin.txt").write_bytes(b"\xff\xfe" * 1000)
    (folder / "bad.jsonl").write_text('{"text": "a"}\nnot json\n')
    (folder / "other.jsonl").write_text('{"body": "a"}\n')
    (folder / "list.jsonl").write_text("[1]\n")
    (folder / "bad.jsonl.gz").write_bytes(b"not gzip")
    (folder / "odd.bin").write_bytes(b"abc")
    (folder / "empty.bin").touch()
    np.arange(1000, dtype="<u2").tofile(folder / "big.bin")
    (folder / "bins").mkdir()
    for name in ("a.bin", "b.bin"):
        np.arange(1000, dtype="<u2").tofile(folder / "bins" / name)
    return {
        "missing": ({"where": "nowhere.txt"}, "no such file"),
        "no match": ({"where": str(folder / "*.nothing")}, "no such file"),
        "empty folder": ({"where": str(folder / "empty")}, "empty folder"),
        "empty file": ({"where": str(folder / "empty.txt")}, "no text"),
        "binary": ({"where": str(folder / "binary.txt")}, "binary"),
        "not utf-8": ({"where": str(folder / "latin.txt")}, "binary"),
        "not json": ({"where": str(folder / "bad.jsonl")}, "line 2 is not JSON"),
        "no field": ({"where": str(folder / "other.jsonl")}, "only body; give --text-field"),
        "no record": ({"where": str(folder / "list.jsonl")}, "only list"),
        "not gzip": ({"where": str(folder / "bad.jsonl.gz")}, "cannot be read"),
        "odd tokens": ({"where": str(folder / "odd.bin")}, "no whole number of uint16"),
        "no tokens": ({"where": str(folder / "empty.bin")}, "no whole number"),
        "vocabulary": ({"where": str(folder / "big.bin"), "vocab": 10}, "below --vocab 10; found 999"),
        "two bins": ({"where": str(folder / "bins")}, "one .bin, or train.bin and val.bin"),
    }


def test_bad_input_is_refused(tmp_path):
    for name, (options, said) in bad_inputs(tmp_path).items():
        with pytest.raises(ValueError, match=said):
            pytest.fail(f"{name}: {data.load(**options)}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_refused(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("text " * 100)
    path.chmod(0)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        data.load(str(path))


def test_too_short_is_refused():
    corpus = Corpus.of("short", np.arange(200, dtype=np.uint8), np.arange(20, dtype=np.uint8), vocab=256)
    corpus.check(batch=2, context=9)
    with pytest.raises(ValueError, match="20 validation tokens, and one batch needs 30"):
        corpus.check(batch=3, context=9)


def test_batches_are_pure_functions_of_seed_and_step():
    tokens = np.arange(5000, dtype=np.uint16)
    corpus = Corpus.of("numbers", tokens, tokens[:300])
    size = {"batch": 64, "context": 7}
    first = corpus.batch(seed=3, step=11, **size)
    assert first.shape == (64, 8) and first.dtype == np.int32
    assert (np.diff(first) == 1).all(), "windows are stretches of the text"
    corpus.batch(seed=0, step=0, **size)
    assert (corpus.batch(seed=3, step=11, **size) == first).all()
    for other in ({"seed": 3, "step": 12}, {"seed": 4, "step": 11}):
        assert (corpus.batch(**other, **size) != first).any()
    starts = np.concatenate([corpus.batch(seed=0, step=i, **size)[:, 0] for i in range(200)])
    assert starts.min() < 20 and starts.max() > 4970 and starts.max() <= 5000 - 8
    assert abs(starts.mean() - 2496) < 60


def test_validation_windows_are_fixed_and_spread():
    tokens = np.arange(1000, dtype=np.uint16)
    windows = Corpus.of("numbers", tokens, tokens).valid_batches(5, batch=4, context=9)
    assert windows.shape == (5, 4, 10)
    starts = windows.reshape(20, 10)[:, 0]
    assert starts[0] == 0 and starts[-1] == 990 and np.ptp(np.diff(starts)) <= 1


def test_entropies():
    cycle = np.tile(np.arange(4, dtype=np.uint8), 500)
    unigram, bigram = entropies(cycle, 4)
    assert unigram == pytest.approx(math.log(4)) and bigram == pytest.approx(0, abs=1e-6)
    coin = np.random.default_rng(0).integers(0, 2, 200_000).astype(np.uint8)
    unigram, bigram = entropies(coin, 256)
    assert unigram == pytest.approx(math.log(2), abs=1e-3) and bigram == pytest.approx(math.log(2), abs=1e-3)
    assert entropies(coin, 5000)[1] is None


def test_entropies_do_not_depend_on_how_the_tokens_are_read(monkeypatch):
    tokens = np.random.default_rng(1).integers(0, 9, 1001).astype(np.uint8)
    whole = entropies(tokens, 9)
    monkeypatch.setattr("experiments.lab.corpus.PIECE", 100)
    assert entropies(tokens, 9) == pytest.approx(whole, rel=1e-12)
    assert Corpus.of("pieces", tokens, tokens).vocab == 9
