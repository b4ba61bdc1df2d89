"""Checkpoints in and out: a folder to a model and its stacked parameters, and back."""

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from stackjax.check import floating
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.architectures import ARCHITECTURES
from stackjax.interop.hf.config import Config, without
from stackjax.interop.hf.folder import locate, read_config, read_tensors, write_folder
from stackjax.interop.hf.mapping import Link, listed, unfold
from stackjax.model import Model
from stackjax.parameter import is_spec, path_name
from stackjax.seq2seq import EncoderDecoder
from stackjax.sublayer import Params
from stackjax.tensor_file import Tensor

Architectures = Mapping[str, Architecture]

ALIGNMENT = 64
"""Bytes; where XLA's buffers on the CPU begin."""


class Checkpoint(NamedTuple):
    """A model read from a folder, with its parameters and its config.

    Args:
        model: the description, a `Model` or an `EncoderDecoder`.
        params: stacked, like `model.init` gives them.
        config: config.json, without the options that were ignored.
    """

    model: Any
    params: Params
    config: dict[str, Any]


def load(
    source: str | os.PathLike,
    *,
    dtype: Any = np.float32,
    sharding: Any = None,
    architectures: Architectures = ARCHITECTURES,
    ignore: Sequence[str] = (),
) -> Checkpoint:
    """Read a checkpoint.

    Each stacked leaf is filled on the host a tensor at a time, in the blocks in which it is to lie on the devices, and
    then handed to JAX, which on the CPU keeps them as they are: there the host never holds more than one copy of the
    weights and one tensor, elsewhere one leaf and one tensor. No device holds more than its block, and of a mesh over
    several hosts each reads what its own devices need.

    Args:
        source: a folder with config.json and safetensors, or a hub's repository.
        dtype: of the parameters, whatever the file's.
        sharding: tree of shardings like the parameters, or one for all; None puts them on the default device.
        architectures: by config.json's model_type.
        ignore: options and tensors, as names or shell patterns (`model.mtp.*`), that are known to change nothing and
            that the description does not know. A warning says what was left out.

    Raises:
        ValueError: an architecture or option that is not supported, or a tensor that is missing, unexpected,
            misshapen, truncated or of another kind than floating point; the message names it. A name to ignore that
            ignores nothing.
    """
    floating("dtype", dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype={np.dtype(dtype)} needs jax.enable_x64")
    path = locate(source)
    config = read_config(path)
    architecture = _architecture(config, architectures)
    model, links, options = _describe(config, architecture, ignore)
    config = without(config, options)
    tensors, others = _match(links, read_tensors(path), architecture, config, ignore)
    _say_ignored(ignore, options, others)
    shares: dict[str, list[tuple[Link, int]]] = {}
    for link in links:
        for i, part in enumerate(link.parts):
            shares.setdefault(part.path, []).append((link, i))
    declared, tree = jax.tree_util.tree_flatten_with_path(model.declaration(), is_leaf=is_spec)
    one = sharding is None or isinstance(sharding, jax.sharding.Sharding)
    places = [sharding] * len(declared) if one else tree.flatten_up_to(sharding)
    leaves = []
    for (where, leaf), place in zip(declared, places, strict=True):
        leaves.append(_filled(leaf.shape, np.dtype(dtype), place, shares.pop(path_name(where)), tensors))
    return Checkpoint(model, jax.tree.unflatten(tree, leaves), config)


def _filled(
    shape: tuple[int, ...], dtype: np.dtype, place: Any, shares: list[tuple[Link, int]], tensors: Mapping[str, Tensor]
) -> jax.Array:
    """A parameter where it is to lie, filled a tensor at a time; what no tensor holds is zero.

    Args:
        shape: of the parameter.
        dtype: of the parameter.
        place: its sharding; None for the default device.
        shares: each link that holds a part of it, and the number of the part.
        tensors: of the checkpoint.
    """

    def bounds(index: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
        return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))

    everything = (slice(None),) * len(shape)
    blocks_of = {None: everything} if place is None else place.addressable_devices_indices_map(shape)
    blocks_of = {device: bounds(index) for device, index in blocks_of.items()}
    blocks = {block: _aligned(tuple(stop - start for start, stop in block), dtype) for block in blocks_of.values()}

    def fill(link: Link, i: int) -> None:
        at = link.parts[i].index
        touched = [block for block in blocks if all(a <= k < b for k, (a, b) in zip(at, block, strict=False))]
        if not touched:
            return
        share = link.split(tensors[link.name].read())[i] if link.name in tensors else None
        for block in touched:
            target = blocks[block]
            for k, (start, _) in zip(at, block, strict=False):
                target = target[k - start, ...]
            target[...] = 0 if share is None else share[*[slice(*ends) for ends in block[len(at) :]]]

    for link, i in shares:
        fill(link, i)
    arrays = [jax.device_put(blocks[block], device) for device, block in blocks_of.items()]
    if place is not None:
        arrays = [jax.make_array_from_single_device_arrays(shape, place, arrays)]
    return jax.block_until_ready(arrays[0])


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins where JAX wants it, so that it need not be copied on the CPU."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def save(
    target: str | os.PathLike,
    params: Params,
    config: dict[str, Any],
    *,
    dtype: Any = None,
    shard_bytes: int = 5_000_000_000,
    architectures: Architectures = ARCHITECTURES,
) -> None:
    """Write a checkpoint that `transformers` loads.

    Args:
        target: a folder that holds no checkpoint yet.
        params: like `describe(config).init` gives them.
        config: what config.json is to say; it describes the model.
        dtype: of the file; None means the parameters', if they share one.
        shard_bytes: largest file.
        architectures: by config's model_type.

    Raises:
        ValueError: parameters that are not those of the config's model, dtypes that differ, or a folder in use.
    """
    tensors = to_tensors(params, config, architectures=architectures)
    if dtype is None:
        dtypes = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(params)}
        if len(dtypes) != 1:
            raise ValueError(f"parameters have several dtypes, {sorted(map(str, dtypes))}; say which one to write")
        dtype = dtypes.pop()
    written = {name: value for name, value in config.items() if name != "torch_dtype"}
    written["dtype"] = np.dtype(dtype).name
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_folder(Path(target), written, shapes, dtype, lambda name: tensors[name].read(), shard_bytes)


@dataclass(frozen=True)
class View:
    """A tensor as the checkpoint stores it, made from the parameters when it is read."""

    link: Link
    leaves: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor as stored."""
        return self.link.shape

    def read(self) -> np.ndarray:
        """Read the tensor's values."""
        parts = zip(self.leaves, self.link.parts, strict=True)
        return self.link.join([np.asarray(leaf)[part.index] for leaf, part in parts])


def to_tensors(
    params: Params, config: dict[str, Any], *, architectures: Architectures = ARCHITECTURES
) -> dict[str, View]:
    """Parameters, or anything like them (gradients), as the tensors of a checkpoint by name.

    Raises:
        ValueError: parameters that are not those of the config's model.
    """
    model, links, _ = _describe(config, _architecture(config, architectures))
    expected = {
        path_name(path): declared.shape
        for path, declared in jax.tree_util.tree_leaves_with_path(model.declaration(), is_leaf=is_spec)
    }
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(expected.keys() | leaves.keys()):
        shape = leaves[path].shape if path in leaves else None
        if shape != expected.get(path):
            raise ValueError(
                f"the parameters are not those of the config's model: {path} is {shape}, expected {expected.get(path)}"
            )
    return {link.name: View(link, tuple(leaves[part.path] for part in link.parts)) for link in links}


def describe(
    config: dict[str, Any], *, architectures: Architectures = ARCHITECTURES, ignore: Sequence[str] = ()
) -> Model | EncoderDecoder:
    """The model that a config.json describes.

    Args:
        config: its options.
        architectures: by config's model_type.
        ignore: options to ignore, see `load`.

    Raises:
        ValueError: an architecture or option that is not supported.
    """
    return _describe(config, _architecture(config, architectures), ignore)[0]


def _architecture(config: dict[str, Any], architectures: Architectures) -> Architecture:
    kind = str(config.get("model_type"))
    if kind not in architectures:
        raise ValueError(
            f"model_type={kind!r} is not supported; these are: {', '.join(sorted(architectures))}. To describe it in "
            "a file of your own, see help(stackjax.interop.hf) and experiments/own_architecture.py"
        )
    architecture = architectures[kind]
    with _readable(config):
        for name in config.get("architectures") or ():
            if name not in architecture.classes:
                raise ValueError(
                    f"{name} is not supported; of model_type={kind!r} these are: {', '.join(architecture.classes)}"
                )
    return architecture


def _describe(
    config: dict[str, Any], architecture: Architecture, ignore: Sequence[str] = ()
) -> tuple[Model | EncoderDecoder, list[Link], list[str]]:
    """The model, where its tensors are, and the options that were ignored."""
    options = Config(config)
    with _readable(config):
        model, table = architecture.describe(options)
    unknown = options.unknown(architecture.inert.has_option)
    ignored = [name for name in unknown if _matches(name, ignore)]
    if left := [f"{name}={value!r}" for name, value in unknown.items() if name not in ignored]:
        raise ValueError(
            f"config.json has options that this architecture's description does not know: {', '.join(left)}; if they "
            "change nothing, load with ignore=(...)"
        )
    with _readable(config):
        return model, unfold(model.declaration(), table), ignored


@contextlib.contextmanager
def _readable(config: dict[str, Any]) -> Iterator[None]:
    """Raise a ValueError where a description cannot compute with a value of config.json."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"config.json of model_type={config['model_type']!r} cannot be read, perhaps for a value of another kind: "
            f"{type(error).__name__}: {error}"
        ) from error


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _say_ignored(ignore: Sequence[str], options: list[str], tensors: list[str]) -> None:
    names = [*options, *tensors]
    if idle := [pattern for pattern in ignore if not any(fnmatchcase(name, pattern) for name in names)]:
        raise ValueError(
            f"ignore={tuple(idle)} names no option or tensor that the description does not know; leave it out"
        )
    if names:
        warnings.warn(f"ignored, as asked for: {', '.join(names)}", stacklevel=3)


def _match(
    links: list[Link],
    given: dict[str, Tensor],
    architecture: Architecture,
    config: dict[str, Any],
    ignore: Sequence[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensor of each link by name, without those that are zero; and the tensors that were ignored.

    Raises:
        ValueError: tensors that do not fit; all of them are named.
    """
    tensors = {}
    for name, tensor in given.items():
        for pattern, present in architecture.renames:
            name = re.sub(pattern, present, name)
        if name in tensors:
            raise ValueError(f"tensors {tensors[name].name} and {tensor.name} are both {name}; keep one")
        tensors[name] = tensor
    shapes = {link.name: link.shape for link in links}
    for alias, name in architecture.aliases:
        _resolve(alias, name, shapes, tensors)
    missing = [name for name in shapes if name not in tensors and name not in architecture.zeros]
    others = [name for name in tensors if name not in shapes and not architecture.inert.has_tensor(name, config)]
    ignored = [name for name in others if _matches(name, ignore)]
    unexpected = [name for name in others if name not in ignored]
    if missing or unexpected:
        reasons = [f"missing tensors: {listed(missing)}"] if missing else []
        if unexpected:
            reasons.append(f"unexpected tensors, for which the description has no place: {listed(unexpected)}")
        twins = {one: other for pair in architecture.aliases for one, other in (pair, pair[::-1])}
        untied = [f"config.json does not tie {name} to {twins[name]}" for name in missing if twins.get(name) in tensors]
        raise ValueError("; ".join(reasons + untied))
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            raise ValueError(f"tensor {name} is {list(tensors[name].shape)}; config.json asks for {list(shape)}")
    return tensors, ignored


def _resolve(alias: str, name: str, shapes: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Let a tensor serve under its other name where the model has but one; refuse two that differ."""
    for one, other in ((alias, name), (name, alias)):
        if one in shapes and one not in tensors and other in tensors and other not in shapes:
            tensors[one] = tensors[other]
    for one, other in ((alias, name), (name, alias)):
        if one in tensors and one not in shapes and other in tensors:
            if not np.array_equal(tensors[one].read(), tensors[other].read()):
                raise ValueError(f"config.json ties tensor {one} to {other}, but they differ")
            del tensors[one]
