"""Checkpoints in and out, without `transformers`: tables of tensors, names, and what is refused."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from stackjax.interop import hf
from stackjax.interop.hf import config as options
from stackjax.interop.hf import folder, mapping
from tests.interop.configs import CONFIGS
from tests.interop.saved import checkpoint, random_params, rewrite, same


@pytest.mark.parametrize("kind", CONFIGS)
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    params = checkpoint(kind, tmp_path / "a")
    model, back, config = hf.load(tmp_path / "a")
    assert model == hf.describe(CONFIGS[kind]) and same(back, params)
    assert config == {**CONFIGS[kind], "dtype": "float32"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_matters(kind, tmp_path):
    """Each tensor of the file lands in the parameters, and nowhere twice."""
    params = checkpoint(kind, tmp_path / "a")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    tensors = safetensors.numpy.load_file(tmp_path / "a" / folder.SINGLE)
    assert sum(value.size for value in tensors.values()) == count
    for name, view in hf.to_tensors(params, CONFIGS[kind]).items():
        np.testing.assert_array_equal(view.read(), tensors[name])


def test_orientation_is_torchs(tmp_path):
    """Linear layers are stored (out, in), GPT-2's (in, out) and side by side."""
    params = checkpoint("llama", tmp_path / "llama")
    tensors = safetensors.numpy.load_file(tmp_path / "llama" / folder.SINGLE)
    own = params["stack"]["segments"]["0"]["0"]
    np.testing.assert_array_equal(tensors["model.layers.2.self_attn.k_proj.weight"], own["attention"]["key"][2].T)
    params = checkpoint("gpt2", tmp_path / "gpt2")
    own = params["stack"]["segments"]["0"]["0"]["attention"]
    tensors = safetensors.numpy.load_file(tmp_path / "gpt2" / folder.SINGLE)
    fused = np.concatenate([own[name][1] for name in ("query", "key", "value")], -1)
    np.testing.assert_array_equal(tensors["transformer.h.1.attn.c_attn.weight"], fused)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_split_and_join(groups):
    parts = tuple(mapping.Part(path=name, index=(), shape=(5, width)) for name, width in (("a", 6), ("b", 12)))
    link = mapping.Link(name="both", parts=parts, transposed=True, groups=groups)
    value = np.arange(90.0).reshape(18, 5)
    assert link.shape == value.shape
    a, b = link.split(value)
    grouped = value.reshape(groups, 18 // groups, 5)
    np.testing.assert_array_equal(a.T.reshape(groups, -1, 5), grouped[:, : 6 // groups])
    np.testing.assert_array_equal(b.T.reshape(groups, -1, 5), grouped[:, 6 // groups :])
    np.testing.assert_array_equal(link.join([a, b]), value)


def test_parameters_of_another_model(tmp_path):
    params = random_params(CONFIGS["gpt2"])
    with pytest.raises(ValueError, match=r"not those of the config's model: .* is "):
        hf.save(tmp_path / "a", params, {**CONFIGS["gpt2"], "n_layer": 2})


def test_tied_tensors(tmp_path):
    """A tied tensor may be in the file twice; two that differ are refused."""
    params = checkpoint("gpt2", tmp_path / "a")
    token = np.asarray(params["embedding"]["token"])
    rewrite(tmp_path / "a", lambda t: t.update({"lm_head.weight": token}))
    assert same(hf.load(tmp_path / "a").params, params)
    rewrite(tmp_path / "a", lambda t: t.pop("transformer.wte.weight"))
    assert same(hf.load(tmp_path / "a").params, params)
    rewrite(tmp_path / "a", lambda t: t.update({"transformer.wte.weight": token + 1}))
    with pytest.raises(ValueError, match=r"ties tensor lm_head.weight to transformer.wte.weight, but they differ"):
        hf.load(tmp_path / "a")


def test_older_names(tmp_path):
    """GPT-2 without its prefix and with its mask; BERT with gamma and beta, and with heads that are not read."""

    def older_gpt2(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)

    def older_bert(tensors):
        for name in list(tensors):
            older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[older] = tensors.pop(name)
        tensors["bert.pooler.dense.bias"] = np.ones(16, np.float32)

    for kind, change in (("gpt2", older_gpt2), ("bert", older_bert)):
        params = checkpoint(kind, tmp_path / kind)
        rewrite(tmp_path / kind, change)
        assert same(hf.load(tmp_path / kind).params, params)


def test_an_architecture_of_your_own(tmp_path):
    mine = {"mine": hf.ARCHITECTURES["gpt2"]}
    config = {**CONFIGS["gpt2"], "model_type": "mine"}
    params = random_params(CONFIGS["gpt2"])
    hf.save(tmp_path / "a", params, config, architectures=mine)
    assert same(hf.load(tmp_path / "a", architectures=mine).params, params)


def test_a_table_accounts_for_every_parameter():
    model, table = hf.ARCHITECTURES["gpt2"].describe(options.Config(CONFIGS["gpt2"]))
    short = {name: rule for name, rule in table.items() if "c_fc" not in name}
    lacking = "all of stack/0/feed_forward/up, .*stack/2/feed_forward/up_bias; its rows that name nothing: none"
    with pytest.raises(ValueError, match=lacking):
        mapping.unfold(model.declaration(), short)
    misspelt = {**short, "transformer.h.{layer}.mlp.c_fc": mapping.stored("stack/{layer}/feed_forward/upp")}
    with pytest.raises(ValueError, match=r"name nothing: transformer\.h\.\{layer\}\.mlp\.c_fc"):
        mapping.unfold(model.declaration(), misspelt)
    twice = {**table, "again": mapping.tensor("embedding/token")}
    with pytest.raises(ValueError, match=r"names embedding/token .* 2 times"):
        mapping.unfold(model.declaration(), twice)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_output_is_not_tied_in_silence(kind, tmp_path):
    """Without an output matrix and with tie_word_embeddings false, transformers draws a new one; here it is refused."""
    checkpoint(kind, tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: t.pop("lm_head.weight"))
    with pytest.raises(
        ValueError, match=r"missing tensors: lm_head\.weight; config\.json does not tie lm_head\.weight"
    ):
        hf.load(tmp_path / "a")


def test_two_names_of_one_tensor(tmp_path):
    checkpoint("gpt2", tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: t.update({"ln_f.weight": t["transformer.ln_f.weight"] + 1}))
    with pytest.raises(
        ValueError, match=r"transformer\.ln_f\.weight and ln_f\.weight are both|ln_f\.weight and transf"
    ):
        hf.load(tmp_path / "a")


def test_a_further_prediction_layer_is_not_read(tmp_path):
    """DeepSeek-V3's folder holds one layer behind the stack; a second one would be unknown."""
    params = checkpoint("deepseek_v3", tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: t.update({"model.layers.3.eh_proj.weight": np.ones((2, 2), np.float32)}))
    assert same(hf.load(tmp_path / "a").params, params)
    rewrite(tmp_path / "a", lambda t: t.update({"model.layers.4.eh_proj.weight": np.ones((2, 2), np.float32)}))
    with pytest.raises(ValueError, match=r"unexpected .*: model\.layers\.4\.eh_proj\.weight"):
        hf.load(tmp_path / "a")


def test_ignored_names(tmp_path):
    """What the caller names is left out, with a warning; a name that ignores nothing is refused."""
    params = checkpoint("llama", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "mtp": True}))
    rewrite(tmp_path / "a", lambda t: t.update({"mtp.a": np.ones(2, np.float32), "mtp.b": np.ones(2, np.float32)}))
    with pytest.warns(UserWarning, match=r"ignored, as asked for: mtp, mtp\.a, mtp\.b"):
        loaded = hf.load(tmp_path / "a", ignore=("mtp", "mtp.*"))
    assert same(loaded.params, params) and loaded.config == config
    with pytest.raises(ValueError, match=r"ignore=\('hidden_size',\) names no option or tensor that"):
        hf.load(tmp_path / "a", ignore=("mtp", "mtp.*", "hidden_size"))
    with pytest.raises(ValueError, match=r"unexpected .*: mtp\.b"):
        hf.load(tmp_path / "a", ignore=("mtp", "mtp.a"))


def test_addresses():
    listed = hf.addresses(hf.describe(CONFIGS["gemma3_text"]))
    assert listed["stack/5/attention/query"] == (16, 32) and listed["embedding/token"] == (11, 16)
    assert sum(name.endswith("feed_forward/up") for name in listed) == 7


def test_a_tensor_that_may_be_left_out_is_zero(tmp_path):
    """BartModel's folders have no final_logits_bias, and no prefix."""
    params = checkpoint("bart", tmp_path / "a")

    def shorten(tensors):
        tensors.pop("final_logits_bias")
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(tmp_path / "a", shorten)
    loaded = hf.load(tmp_path / "a").params
    assert same(loaded["source"], params["source"]) and not loaded["decoder"]["head"]["bias"].any()
