"""A checkpoint's folder: config.json, and the tensors in one safetensors file or in many with an index."""

import importlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from stackjax import tensor_file
from stackjax.tensor_file import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def locate(source: str | os.PathLike) -> Path:
    """The folder itself, or a hub's repository by name, where `huggingface_hub` is installed and reaches it.

    Raises:
        ValueError: neither.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or str(source).count("/") > 1 or str(source).startswith((".", "~", "/")):
        raise ValueError(f"a checkpoint is a folder with config.json and *.safetensors; {source} is none")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ValueError(f"there is no folder {source}; to fetch a hub's repository, install huggingface_hub") from None
    try:
        return Path(hub.snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise ValueError(
            f"there is no folder {source}, and no hub gave it ({type(error).__name__}: {error})"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json")
    return _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds {type(content).__name__}")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder by name; only headers are read.

    A single model.safetensors counts before an index, as in `transformers`.

    Raises:
        ValueError: no safetensors, a file or tensor that the index promises and that is not there, a broken file, a
            file outside the folder.
    """
    if (folder / SINGLE).is_file():
        return tensor_file.read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _indexed(folder, _read_object(folder / INDEX).get("weight_map"))
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return tensor_file.read_header(files[0])
    if files:
        raise ValueError(f"{folder} has {len(files)} safetensors files, and neither {SINGLE} nor {INDEX}")
    pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    hint = f"; {pickles[0]} is a pickle, which is never opened: save it as safetensors first" if pickles else ""
    raise ValueError(f"{folder} has no *.safetensors{hint}")


def _indexed(folder: Path, places: Any) -> dict[str, Tensor]:
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{folder / INDEX} needs a weight_map from names of tensors to names of files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if file != PurePosixPath(file).name or file != PureWindowsPath(file).name:
            raise ValueError(f"{INDEX} names the file {file!r}; a checkpoint's files lie in its own folder")
        promised = sorted(name for name, place in places.items() if place == file)
        if not (folder / file).is_file():
            raise ValueError(f"{folder} lacks {file}, which {INDEX} promises for tensor {promised[0]}")
        header = tensor_file.read_header(folder / file)
        absent = [name for name in promised if name not in header]
        if absent:
            raise ValueError(f"{file} lacks tensor {absent[0]}, which {INDEX} promises")
        tensors |= {name: tensor for name, tensor in header.items() if places.get(name, file) == file}
    return tensors


def write_folder(
    folder: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    dtype: Any,
    value: Callable[[str], np.ndarray],
    shard_bytes: int,
) -> None:
    """Write config.json and the tensors, one at a time, in files of at most `shard_bytes` (or one tensor).

    Args:
        folder: made if it is not there.
        config: what config.json says.
        shapes: of each tensor, in the order in which they are written.
        dtype: of all of them.
        value: name -> array.
        shard_bytes: largest file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = [path.name for path in folder.glob("*.safetensors*")]
    if taken:
        raise ValueError(f"{folder} already holds a checkpoint ({taken[0]}); give an empty folder")
    sizes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        tensor_file.write(folder / file, {name: (shapes[name], dtype) for name in shard}, value)
    if len(shards) > 1:
        places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
