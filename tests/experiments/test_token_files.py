"""Files of tokens: mapped, told apart, and refused where they are no tokens."""

import gzip

import numpy as np
import pytest

from experiments.lab import data
from experiments.lab.data import token_file


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
