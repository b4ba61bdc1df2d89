"""Data that cannot be used: each ends in one line that names the file and the rule."""

import gzip
import json
import os
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.lab import data
from experiments.lab.corpus import Corpus
from tests.experiments.test_token_files import three_folders


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
