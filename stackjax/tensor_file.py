"""The safetensors format, read and written one tensor at a time.

    8 bytes     n, little-endian
    n bytes     JSON: {name: {dtype, shape, data_offsets: [start, stop]}, ...}; offsets count from the end of the header
    the rest    the tensors, row-major and little-endian

The format is short enough to be read here, so that a broken file can name its tensor and that neither direction ever
holds more than one tensor.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
"""Dtypes that parameters may have. Integers and 8-bit floats mean quantised weights, which need scales to be read."""

HEADER_LIMIT = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor in a file.

    Args:
        name: in the file.
        path: of the file.
        dtype: as the format names it.
        shape: as stored.
        start: its first byte in the file.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Read the tensor's values into a new array.

        Raises:
            ValueError: a dtype that parameters do not have.
        """
        if self.dtype not in DTYPES:
            raise ValueError(
                f"{self.path.name}: tensor {self.name} is stored as {self.dtype}; only {', '.join(DTYPES)} can be "
                "read; convert quantised weights first"
            )
        count = math.prod(self.shape)
        values = np.fromfile(self.path, DTYPES[self.dtype], count, offset=self.start)
        if values.size != count:
            raise ValueError(f"{self.path.name} is truncated: tensor {self.name} ends beyond the end of the file")
        return values.reshape(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing but the header is read.

    Raises:
        ValueError: a file that is not of the format, or is cut short; the message names the first tensor that is hurt.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ValueError(f"{path.name} is not a safetensors file, or its header is cut short")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = {name: _tensor(name, path, entry, 8 + length) for name, entry in entries.items()}
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"{path.name}: the safetensors header cannot be read ({error})") from error
    for name, tensor in tensors.items():
        start, stop = entries[name]["data_offsets"]
        if tensor.dtype in DTYPES and stop - start != math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize:
            raise ValueError(f"{path.name}: tensor {name} has {stop - start} bytes, which is not {list(tensor.shape)}")
        if 8 + length + stop > size:
            raise ValueError(f"{path.name} is truncated: tensor {name} ends beyond the end of the file")
    return tensors


def _tensor(name: str, path: Path, entry: dict[str, Any], base: int) -> Tensor:
    start, stop = entry["data_offsets"]
    sizes = (start, stop, *entry["shape"])
    if not all(type(size) is int and size >= 0 for size in sizes) or not isinstance(entry["dtype"], str):
        raise ValueError(f"tensor {name} is {entry}")
    return Tensor(name=name, path=path, dtype=entry["dtype"], shape=tuple(entry["shape"]), start=base + start)


def write(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], Any]], value: Callable[[str], np.ndarray]) -> None:
    """Write tensors; the file appears when it is whole.

    Args:
        path: of the file.
        tensors: {name: (shape, dtype)}, in the order in which they are written.
        value: name -> array; asked for one tensor at a time.

    Raises:
        ValueError: a dtype that parameters do not have.
    """
    codes = {kind: name for name, kind in DTYPES.items()}
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, (shape, kind) in tensors.items():
        if (dtype := np.dtype(kind)) not in codes:
            raise ValueError(f"{name} has dtype {dtype}; only {', '.join(map(str, codes))} can be written")
        start, stop = stop, stop + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (_, dtype) in tensors.items():
            file.write(np.ascontiguousarray(value(name), dtype).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
