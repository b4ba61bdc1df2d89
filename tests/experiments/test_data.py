"""Files to tokens, and tokens to batches."""

import gzip
import hashlib
import json
import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.lab import data
from experiments.lab.corpus import Corpus, entropies
from experiments.lab.data import token_file


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


def three_folders(top, **files):
    """Token files of three data sets: {name: number of tokens}; each holds the number of its data set alone."""
    for k, name in enumerate(("books", "news", "web")):
        (top / name).mkdir(parents=True)
        for file, n in files.items():
            np.full(n, k + 1, "<u2").tofile(top / name / f"{file}.bin")


def test_token_files_of_one_name_are_all_read(tmp_path):
    three_folders(tmp_path, train=10_000, val=1_000)
    for where in (tmp_path, tmp_path / "*" / "*.bin"):
        corpus = data.load(str(where))
        assert [np.bincount(split).tolist() for split in (corpus.train, corpus.valid)] == [
            [0, 10_000, 10_000, 10_000],
            [0, 1_000, 1_000, 1_000],
        ]
    alone = data.load(str(tmp_path / "*" / "train.bin"))
    assert np.bincount(alone.train).tolist() == [0, 9_000, 9_000, 9_000]
    assert np.bincount(alone.valid).tolist() == [0, 1_000, 1_000, 1_000]


def test_scripts_beside_token_files_are_left_out(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50257, 110_000).astype("<u2")
    tokens[:100_000].tofile(tmp_path / "train.bin")
    tokens[100_000:].tofile(tmp_path / "val.bin")
    (tmp_path / "prepare.py").write_text("import numpy\n" * 300)
    (tmp_path / "readme.md").write_text("# how the tokens were made\n" * 40)
    with pytest.warns(data.LeftOut, match=r"prepare\.py, .*readme\.md \(beside a train\.bin\)"):
        corpus = data.load(str(tmp_path))
    np.testing.assert_array_equal(corpus.train, tokens[:100_000])
    np.testing.assert_array_equal(corpus.valid, tokens[100_000:])
    assert corpus.vocab == tokens.max() + 1


WIDE = {"byte": 200, "GPT-2": 50_257, "Llama 3": 128_000}


@pytest.mark.parametrize("vocab", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_tokens_that_are_twice_as_wide_are_refused(tmp_path, vocab, dtype):
    tokens = np.random.default_rng(0).zipf(1.3, 50_000) % vocab
    tokens.astype(dtype).tofile(tmp_path / "a.bin")
    read = "uint16" if dtype == "<u4" else "uint32"
    for said in (None, vocab):
        with pytest.raises(ValueError, match=r"no plausible uint.*; give --token-dtype"):
            data.load(str(tmp_path / "a.bin"), token_dtype=read, vocab=said)
    if dtype == "<u4":
        corpus = data.load(str(tmp_path / "a.bin"), token_dtype="uint32")
        assert len(corpus.train) == 45_000 and corpus.vocab == tokens.max() + 1


@pytest.mark.parametrize("vocab", [3, 16, 300, 50_257])
def test_tokens_that_are_half_as_wide_are_refused(tmp_path, vocab):
    tokens = np.random.default_rng(0).integers(0, vocab, 10_000)
    tokens.astype("<u2").tofile(tmp_path / "a.bin")
    assert data.load(str(tmp_path / "a.bin")).vocab == tokens.max() + 1
    with pytest.raises(ValueError, match=r"not plausible for 5,000 tokens .*; is --token-dtype uint32 right"):
        data.load(str(tmp_path / "a.bin"), token_dtype="uint32")


ODD_TOKENS = {
    "llm.c": np.array([20240520, 1, 50_000, *[0] * 253], "<i4").tobytes(),
    "llm.c, Llama 3": np.array([20240801, 7, 50_000, *[0] * 253], "<i4").tobytes(),
    ".npy": b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<u2'} ",
    "gzip": gzip.compress(b"tokens"),
    "zip": b"PK\x03\x04" + bytes(26),
    "text": b"It was a bright cold day in April.\n" * 120,
}


@pytest.mark.parametrize("name", ODD_TOKENS)
def test_files_that_are_called_bin_and_hold_no_tokens_alone_are_refused(tmp_path, name):
    tokens = np.random.default_rng(0).integers(0, 50_257, 1000).astype("<u2")
    assert not token_file.implausible(tokens)
    raw = ODD_TOKENS[name] + tokens.tobytes()
    (tmp_path / "a.bin").write_bytes(raw[: len(raw) // 2 * 2])
    with pytest.raises(ValueError, match="no plausible uint16 tokens: it "):
        data.load(str(tmp_path / "a.bin"))


TASKS = {
    "constant": np.full(1000, 7),
    "keys and values": np.random.default_rng(0).integers(0, 64, 1000) + 64 * (np.arange(1000) % 2),
    "marks": np.random.default_rng(0).integers(16, 30_000, 1000) * (np.arange(1000) % 2 == 0) + np.arange(1000) % 2,
    "two tokens": np.arange(1000) % 2,
    "zeros": np.zeros(1000),
}


@pytest.mark.parametrize("name", TASKS)
def test_tokens_of_made_up_tasks_are_plausible(name):
    assert not token_file.implausible(TASKS[name].astype("<u2"))


def test_a_train_and_a_val_that_are_copies_are_refused(tmp_path):
    three_folders(tmp_path, train=500, val=400)
    (tmp_path / "web" / "val.bin").write_bytes((tmp_path / "books" / "train.bin").read_bytes())
    with pytest.raises(ValueError, match=r"books/train\.bin and .*web/val\.bin hold the same tokens"):
        data.load(str(tmp_path))


def corrupt(raw):
    """A gzip file that breaks in each way that gzip knows: {name: bytes}."""
    whole = gzip.compress(raw)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    return {
        "no_gzip": b"not gzip",
        "cut": whole[: len(whole) // 2],
        "cut_in_header": whole[:5],
        "block": whole[:10] + b"\xff" * 20,
        "flipped": bytes(flipped),
        "checksum": whole[:-8] + bytes(8),
        "tail": whole + b"more",
    }


def bad_inputs(folder):
    """Everything that cannot be used: {name: (options, what is said)}."""
    (folder / "empty").mkdir()
    (folder / "hidden").mkdir()
    (folder / "hidden" / ".a.txt").write_text("text " * 100)
    (folder / "links").mkdir()
    (folder / "links" / "more").symlink_to(folder / "hidden")
    (folder / "bins").mkdir()
    (folder / "mixed").mkdir()
    (folder / "mixed" / "story.txt").write_text("text " * 100)
    for name in ("bins/a.bin", "bins/b.bin", "mixed/tokens.bin", "big.bin"):
        np.arange(1000, dtype="<u2").tofile(folder / name)
    three_folders(folder / "three", train=100, val=10, test=10)
    np.full(20_000, 299 << 16, "<u4").tofile(folder / "wide.bin")
    texts = {
        "empty.txt": b"",
        "empty.jsonl": b"\n \n",
        "binary.txt": b"\x00\xff" * 1000,
        "latin.txt": "Größe\n".encode("latin-1") * 100,
        "half.txt": b"\xff\xfea\x00b",
        "short.txt": b"abc",
        "bad.jsonl": b'{"text": "a"}\nnot json\n',
        "deep.jsonl": b'{"text": "a"}\n' + b"[" * 200_000,
        "huge.jsonl": b'{"text": ' + b"9" * 10_000 + b"}",
        "other.jsonl": b'{"body": "a"}\n',
        "many.jsonl": json.dumps({f"field {i}\n\x1b[2J": i for i in range(1000)}).encode(),
        "bare.jsonl": b"{}\n",
        "null.jsonl": b'{"text": "a"}\n{"text": null}\n',
        "number.jsonl": b'{"text": 5}\n',
        "list.jsonl": b"[1]\n",
        "latin.jsonl": '{"text": "Größe"}\n'.encode("latin-1"),
        "list.json": b'[{"text": "a"}]\n',
        "odd.bin": b"abc",
        "empty.bin": b"",
        "named\n\x1b[2Joddly.txt": b"",
        **{f"{name}.txt.gz": raw for name, raw in corrupt(b"text " * 1000).items()},
    }
    for name, raw in texts.items():
        (folder / name).write_bytes(raw)
    said = {
        "nowhere.txt": "no such file",
        "*.nothing": "no such file",
        "n" * 5000: "no such file",
        "empty": "an empty folder",
        "hidden": r"nothing to read; left out: .*\.a\.txt \(hidden\)",
        "links": r"left out: .*more \(a link to a folder",
        "empty.txt": "no text",
        "empty.jsonl": "no text",
        "named*oddly.txt": "no text",
        "binary.txt": r"binary\.txt \(binary, not text\)",
        "latin.txt": r"latin\.txt \(not UTF-8",
        "half.txt": "not UTF-8",
        "short.txt": "too short to be split: validation would hold 33% of the tokens, and holds 5% to 20%",
        "bad.jsonl": "line 2 is not JSON",
        "deep.jsonl": "line 2 is JSON that is nested too deeply",
        "huge.jsonl": "line 1 is not JSON",
        "other.jsonl": "only body; give --text-field",
        "many.jsonl": "field 9.* and 990 more; give --text-field",
        "bare.jsonl": "no field at all",
        "null.jsonl": "line 2 has null in 'text', not text",
        "number.jsonl": "line 1 has int in 'text', not text",
        "list.jsonl": "only list",
        "latin.jsonl": "not UTF-8",
        "list.json": r"list\.json \(JSON, but not one record a line",
        "odd.bin": "no whole number of uint16",
        "empty.bin": "no whole number",
        "bins": r"one \.bin, or train\.bin and val\.bin",
        "mixed": r"holds token files \(.*tokens\.bin\) and others \(.*story\.txt\): name one kind",
        "three": r"one \.bin, or train\.bin and val\.bin.*books/test\.bin.* and 4 more",
        **{f"{name}.txt.gz": "cannot be read" for name in corrupt(b"")},
    }
    options = {name: ({"where": str(folder / name)}, words) for name, words in said.items()}
    return options | {
        "vocabulary": ({"where": str(folder / "big.bin"), "vocab": 10}, "below --vocab 10; found 999"),
        "vast vocabulary": ({"where": str(folder / "big.bin"), "vocab": 10**13}, "10,000,000,000,000 is not plausible"),
        "vocabulary of text": ({"where": str(folder / "mixed" / "*.txt"), "vocab": 300}, "V = 256; --vocab 300 is for"),
        "19 million": ({"where": str(folder / "wide.bin"), "token_dtype": "uint32"}, "19,595,265 is not plausible"),
    }


def test_bad_input_is_refused(tmp_path):
    for name, (options, said) in bad_inputs(tmp_path).items():
        with pytest.raises(ValueError, match=f"(?s){said}"):
            pytest.fail(f"{name}: {data.load(**options)}")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4), st.integers(0, 10_000))
def test_damaged_gzip_is_refused_in_one_way(tmp_path_factory, changes, cut):
    """Whatever bytes change, wherever it ends: a ValueError that names the file, or the text."""
    raw = bytearray(gzip.compress(b"".join(b"text number %d, " % i for i in range(500)), mtime=0))
    for place, byte in changes:
        raw[place % len(raw)] = byte
    path = tmp_path_factory.mktemp("gzip") / "a.txt.gz"
    path.write_bytes(raw[: len(raw) - cut % 20] if cut % 2 else raw)
    try:
        data.load(str(path))
    except ValueError as error:
        assert str(path) in str(error)


CONTENT = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=60).map(lambda text: (text * 3).encode("utf-8", "surrogatepass")),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60).map(lambda text: text.encode("utf-16")),
    st.lists(st.dictionaries(st.sampled_from(("text", "body")), st.none() | st.text(max_size=40)), max_size=5).map(
        lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()
    ),
    st.binary(min_size=1, max_size=200).map(gzip.compress),
    st.binary(min_size=30, max_size=60).map(lambda raw: gzip.compress(raw * 5)[:-9]),
)
FILE_NAMES = st.builds(
    "{}{}{}".format,
    st.sampled_from(("", "deep/", "deep/er/", ".hidden/")),
    st.sampled_from(("a", "b", ".c", "train", "val", "odd\udcff\n")),
    st.sampled_from((".txt", "", ".jsonl", ".JSON", ".ndjson.gz", ".txt.gz", ".bin", ".BIN", ".png")),
)


@pytest.mark.filterwarnings("ignore::experiments.lab.data.LeftOut")
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FILE_NAMES, CONTENT, max_size=6), st.binary(max_size=4))
def test_odd_folders_are_read_or_named_or_refused(tmp_path_factory, files, more):
    """Whatever lies in a folder: a refusal, or a corpus that accounts for every file."""
    top = tmp_path_factory.mktemp("odd")
    for name, raw in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(raw)
    (top / "plain.txt").write_bytes(b"plain text " * 40 + more)
    try:
        corpus = data.load(str(top))
    except ValueError:
        return
    named = {os.path.relpath(name, top) for name in (*corpus.origin.files, *corpus.origin.left_out)}
    assert named == {".hidden" if name.startswith(".hidden/") else name for name in (*files, "plain.txt")}
    assert 0.05 <= len(corpus.valid) / (len(corpus.train) + len(corpus.valid)) <= 0.2


def test_a_socket_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text " * 30)
    with socket.socket(socket.AF_UNIX) as connection, pytest.warns(data.LeftOut, match="neither a file nor a folder"):
        connection.bind("socket")
        data.load(".")


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
