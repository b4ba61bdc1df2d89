"""Folders and files of checkpoints: shards, headers, what is broken, and what is outside."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from stackjax import tensor_file
from stackjax.interop import hf
from stackjax.interop.hf import folder
from tests.interop.configs import CONFIGS
from tests.interop.saved import checkpoint, rewrite, same


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
