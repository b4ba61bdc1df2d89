"""A checkpoint of real size: written a tensor at a time, and loaded by a process that says what memory it took.

    python -m tests.interop.sized FOLDER DEVICES TARGET

prints the memory of the process before and at most while it loads FOLDER, on as many devices, in bytes; the bytes of
the weights, and the most that lie on one device. With a TARGET it then decodes a few tokens, and saves the parameters
there.
"""

import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.interop import hf
from stackjax.interop.hf import folder
from stackjax.parameter import is_spec

PROMPT = [3, 1, 4]
SIZES = {
    "150 M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 12},
    "1.5 B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 30, "num_attention_heads": 16},
}


def config_of(size):
    """A Llama's config.json."""
    return {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32_000, "hidden_act": "silu"},
        **{"num_key_value_heads": SIZES[size]["num_attention_heads"] // 2, "rms_norm_eps": 1e-6},
        **{"rope_theta": 10_000.0, "tie_word_embeddings": True, "max_position_embeddings": 2048, **SIZES[size]},
    }


def write(path, size):
    """Write a checkpoint in bfloat16 and several files, without ever holding more than one tensor."""
    config = config_of(size)
    declaration = hf.describe(config).declaration()
    likes = jax.tree.map(lambda d: jax.ShapeDtypeStruct(d.shape, jnp.bfloat16), declaration, is_leaf=is_spec)
    shapes = {name: view.shape for name, view in hf.to_tensors(likes, config).items()}
    noise = np.random.default_rng(0).normal(size=1_000_003).astype(jnp.bfloat16)
    width = config["hidden_size"]

    def value(name):
        return (
            np.resize(noise, shapes[name]) if len(shapes[name]) == 1 else np.resize(noise * width**-0.5, shapes[name])
        )

    folder.write_folder(path, config, shapes, jnp.bfloat16, value, 1_000_000_000 if size == "1.5 B" else 100_000_000)


def memory(kind):
    """The memory of this process in bytes, VmRSS now or VmHWM at most (Linux); getrusage begins with its parent's."""
    return int(re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def main(source, n_devices, target=None):
    """Load a checkpoint, and with a target decode and save it."""
    jnp.zeros(8).block_until_ready()
    model, sharding = hf.describe(folder.read_config(Path(source))), None
    if int(n_devices) > 1:
        sharding = sj.shard.parameters(
            model, sj.shard.mesh(model=int(n_devices)), (("hidden", "model"), ("width", "model"))
        )
    before = memory("VmRSS")
    _, params, config = hf.load(source, dtype=jnp.bfloat16, sharding=sharding)
    said = {"before": before, "peak": memory("VmHWM"), "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(params))}
    on_device = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            on_device[shard.device] += shard.data.nbytes
    said["largest_device"] = max(on_device.values())
    if target is not None:
        made = sj.decode.generate(model, params, jnp.array([PROMPT]), n_tokens=4, dtype=jnp.bfloat16)
        said["tokens"] = made.tokens.tolist()
        hf.save(target, params, config, shard_bytes=1_000_000_000)
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
