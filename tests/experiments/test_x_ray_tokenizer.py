"""An X-ray reads a text by the tokenizer that lies in a checkpoint's folder, as in training, or says why it cannot."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.lab.command_line import USAGE
from experiments.x_ray import __main__ as x_ray
from experiments.x_ray import subject, vocabulary
from stackjax.interop import hf
from tests.experiments.test_x_ray import GPT2


def checkpoint(path, config):
    """A folder of some model at its init."""
    hf.save(path, jax.jit(hf.describe(config).init)(jax.random.key(0)), config)
    return path


def words(library, post=None):
    """A tokenizer of six words that knows a beginning, an end, and a mask."""
    ids = {"[UNK]": 0, "<s>": 1, "</s>": 2, "[MASK]": 3, "the": 4, "fox": 5}
    tokenizer = library.Tokenizer(library.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    if post:
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single=post, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return tokenizer


def prepared(folder, text, context=8):
    """An X-ray's subject, two windows of a text."""
    path = folder / "text.txt"
    path.write_text(text)
    found = subject.of_folder(str(folder), jnp.float32)
    return subject.prepare(found, str(path), context=context, windows=2, dtype=jnp.float32)


def test_the_folders_own_tokenizer(tmp_path, monkeypatch):
    library = pytest.importorskip("tokenizers")
    words(library).save(str(tmp_path / "tokenizer.json"))
    checkpoint(tmp_path, {**GPT2, "vocab_size": 6})
    _, _, read = subject.of_folder(str(tmp_path), jnp.float32)
    assert read.read("the fox the dog") == [4, 5, 4, 0]
    assert (read.name, read.mask, read.spell(5)) == ("WordLevel tokens", 3, "fox")
    assert read.before == read.after == ()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="install the package tokenizers"):
        subject.of_folder(str(tmp_path), jnp.float32)


def test_what_is_stored_with_a_tokenizer_does_not_cut_the_text(tmp_path):
    library = pytest.importorskip("tokenizers")
    tokenizer = words(library)
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(checkpoint(tmp_path, GPT2) / "tokenizer.json"))
    windows = prepared(tmp_path, "the fox " * 20 + "fox " * 100).inputs[0]
    assert windows.shape == (2, 8) and windows.tolist() == [[4, 5] * 4, [5] * 8]


LLAMA = {"model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2}
BERT = {"model_type": "bert", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
BERT |= {"num_attention_heads": 2, "max_position_embeddings": 64}
T5 = {"model_type": "t5", "vocab_size": 256, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1}
BEGINS = {"bos_token": "<s>", "add_bos_token": True}


@pytest.mark.parametrize(
    ("post", "settings"),
    [
        ("<s> $A", {}),
        ("<s> $A </s>", {"bos_token": "<s>"}),
        ("<s> $A", BEGINS),
        (None, {**BEGINS, "bos_token": {"content": "<s>", "special": True}}),
    ],
)
def test_every_window_begins_as_in_training(tmp_path, post, settings):
    """By the tokenizer or by its settings; the beginning is not asked for, and the first token is."""
    library = pytest.importorskip("tokenizers")
    words(library, post).save(str(checkpoint(tmp_path, LLAMA) / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    seen = prepared(tmp_path, "the fox " * 20 + "fox " * 100)
    assert seen.inputs[0].tolist() == [[1, 4, 5, 4, 5, 4, 5, 4], [1, *[5] * 7]]
    assert seen.targets.tolist() == [[4, 5] * 4, [5] * 8]


def test_a_beginning_of_two_tokens_is_read_and_not_asked_for(tmp_path):
    library = pytest.importorskip("tokenizers")
    words(library, "</s> <s> $A").save(str(checkpoint(tmp_path, LLAMA) / "tokenizer.json"))
    seen = prepared(tmp_path, "the fox " * 20)
    assert seen.inputs[0][0].tolist() == [2, 1, 4, 5, 4, 5, 4, 5]
    assert seen.targets[0].tolist() == [-1, 4, 5, 4, 5, 4, 5, 4]


def test_both_ends_of_a_bidirectional_window_are_as_in_training(tmp_path):
    library = pytest.importorskip("tokenizers")
    words(library, "<s> $A </s>").save(str(checkpoint(tmp_path, BERT) / "tokenizer.json"))
    seen = prepared(tmp_path, "the fox " * 90, context=64)
    (tokens,) = seen.inputs
    hidden = seen.targets >= 0
    assert tokens.shape == (2, 64) and hidden.any(-1).all() and (tokens[hidden] == 3).all()
    assert (tokens[:, 0] == 1).all() and (tokens[:, -1] == 2).all() and not hidden[:, [0, -1]].any()
    assert set(tokens[:, 1:-1][~hidden[:, 1:-1]]) == {4, 5} == set(seen.targets[hidden])


def test_an_encoder_reads_an_end_and_a_decoder_its_start(tmp_path):
    library = pytest.importorskip("tokenizers")
    words(library, "$A </s>").save(str(checkpoint(tmp_path, T5) / "tokenizer.json"))
    source, target = prepared(tmp_path, "the fox " * 20, context=9).inputs
    assert source[0].tolist() == [4, 5, 4, 5, 2] and target[0].tolist() == [0, 4, 5, 4, 5]


BAD_SETTINGS = {
    "two sources": ("<s> $A", {**BEGINS, "add_bos_token": False}, "says add_bos_token false; make them agree"),
    "unknown": (None, {**BEGINS, "bos_token": "<boo>"}, "puts '<boo>' before a text, which the tokenizer does not"),
    "a list": (None, [], "must hold a JSON object; it holds list"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_of_a_tokenizer_that_cannot_be_followed(tmp_path, name):
    library = pytest.importorskip("tokenizers")
    post, settings, said = BAD_SETTINGS[name]
    words(library, post).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=said):
        vocabulary.of_folder(tmp_path, "llama", 256)


def byte_pairs(library, folder):
    """The older files of a byte-level tokenizer with two merges, and the same as one tokenizer.json."""
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*alphabet, "th", "the"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    whole = library.Tokenizer(library.models.BPE(ids, [("t", "h"), ("th", "e")]))
    whole.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = library.decoders.ByteLevel()
    return ids, whole


def test_the_older_files_of_gpt2(tmp_path):
    library = pytest.importorskip("tokenizers")
    ids, whole = byte_pairs(library, tmp_path)
    text = "the three theatres, Größe 😀\n\tend"
    read = vocabulary.of_folder(tmp_path, "gpt2", 258)
    assert read.name == "BPE tokens" and read.read("the") == [ids["the"]]
    assert read.read(text) == whole.encode(text).ids and "".join(map(read.spell, read.read("the e"))) == "the␣e"
    with pytest.raises(ValueError, match=r"merges\.txt, vocab\.json is not read here; AutoTokenizer of transformers"):
        vocabulary.of_folder(tmp_path, "qwen3", 258)
    (tmp_path / "vocab.json").write_text(json.dumps({chr(0x100 + i): i for i in range(400)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab\.json cannot be read: 188 of the 256 bytes are not in it"):
        vocabulary.of_folder(tmp_path, "gpt2", 400)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokenizer.model", r"has no tokenizer\.json, and tokenizer\.model is not read here"),
        ("spiece.model", "is not read here"),
        ("source.spm", "is not read here"),
        ("vocab.txt", "is not read here"),
        ("tokenizer_config.json", "is not read here"),
        (None, "has no tokenizer.json, and a vocabulary of 400 is not of bytes"),
    ],
)
def test_another_tokenizer_is_never_read_as_bytes(tmp_path, capsys, name, said):
    checkpoint(tmp_path, {**LLAMA, "vocab_size": 256 if name else 400})
    if name:
        (tmp_path / name).write_bytes(b"\n\x0e sentencepiece")
    out = tmp_path / "page.html"
    assert x_ray.main([str(tmp_path), "--out", str(out)]) == USAGE
    printed = capsys.readouterr()
    assert re.match(f"x_ray: .*{said}", printed.err) and printed.err.count("\n") == 1 and not out.exists()


def test_a_broken_tokenizer(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        vocabulary.of_folder(tmp_path, "gpt2", 256)
