"""An X-ray: right where the answer is known, one page, and nothing at all for bad input."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab.command_line import OK, USAGE
from experiments.x_ray import __main__ as x_ray
from experiments.x_ray import picture, reading, subject
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
