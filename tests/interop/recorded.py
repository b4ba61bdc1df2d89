"""Small fixed checkpoints, and what `transformers` made of them, so that tests can compare without it.

python -m tests.interop.recorded        write recorded.json again (needs the extra `oracle`)
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.interop import hf
from stackjax.parameter import is_spec
from tests.interop.configs import CONFIGS

PATH = Path(__file__).with_suffix(".json")
TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
REAL = TOKENS > 0
IMAGES = np.sin(np.arange(2 * 2 * 6 * 6, dtype=np.float32) ** 1.1).reshape(2, 2, 6, 6)
SOURCE = np.array([[2, 7, 1, 8, 2, 8, 1], [8, 2, 8, 0, 0, 0, 0]])


def fixed_params(kind):
    """Parameters by formula, the same on every machine."""
    leaves, tree = jax.tree.flatten(hf.describe(CONFIGS[kind]).declaration(), is_leaf=is_spec)
    waves = [0.5 * np.sin(1.7 * np.arange(np.prod(leaf.shape)) ** 1.1 + i) for i, leaf in enumerate(leaves)]
    shaped = [jnp.asarray(wave.reshape(leaf.shape), jnp.float32) for wave, leaf in zip(waves, leaves, strict=True)]
    return jax.tree.unflatten(tree, shaped)


def reference(kind, folder):
    """Logits of the real tokens by `transformers`, and of all where it reads one alone."""
    import torch
    import transformers

    config = {**CONFIGS[kind], "pad_token_id": 0, "decoder_start_token_id": 0}
    hf.save(folder, fixed_params(kind), config)
    name = hf.ARCHITECTURES[kind].classes[0]
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
    side_inputs = {"input_ids": torch.tensor(TOKENS), "attention_mask": torch.tensor(REAL.astype(int))}
    if model.config.is_encoder_decoder:
        side_inputs = {"decoder_" + key: value for key, value in side_inputs.items()}
        side_inputs |= {"input_ids": torch.tensor(SOURCE), "attention_mask": torch.tensor((SOURCE > 0).astype(int))}
    with torch.no_grad():
        if kind == "vit":
            outputs = model.classifier(model.vit(pixel_values=torch.tensor(IMAGES)).last_hidden_state)
            return outputs.numpy().reshape(-1, outputs.shape[-1])
        if kind == "clip_text_model":
            return model.text_projection(model.text_model(**side_inputs).last_hidden_state).numpy()[REAL]
        return model(**side_inputs).logits.numpy()[REAL]


if __name__ == "__main__":
    found = {}
    for kind in CONFIGS:
        with TemporaryDirectory() as folder:
            found[kind] = [[float(f"{x:.7g}") for x in row] for row in reference(kind, Path(folder) / "a")]
    PATH.write_text("{\n" + ",\n".join(f'"{kind}": {json.dumps(rows)}' for kind, rows in found.items()) + "\n}\n")
