"""Checkpoints in and out, without `transformers`: what is read, what is refused, and how much memory it takes."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from stackjax import tensor_file
from stackjax.interop import hf
from stackjax.interop.hf import config as options
from stackjax.interop.hf import folder, mapping
from stackjax.parameter import is_spec
from tests.interop.configs import CONFIGS


def random_params(config, dtype=jnp.float32):
    random = np.random.default_rng(0)
    declaration = hf.describe(config).declaration()
    return jax.tree.map(lambda d: jnp.asarray(random.normal(size=d.shape), dtype), declaration, is_leaf=is_spec)


def checkpoint(kind, path, dtype=jnp.float32, **more):
    """Save a random checkpoint; returns its parameters."""
    params = random_params(CONFIGS[kind], dtype)
    hf.save(path, params, CONFIGS[kind], **more)
    return params


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b))
    )


def rewrite(path, change):
    """Change the tensors of a saved checkpoint with the format's own library."""
    file = path / folder.SINGLE
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


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


def test_shards(tmp_path):
    params = checkpoint("llama", tmp_path / "a", shard_bytes=3000)
    files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 3 and not (tmp_path / "a" / folder.SINGLE).exists()
    index = json.loads((tmp_path / "a" / folder.INDEX).read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert same(hf.load(tmp_path / "a").params, params)
    last = files[-1]
    (tmp_path / "a" / last).unlink()
    with pytest.raises(ValueError, match=rf"lacks {last}, which .* promises for tensor model"):
        hf.load(tmp_path / "a")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_format_is_the_librarys(dtype, tmp_path):
    values = {"a": np.arange(6, dtype=dtype).reshape(2, 3), "b": np.array(2, dtype), "c": np.zeros((0, 3), dtype)}
    tensor_file.write(tmp_path / "x", {name: (x.shape, dtype) for name, x in values.items()}, values.__getitem__)
    read = safetensors.numpy.load_file(tmp_path / "x")
    safetensors.numpy.save_file(values, tmp_path / "y")
    for name, tensor in tensor_file.read_header(tmp_path / "y").items():
        for found in (read[name], tensor.read()):
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, values[name])


def test_dtypes(tmp_path):
    params = checkpoint("gpt2", tmp_path / "half", dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert same(hf.load(tmp_path / "half", dtype=jnp.bfloat16).params, params)
    widened = hf.load(tmp_path / "half").params
    assert same(widened, jax.tree.map(lambda x: x.astype(jnp.float32), params))
    with pytest.raises(ValueError, match=r"needs jax\.enable_x64"):
        hf.load(tmp_path / "half", dtype=np.float64)
    mixed = {**params, "embedding": widened["embedding"]}
    with pytest.raises(ValueError, match="several dtypes"):
        hf.save(tmp_path / "mixed", mixed, CONFIGS["gpt2"])
    hf.save(tmp_path / "mixed", mixed, CONFIGS["gpt2"], dtype=jnp.bfloat16)
    assert same(hf.load(tmp_path / "mixed", dtype=jnp.bfloat16).params, params)


def test_sharding(tmp_path):
    params = checkpoint("llama", tmp_path / "a")
    mesh = jax.make_mesh((2,), ("model",), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "model"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    places = jax.tree.map(lambda leaf: split if leaf.ndim == 3 else whole, params)
    loaded = hf.load(tmp_path / "a", sharding=places).params
    assert jax.tree.all(jax.tree.map(lambda leaf, place: leaf.sharding == place, loaded, places))
    assert same(loaded, params)


def test_memory_is_one_copy_and_one_tensor(tmp_path):
    sizes = {"num_hidden_layers": 16, "hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    config = {**CONFIGS["llama"], **sizes}
    params = random_params(config)
    hf.save(tmp_path / "a", params, config, shard_bytes=4_000_000)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    tensor = max(view.read().nbytes for view in hf.to_tensors(params, config).values())
    assert weights > 30 * tensor
    hf.load(tmp_path / "a")
    tracemalloc.start()
    kept = hf.load(tmp_path / "a")
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert weights < after, "JAX holds copies, which are not traced"
    assert peak < weights + 1.5 * tensor
    assert same(kept.params, params)


def test_loaded_parameters_may_be_donated(tmp_path):
    params = checkpoint("llama", tmp_path / "a")
    loaded = hf.load(tmp_path / "a").params
    moved = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(loaded)
    assert same(moved, jax.tree.map(lambda x: x + 1, params))


HARM = {
    "missing": (lambda t: t.pop("model.norm.weight"), "missing tensors: model.norm.weight"),
    "unexpected": (lambda t: t.update(extra=np.zeros(2, np.float32)), "unexpected tensors, .*: extra"),
    "both": (
        lambda t: t.update(one=t.pop("model.norm.weight"), two=np.zeros(2, np.float32)),
        "missing tensors: model.norm.weight; unexpected tensors, .*: one, two",
    ),
    "misshapen": (
        lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)}),
        r"tensor model.norm.weight is \[3\]; config.json asks for \[16\]",
    ),
    "integers": (
        lambda t: t.update({"model.norm.weight": np.zeros(16, np.int8)}),
        "tensor model.norm.weight is stored as I8",
    ),
}


@pytest.mark.parametrize("kind", HARM)
def test_harmed(kind, tmp_path):
    checkpoint("llama", tmp_path / "a")
    rewrite(tmp_path / "a", HARM[kind][0])
    with pytest.raises(ValueError, match=HARM[kind][1]):
        hf.load(tmp_path / "a")


@pytest.mark.parametrize("cut", [4, 1000, -10])
def test_truncated(cut, tmp_path):
    checkpoint("llama", tmp_path / "a")
    file = tmp_path / "a" / folder.SINGLE
    file.write_bytes(file.read_bytes()[:cut])
    message = r"truncated: tensor model\.layers" if cut == -10 else "not a safetensors file, or its header is cut short"
    with pytest.raises(ValueError, match=message):
        hf.load(tmp_path / "a")


def test_broken_header(tmp_path):
    checkpoint("llama", tmp_path / "a")
    file = tmp_path / "a" / folder.SINGLE
    content = file.read_bytes()
    file.write_bytes(content[:8] + content[8:].replace(b'"dtype"', b'"dtyqe"', 1))
    with pytest.raises(ValueError, match="header cannot be read"):
        hf.load(tmp_path / "a")
    file.write_bytes(content[:8] + content[8:].replace(b'"shape":[16]', b'"shape":[61]', 1))
    with pytest.raises(ValueError, match=r"tensor model.norm.weight has 64 bytes, which is not \[61\]"):
        hf.load(tmp_path / "a")


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="is none"):
        hf.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        hf.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["gpt2"]))
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        hf.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, which is never opened"):
        hf.load(tmp_path)
    for name in ("a", "b"):
        safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="2 safetensors files"):
        hf.load(tmp_path)
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        checkpoint("gpt2", tmp_path)


def test_hub(tmp_path, monkeypatch):
    """A name that is no folder goes to the hub's client, if there is one."""
    checkpoint("gpt2", tmp_path / "a")

    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            assert name == "someone/gpt2" and allow_patterns == ["*.json", "*.safetensors"]
            return str(tmp_path / "a")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", Hub)
    assert hf.load("someone/gpt2").model == hf.describe(CONFIGS["gpt2"])
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="install huggingface_hub"):
        hf.load("someone/gpt2")


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


def test_a_single_file_counts_before_an_index(tmp_path):
    """The order of transformers; the index of an earlier, sharded save may still lie there."""
    params = checkpoint("llama", tmp_path / "a")
    stale = tmp_path / "a" / "model-00001-of-00001.safetensors"
    stale.write_bytes((tmp_path / "a" / folder.SINGLE).read_bytes())
    index = {"weight_map": dict.fromkeys(safetensors.numpy.load_file(stale), stale.name)}
    (tmp_path / "a" / folder.INDEX).write_text(json.dumps(index))
    rewrite(tmp_path / "a", lambda t: t.update({"model.norm.weight": t["model.norm.weight"] + 1}))
    loaded = hf.load(tmp_path / "a").params["stack"]["leave"]["inner"]["norm"]["scale"]
    np.testing.assert_array_equal(loaded, params["stack"]["leave"]["inner"]["norm"]["scale"] + 1)


def test_a_shard_gives_what_the_index_says_it_gives(tmp_path):
    params = checkpoint("llama", tmp_path / "a", shard_bytes=3000)
    index = json.loads((tmp_path / "a" / folder.INDEX).read_text())["weight_map"]
    other = tmp_path / "a" / next(file for file in index.values() if file != index["model.norm.weight"])
    tensors = safetensors.numpy.load_file(other)
    safetensors.numpy.save_file({**tensors, "model.norm.weight": np.zeros(16, np.float32)}, other)
    assert same(hf.load(tmp_path / "a").params, params)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/outside.safetensors", "..\\outside", "C:x", "a/b", ".."])
def test_no_file_outside_the_folder(place, tmp_path):
    checkpoint("llama", tmp_path / "a")
    file = tmp_path / "a" / folder.SINGLE
    names = list(safetensors.numpy.load_file(file))
    file.rename(tmp_path / "outside.safetensors")
    place = str(tmp_path) + place if place.startswith("/") else place
    (tmp_path / "a" / folder.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, place)}))
    with pytest.raises(ValueError, match="lie in its own folder" if place != ".." else r"own folder|lacks \.\."):
        hf.load(tmp_path / "a")


BROKEN = {
    folder.INDEX: ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{", "[" * 100_000],
    "config.json": ["[]", "{", '"text"', "[" * 100_000, "\xff"],
}


@pytest.mark.parametrize("name, text", [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_broken_json(name, text, tmp_path):
    checkpoint("llama", tmp_path / "a")
    (tmp_path / "a" / folder.SINGLE).unlink()
    (tmp_path / "a" / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=name):
        hf.load(tmp_path / "a")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]},
        {"dtype": "F32", "shape": [16], "data_offsets": [0]},
        {"dtype": "F32", "shape": [16], "data_offsets": [0, 1e300]},
        {"dtype": ["F32"], "shape": [16], "data_offsets": [0, 64]},
    ],
)
def test_impossible_entries_of_a_header(entry, tmp_path):
    header = json.dumps({"model.norm.weight": entry}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(128))
    with pytest.raises(ValueError, match="header cannot be read"):
        tensor_file.read_header(tmp_path / "x")


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
