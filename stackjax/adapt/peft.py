"""An adapter alone in the common format: PEFT's adapter_config.json and adapter_model.safetensors."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import tensor_file
from stackjax.abstract_model import AbstractModel
from stackjax.adapt.factors import LowRank, factor_of, held_by
from stackjax.parameter import path_name
from stackjax.sublayer import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN = {"bias": "none", "fan_in_fan_out": False, "use_dora": False, "use_rslora": False, "modules_to_save": None}
"""PEFT's options that change what an adapter computes, with the only values that are written and read."""

DRAWN = (None, True, False, "gaussian", "eva", "orthogonal")
"""PEFT's `init_lora_weights` that leave the base model's own matrices as they are."""

INERT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
    *("corda_config", "eva_config", "init_lora_weights", "lora_dropout", "megatron_core", "qalora_group_size"),
    *("rank_pattern", "alpha_pattern", "runtime_config"),
}
"""PEFT's options that change nothing once the factors are drawn, or are looked at by themselves."""


def save(
    folder: str | os.PathLike[str], adapted: AbstractModel, params: Params, *, names: Mapping[str, str] | None = None
) -> None:
    """Write the factors alone, as PEFT has them: adapter_config.json and adapter_model.safetensors.

    Each layer's factors are tensors of their own, base_model.model.<module>.lora_A.weight (rank, I) and
    lora_B.weight (O, rank). PEFT finds its modules by name; which of another library's modules holds the same matrix,
    in the same order of rows and columns, is for the caller to say. The base model is not named.

    Args:
        folder: made if it is not there; an adapter that it holds is replaced.
        adapted: what `low_rank` made of the model.
        params: its parameters.
        names: {matrix: module}, e.g. {"stack/attention/query": "model.layers.{layer}.self_attn.q_proj"}; matrices that
            are not in it are called after themselves, stack.layers.3.attention.query.

    Raises:
        ValueError: factors of experts, or magnitudes, which the format has not (`stackjax.save` writes both); names of
            no matrix.
    """
    held, tensors = _without_magnitude(adapted), {}
    leaves = dict(jax.tree_util.tree_leaves_with_path(params))
    for name, (path, row) in _tensors(adapted, names or {}).items():
        leaf = leaves[path]
        tensors[name] = np.asarray(leaf if row is None else leaf[row]).T
    modules = sorted({name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in tensors})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": held.rank,
        "lora_alpha": held.alpha,
        "target_modules": modules,
        **PLAIN,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    tensor_file.write(folder / WEIGHTS, written, tensors.__getitem__)
    partial = folder / f"{CONFIG}.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, folder / CONFIG)


def load(
    folder: str | os.PathLike[str], adapted: AbstractModel, params: Params, *, names: Mapping[str, str] | None = None
) -> Params:
    """The parameters with the factors that a folder holds.

    Args:
        folder: as `save` or PEFT wrote it.
        adapted: what `low_rank` made of the model, with the adapter's rank and alpha.
        params: its parameters.
        names: as for `save`.

    Raises:
        ValueError: an adapter of another rank, alpha or kind, or with tensors that are missing, unknown or of other
            shapes.
    """
    folder = Path(folder)
    held = _without_magnitude(adapted)
    try:
        config = json.loads((folder / CONFIG).read_text())
        config = {"peft_type": None, "r": None, "lora_alpha": None, **config}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no adapter whose {CONFIG} can be read: {error}") from error
    wanted = {"peft_type": "LORA", "r": held.rank, "lora_alpha": held.alpha, **PLAIN}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(f"the adapter has {key}={config[key]!r}; this model needs {value!r}")
    if patterns := [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]:
        raise ValueError(f"the adapter has {patterns[0]}, other ranks for some matrices, which is not read")
    if config.get("init_lora_weights") not in DRAWN:
        changed = config["init_lora_weights"]
        raise ValueError(f"the adapter has init_lora_weights={changed!r}, beside a base model with other matrices")
    if unknown := sorted(key for key in config.keys() - wanted.keys() - INERT if config[key]):
        raise ValueError(f"the adapter has {unknown[0]}={config[unknown[0]]!r}, which is not read")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} lacks {WEIGHTS}")
    stored, expected = tensor_file.read_header(folder / WEIGHTS), _tensors(adapted, names or {})
    if different := sorted(stored.keys() ^ expected.keys()):
        which = "lacks" if different[0] in expected else "has more than this model:"
        raise ValueError(f"{WEIGHTS} {which} {different[0]}")
    rows: dict[tuple, dict[int | None, np.ndarray]] = {}
    for name, (path, row) in expected.items():
        rows.setdefault(path, {})[row] = stored[name].read().T

    def placed(path: tuple, leaf: jax.Array) -> jax.Array:
        if path not in rows:
            return leaf
        value = rows[path][None] if None in rows[path] else np.stack([rows[path][row] for row in sorted(rows[path])])  # pyright: ignore
        if value.shape != leaf.shape:
            raise ValueError(f"{path_name(path)} must have shape {leaf.shape}; the adapter has {value.shape}")
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(placed, params)


def _without_magnitude(adapted: AbstractModel) -> LowRank:
    """An adapted sublayer of the model.

    Raises:
        ValueError: one with magnitudes.
    """
    held = held_by(adapted)
    if held.magnitude:
        raise ValueError("magnitudes (DoRA) are not written in PEFT's format: use stackjax.save")
    return held


def _tensors(adapted: AbstractModel, names: Mapping[str, str]) -> dict[str, tuple[tuple, int | None]]:
    """PEFT's name of each layer's factors: the path of the leaf, and its row there."""
    tensors: dict[str, tuple[tuple, int | None]] = {}
    used = set()
    for path, d in jax.tree_util.tree_leaves_with_path(adapted.declaration()):
        if (place := factor_of(path)) is None:
            continue
        if len(d.spec.shape) > 2:
            raise ValueError(
                f"{place[0]} holds a matrix for each expert, which PEFT has no name for; use stackjax.save"
            )
        steps = place[0].split("/")
        i = steps.index("segments")
        matrix = "/".join([*steps[:i], *steps[i + 3 :]])
        used.add(matrix)
        module = names.get(matrix, ".".join([*steps[:i], "layers", "{layer}", *steps[i + 3 :]]))
        for row, layer in enumerate(d.layers):
            full = f"base_model.model.{module.format(layer=layer)}.lora_{place[1].upper()}.weight"
            if full in tensors:
                raise ValueError(f"two matrices are called {full}; names need {{layer}}")
            tensors[full] = (path, row if d.stacked else None)
    if unknown := sorted(names.keys() - used):
        raise ValueError(f"no adapted matrix is called {unknown[0]!r}; there are {', '.join(sorted(used))}")
    return tensors
