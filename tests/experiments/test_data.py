"""Files to tokens, and tokens to batches."""

import gzip
import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.lab import data
from experiments.lab.corpus import Corpus, entropies


def text_of(tokens):
    return bytes(np.asarray(tokens, np.uint8))


def everything(corpus):
    """All documents of a corpus of text."""
    return {document for split in (corpus.train, corpus.valid) for document in text_of(split).split(b"\0")}


def test_standard_library_is_the_default_and_does_not_change():
    one, two = data.load(), data.standard_library()
    assert one.sha256 == two.sha256 and one.vocab == 256
    assert len(one.train) > 5 * len(one.valid) > 1_000_000
    assert 2.0 < one.bigram < one.unigram < math.log(256)


def test_the_standard_library_is_split_as_in_the_committed_results():
    """The first tenth of its modules by the hash of their content; no copies lie across that cut."""
    corpus = data.standard_library()
    documents = [Path(name).read_bytes() for name in corpus.origin.files]
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document).digest())
    cut = len(ordered) // 10
    assert text_of(corpus.valid) == b"\0".join(ordered[:cut]) and text_of(corpus.train) == b"\0".join(ordered[cut:])
    assert corpus.origin.documents == len(documents) and not corpus.origin.left_out


def test_documents_are_split_whole_and_copies_stay_together(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"document number {i // 2:02}\n")
    corpus = data.load(str(tmp_path))
    train, valid = (set(text_of(split).split(b"\0")) for split in (corpus.train, corpus.valid))
    assert len(text_of(corpus.valid).split(b"\0")) == 4
    assert len(train | valid) == 20 and not train & valid


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


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_that_say_what_they_are(tmp_path, encoding):
    text = "Grüße aus Köln, \u2028 \x85 und 😀.\r\n" * 30
    mark = "\ufeff" if encoding.endswith("be") else ""
    (tmp_path / "a.txt").write_bytes((mark + text).encode(encoding))
    corpus = data.load(str(tmp_path))
    assert text_of(np.concatenate((corpus.train, corpus.valid))) == text.encode()
    record = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / "r.JSONL").write_bytes((mark + record + "\n").encode(encoding))
    corpus = data.load(str(tmp_path / "r.JSONL"))
    assert text_of(np.concatenate((corpus.train, corpus.valid))) == text.encode()


def test_everything_in_a_folder_is_read_or_named(tmp_path):
    """Text in three encodings, a picture, a link, hidden things: nothing goes without a word."""
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    for folder in (top, elsewhere, top / "deep", top / ".git"):
        folder.mkdir()
    for i in range(30):
        (top / f"a{i}.txt").write_text(f"plain text {i} " * 50)
        (top / f"b{i}.txt").write_bytes((f"Война и мир, том {i}. " * 50).encode("cp1251"))
        (top / "deep" / f"c{i}.txt").write_bytes((f"saved by Notepad {i} " * 50).encode("utf-16"))
        (elsewhere / f"d{i}.txt").write_text(f"behind a link {i} " * 50)
    (top / "one_fault.txt").write_bytes(b"x" * 99 + b"\xff" + b"y" * 100)
    (top / "picture.png").write_bytes(b"\x00\x01" * 50)
    (top / ".hidden").write_text("z" * 50)
    (top / ".git" / "config").write_text("z" * 50)
    (top / "more").symlink_to(elsewhere)
    (top / "same.txt").symlink_to(top / "a0.txt")
    (top / "gone.txt").symlink_to(top / "nowhere")
    os.mkfifo(top / "pipe")
    with pytest.warns(data.LeftOut, match=r"b0\.txt, .* and 28 more \(not UTF-8") as caught:
        corpus = data.load(str(top))
    assert len(caught) == 1
    expected = {f"plain text {i} " * 50 for i in range(30)} | {f"saved by Notepad {i} " * 50 for i in range(30)}
    assert everything(corpus) == {text.encode() for text in expected}
    assert corpus.origin.documents == len(corpus.origin.files) == 60
    reasons = {os.path.relpath(name, top): reason for name, reason in corpus.origin.left_out.items()}
    latin = {f"b{i}.txt" for i in range(30)} | {"one_fault.txt"}
    assert {name for name, reason in reasons.items() if reason.startswith("not UTF-8")} == latin
    assert {name: reason for name, reason in reasons.items() if name not in latin} == {
        ".hidden": "hidden",
        ".git": "hidden",
        "picture.png": "binary, not text",
        "more": "a link to a folder: name it by itself or by a glob to read it",
        "same.txt": "another name of a file that is read",
        "gone.txt": "a link to nothing",
        "pipe": "neither a file nor a folder",
    }
    assert data.load(str(top / "m*")).origin.documents == 30
    lines = "\n".join(corpus.origin.lines())
    assert "60 files, 60 documents" in lines and "38 left out" in lines
    assert all(f"{name}: {reason}" in lines for name, reason in corpus.origin.left_out.items())


def test_links_that_go_round_end(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 30)
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.warns(data.LeftOut):
        assert len(data.load(f"{tmp_path}/**").origin.files) == 1


def test_text_may_be_zipped(tmp_path):
    whole = b"a" * 90 + b"b" * 10
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(whole))
    assert text_of(data.load(str(tmp_path)).valid) == b"b" * 10
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(whole[:50]) + gzip.compress(whole[50:]))
    assert text_of(data.load(str(tmp_path)).valid) == b"b" * 10


NAMES = ("r.jsonl", "r.jsonl.gz", "c4-train.00000-of-01024.json.gz", "r.json", "r.ndjson", "R.JSONL", "r.NDJSON.GZ")


@pytest.mark.parametrize("name", NAMES)
def test_records(tmp_path, name):
    rows = [{"body": f"Größe {i}\nund weiter", "url": f"https://example.org/{i}", "text": None} for i in range(30)]
    lines = "".join(json.dumps(row) + "\n\n" for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.lower().endswith(".gz") else lines)
    corpus = data.load(str(tmp_path / name), text_field="body")
    assert everything(corpus) == {f"Größe {i}\nund weiter".encode() for i in range(30)}


def test_json_that_is_no_record_a_line_is_not_read_as_text(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 30)
    (tmp_path / "settings.json").write_text(json.dumps({"text": "a", "b": [1, 2]}, indent=2))
    (tmp_path / "list.json").write_text(json.dumps([{"text": "a"}] * 30))
    with pytest.warns(data.LeftOut, match=r"list\.json, .*settings\.json \(JSON, but not one record a line"):
        corpus = data.load(str(tmp_path))
    assert corpus.origin.documents == 1


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
