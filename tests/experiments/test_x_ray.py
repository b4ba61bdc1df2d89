"""An X-ray: right where the answer is known, one page, and nothing at all for bad input."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab.command_line import OK, USAGE
from experiments.x_ray import __main__ as x_ray
from experiments.x_ray import picture, reading, subject, vocabulary
from stackjax import loss
from stackjax.interop import hf
from tests.experiments.browser import use

DEAD = 1
GPT2 = {"model_type": "gpt2", "vocab_size": 256, "n_positions": 64, "n_embd": 16, "n_layer": 3, "n_head": 2}
TEXT = "The quick brown fox jumps over the lazy dog, again and again, until it is told not to.\n" * 3


def dying(params):
    """The same with a layer that adds nothing."""

    def kill(path, leaf):
        last = jax.tree_util.keystr(path)
        return leaf.at[DEAD].set(0) if "'out" in last or "'down" in last else leaf

    return jax.tree_util.tree_map_with_path(kill, params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a dead layer, and a text beside it."""
    path = tmp_path_factory.mktemp("x_ray") / "mine"
    hf.save(path, dying(jax.jit(hf.describe(GPT2).init)(jax.random.key(0))), GPT2)
    (path / "text.txt").write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def seen(folder):
    found = subject.of_folder(str(folder), jnp.float32)
    prepared = subject.prepare(found, str(folder / "text.txt"), context=24, windows=2, dtype=jnp.float32)
    heard = []
    return prepared, reading.read(prepared, heard.append), heard


def test_a_dead_layer_is_seen(seen):
    _, found, _ = seen
    change = found.without[""] - found.whole.loss
    assert change[DEAD] == 0 and np.all(np.delete(np.abs(change), DEAD) > 1e-4)
    assert found.lens[DEAD].loss == found.lens[DEAD + 1].loss != found.lens[DEAD + 2].loss
    measure = found.measure[""]
    assert measure["branch_ratio/attention"][DEAD] == 0 and measure["cosine"][DEAD] == pytest.approx(1)
    assert measure["cosine"][0] < 0.999


def test_the_ends_of_the_lens(seen):
    """All layers is the model; none is its head on its embedding."""
    prepared, found, _ = seen
    model, params, tokens = prepared.model, prepared.params, jnp.asarray(prepared.inputs[0])
    np.testing.assert_array_equal(prepared.targets[:, :-1], prepared.inputs[0][:, 1:])
    logits, _ = jax.jit(model.apply)(params, tokens)
    assert found.whole.loss == pytest.approx(float(loss.cross_entropy(logits, prepared.targets)), rel=1e-5)
    assert found.settled[-1] == 1 and found.lens[-1].loss == found.whole.loss
    embedded = model.embedding.apply(params["embedding"], tokens)
    alone = model.logits(params, model.stack.leave(params["stack"], embedded))
    assert found.lens[0].loss == pytest.approx(float(loss.cross_entropy(alone, prepared.targets)), rel=1e-5)
    np.testing.assert_array_equal(found.lens[0].top, jnp.argmax(alone, -1))


def test_progress_is_heard(seen):
    prepared, _, heard = seen
    assert len(heard) == reading.steps(prepared) == 1 + 3 + 4


def test_the_page(seen):
    page = picture.html(*seen[:2], "python -m experiments.x_ray <folder>")
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', page, re.S).group(1).replace("<\\/", "</"))
    assert list(specs) == ["layers_", "without_", "lens", "guesses"]
    assert all(f'id="{name}"' in page for name in specs) and "http" not in json.dumps(specs)
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert "http" not in outside and "src=" not in outside and "@import" not in outside and "url(" not in outside
    assert f"Layer {int(np.argmin(seen[1].without['']))} is worth least" in page
    assert "x_ray &lt;folder&gt;" in page and "text.txt" in page


@pytest.mark.thorough
def test_a_browser_uses_the_page(seen, browser, tmp_path, monkeypatch):
    monkeypatch.undo()  # the code that draws is wanted here
    path = tmp_path / "page.html"
    path.write_text(picture.html(*seen[:2], "python -m experiments.x_ray <folder>"))
    use(browser, path)


def test_a_loss_that_is_no_number_stays_readable(seen):
    """Without some layers a model may break down altogether."""
    prepared, found, _ = seen
    broken = dataclasses.replace(found, without={"": np.array([np.nan, np.inf, 1.0])})
    page = picture.html(prepared, broken, "")
    specs = re.search(r'id="specs">(.*?)</script>', page, re.S).group(1)
    assert "NaN" not in specs and "Infinity" not in specs
    assert "Layer 0 is worth most: without it the loss is no number. Layer 2 is worth least" in page


@pytest.mark.thorough
def test_two_stacks(monkeypatch):
    """An encoder-decoder: both are read, each by itself."""
    small = {"model_type": "t5", "vocab_size": 256, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    monkeypatch.setitem(subject.CONFIGS, "t5", {**small, "num_layers": 2, "num_decoder_layers": 1})
    found = subject.of_random("t5", 0, jnp.float32)
    prepared = subject.prepare(found, None, context=16, windows=2, dtype=jnp.float32)
    assert [tokens.shape for tokens in prepared.inputs] == [(2, 8), (2, 9)] and not prepared.inputs[1][:, 0].any()
    np.testing.assert_array_equal(prepared.inputs[1][:, 1:], prepared.targets[:, :-1])
    read = reading.read(prepared)
    assert {side: len(values) for side, values in read.without.items()} == {"encoder": 2, "decoder": 1}
    assert len(read.lens) == 2 and not np.isclose(read.without["encoder"], read.whole.loss, rtol=1e-5).any()
    assert "in the encoder" in picture.html(prepared, read, "")


def test_bidirectional_models_guess_hidden_tokens(monkeypatch):
    monkeypatch.setitem(subject.CONFIGS, "bert", {**subject.CONFIGS["bert"], "num_hidden_layers": 1})
    found = subject.of_random("bert", 0, jnp.float32)
    prepared = subject.prepare(found, None, context=32, windows=4, dtype=jnp.float32)
    asked = prepared.targets >= 0
    assert 0 < asked.mean() < 0.4 and asked.any(-1).all()
    assert not prepared.inputs[0][asked].any() and prepared.targets[asked].all()


def test_at_the_command_line(folder, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    words = [str(folder), "--text", str(folder / "text.txt"), "--context", "24", "--windows", "2", "--out", str(out)]
    assert x_ray.main(words) == OK
    said = capsys.readouterr()
    assert said.out == f"{out}\n" and "9/9" in said.err and "done" in said.err
    assert "X-ray of mine" in out.read_text()


BAD = {
    "nothing to read": ([], "give a folder, or --random"),
    "both": (["{folder}", "--random", "gpt2"], "give a folder, or --random"),
    "unknown architecture": (["--random", "mamba"], "--random knows gpt2, bert"),
    "no folder": (["{empty}/nowhere"], "is none"),
    "no checkpoint": (["{empty}"], r"has no config\.json"),
    "no text": (["{folder}", "--text", "{empty}/nowhere.txt"], "no such file"),
    "Latin-1": (["{folder}", "--text", "{latin}"], "latin: not UTF-8"),
    "narrow windows": (["{folder}", "--context", "3"], "a window of 3 tokens is too short"),
    "short text": (["{folder}", "--text", "{short}"], "2 tokens, which is too short"),
    "no window": (["{folder}", "--windows", "0"], "--windows must be 1 or more; got 0"),
    "no number": (["{folder}", "--context", "many"], "invalid"),
    "out is a folder": (["{folder}", "--out", "{empty}"], "is a folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").write_text("no")
    (tmp_path / "latin").write_bytes("Größe ".encode("latin-1") * 99)
    before = sorted(tmp_path.rglob("*"))
    words, message = BAD[name]
    places = {"folder": folder, "empty": tmp_path / "empty"}
    places |= {name: tmp_path / name for name in ("short", "latin")}
    assert x_ray.main([word.format(**places) for word in words]) == USAGE
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and re.match(f"x_ray: .*{message}", said.err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_text_outside_the_vocabulary():
    small = hf.Checkpoint(hf.describe({**GPT2, "vocab_size": 32}), {}, GPT2)
    with pytest.raises(ValueError, match=r"vocabulary of 32 does not hold .* bytes; put its tokenizer\.json"):
        subject.prepare(("small", small, subject.BYTES), None, context=8, windows=1, dtype=jnp.float32)


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


def test_no_text_reaches_the_page_as_markup(seen):
    """Names, tokens and commands that try to end a script or an expression."""
    evil = """</script><!--<script>'"]\\\u2028<img src=x onerror=alert(1)>"""
    read = dataclasses.replace(seen[0].vocabulary, name=evil, spell=lambda token: f"{evil}{token}")
    page = picture.html(dataclasses.replace(seen[0], vocabulary=read, name=evil, text=evil), seen[1], evil)
    plain = picture.html(*seen[:2], "")
    for mark in ("<script", "</script", "<!--", "<img"):
        assert page.count(mark) == plain.count(mark)
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', page, re.S).group(1))
    axis = specs["guesses"]["layer"][0]["encoding"]["x"]["axis"]["labelExpr"]
    labels = json.loads(axis.removesuffix("[datum.value]"))
    assert len(labels) == picture.MOST_TOKENS and set(labels) == {evil[:7] + "…"}


def test_weights_that_are_broken(seen):
    prepared = dataclasses.replace(seen[0], params=jax.tree.map(lambda x: x * jnp.nan, seen[0].params))
    with pytest.raises(ValueError, match="loss on this text is nan"):
        reading.read(prepared)
