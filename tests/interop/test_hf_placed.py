"""Where loaded parameters lie: dtypes, shardings, and how much memory loading takes."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stackjax.interop import hf
from tests.interop.configs import CONFIGS
from tests.interop.saved import checkpoint, random_params, same


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


def test_parts_of_a_mesh_are_filled_from_the_tensors(tmp_path):
    """Layers, rows and columns split over devices, and some kept whole on all; what is on them may be donated."""
    params = checkpoint("mixtral", tmp_path / "a")
    mesh = jax.make_mesh((2, 2), ("x", "y"), devices=jax.devices()[:4])

    def place(leaf):
        names = [name if size % 2 == 0 else None for name, size in zip(("x", "y"), leaf.shape[::-1], strict=False)]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*(None,) * (leaf.ndim - 2), *names[::-1]))

    def by_layer(leaf):
        split = "x" if leaf.shape[0] % 2 == 0 else None
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(split))

    for places in (jax.tree.map(place, params), jax.tree.map(by_layer, params)):
        assert len({str(one.spec) for one in jax.tree.leaves(places)}) > 1
        loaded = hf.load(tmp_path / "a", sharding=places).params
        assert jax.tree.all(jax.tree.map(lambda leaf, one: leaf.sharding == one, loaded, places))
        assert same(loaded, params)
        moved = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(loaded)
        assert same(moved, jax.tree.map(lambda x: x + 1, params))
