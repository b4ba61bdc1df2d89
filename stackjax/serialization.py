"""Saving a model: its description as JSON and its parameters as safetensors, in one folder.

    sj.save("folder", model, params)
    model, params = sj.load("folder")

    folder/model.json               the description, field by field; the format's version; checksums
    folder/params-1f2e....safetensors    the parameters by path, e.g. `stack/segments/0/0/attention/query`

Loading runs no code but the constructors of the classes that the description names. Those are stackjax's own; what is
from elsewhere must be allowed by its module's name, `sj.load("folder", allow=("mymodule",))`, and is then imported.

A folder is replaced atomically: whoever reads it while another is written, or after that was killed, sees one of the
two, whole; of two that are written at the same time the later one stays. Processes and threads wait for each other by a
lock on the folder (`flock`); on a file system or a platform that has none, only one may write, and none read meanwhile.
Any change to its files is noticed by the checksums, which are no protection against forgery.

Save a model, and get it back:

    >>> import tempfile
    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sj.save(folder, model, params)
    ...     again, read = sj.load(folder)
    >>> again == model, bool((again.apply(read, tokens)[0] == model.apply(params, tokens)[0]).all())
    (True, True)

Format version 1. A file of a later version is refused. Fields that a description has gained since a file was written
take their defaults, so a new field's default must do what was done without it; a field that this stackjax does not
know is refused.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import tensor_file
from stackjax.abstract_model import AbstractModel
from stackjax.parameter import path_name
from stackjax.segment import Segment
from stackjax.sublayer import Params

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

FORMAT = "stackjax model"
VERSION = 1
DESCRIPTION = "model.json"
SIZE_LIMIT = 100_000_000
DEPTH_LIMIT = 1_000_000
"""Bytes of a description and layers of a segment beyond which a file is taken for damaged or hostile."""

_PARAMS = re.compile(r"params-[0-9a-f]{16}\.safetensors")
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def save(folder: str | os.PathLike[str], model: AbstractModel, params: Params) -> None:
    """Write a model and its parameters; a model that the folder holds already is replaced.

    Args:
        folder: made if it is not there.
        model: a stack, a model or an encoder-decoder.
        params: its parameters, of any of the dtypes in `tensor_file.DTYPES`.

    Raises:
        ValueError: parameters that are not this model's; a description with values that cannot be written, such as a
            lambda.
    """
    description = encode(model)
    if decode(description, allow=None) != model:
        raise ValueError(f"this {type(model).__name__} does not equal itself once it is written and read")
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    _check_shapes(_shapes(model), {name: jnp.shape(leaf) for name, leaf in leaves.items()}, "the parameters")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"params-{uuid.uuid4().hex}.new"
    tensors = {name: (jnp.shape(leaf), jnp.result_type(leaf)) for name, leaf in leaves.items()}
    tensor_file.write(new, tensors, lambda name: np.asarray(leaves[name]))
    digest = _file_digest(new)
    held = folder / f"params-{digest[:16]}.safetensors"
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "params": {"file": held.name, "bytes": new.stat().st_size, "sha256": digest},
        "description": description,
    }
    with _locked(folder, alone=True):
        os.replace(new, held)
        _write_atomically(folder / DESCRIPTION, json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n")
        for path in folder.iterdir():
            if _PARAMS.fullmatch(path.name) and path != held:
                path.unlink()


def load(folder: str | os.PathLike[str], *, allow: tuple[str, ...] = ()) -> tuple[AbstractModel, Params]:
    """Read a model that `save` wrote.

    Args:
        folder: where it is.
        allow: names of modules outside stackjax, e.g. `mymodule` or `mypackage`, whose classes and functions the
            description may name. They are imported: allow what you trust.

    Returns:
        The model and its parameters, in the dtypes in which they were saved.

    Raises:
        ValueError: a folder without a model, of a later format, damaged, with parameters of another model, or that
            names what is not allowed.
    """
    folder = Path(folder)
    with _locked(folder, alone=False):
        return _read(folder, allow)


def _read(folder: Path, allow: tuple[str, ...]) -> tuple[AbstractModel, Params]:
    content = _read_description(folder / DESCRIPTION)
    path = _params_path(folder, content["params"])
    model = decode(content["description"], allow=allow)
    if not isinstance(model, AbstractModel):
        raise ValueError(f"{DESCRIPTION} describes {type(model).__name__}, which is no model")
    tensors = tensor_file.read_header(path)
    shapes = _shapes(model)
    _check_shapes(shapes, {name: tensor.shape for name, tensor in tensors.items()}, path.name)
    narrow = jax.dtypes.canonicalize_dtype(np.float64) != np.float64
    if narrow and (wide := [n for n, tensor in tensors.items() if tensor.dtype == "F64"]):
        raise ValueError(f"{wide[0]} was saved in float64; set jax_enable_x64, or save it in float32")
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.device_put(tensors[path_name(path)].read()), model.declaration()
    )
    return model, params


def encode(value: Any) -> Any:
    """A description as JSON: {class, fields}, {function}, lists for tuples, numbers, text, true, false and null.

    Raises:
        ValueError: a value that cannot be found again by its module and name, or that is none of these.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is tuple:
        return [encode(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return {"class": _name(type(value)), "fields": fields}
    if callable(value) and not isinstance(value, type):
        return {"function": _name(value)}
    raise ValueError(
        f"a description to be saved holds numbers, text, tuples, dataclasses and functions; got {value!r} "
        f"({type(value).__name__})"
    )


def decode(value: Any, *, allow: tuple[str, ...] | None = ()) -> Any:
    """The description that `encode` wrote.

    Args:
        value: JSON.
        allow: modules outside stackjax that may be named; None allows all.

    Raises:
        ValueError: a class, function or field that is unknown or not allowed; values that a class refuses.
    """
    if isinstance(value, list):
        return tuple(decode(one, allow=allow) for one in value)
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if value.keys() == {"function"}:
        function = _resolve(value["function"], allow)
        if not callable(function) or isinstance(function, type):
            raise ValueError(f"{value['function']} is no function")
        return function
    if value.keys() != {"class", "fields"} or not isinstance(value["fields"], dict):
        raise ValueError(f"a description has class and fields; got {sorted(value)}")
    cls = _resolve(value["class"], allow)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{value['class']} is no frozen dataclass")
    unknown = sorted(value["fields"].keys() - {field.name for field in dataclasses.fields(cls) if field.init})
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(unknown)}; the model was written by another version of stackjax, "
            "or of the module that defines it"
        )
    fields = {name: decode(one, allow=allow) for name, one in value["fields"].items()}
    if issubclass(cls, Segment) and not (type(n := fields.get("n")) is int and 0 <= n <= DEPTH_LIMIT):
        raise ValueError(f"a segment repeats its layers 0 to {DEPTH_LIMIT:,} times; got n={fields.get('n')}")
    try:
        return cls(**fields)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{cls.__name__} cannot be made of its fields: {error}") from error


def _name(thing: Any) -> str:
    """`module:name` of a class or a function, under which it is found again."""
    name = getattr(thing, "__qualname__", None)
    public = getattr(jax.nn, str(name), None) is thing
    full = f"{'jax.nn' if public else getattr(thing, '__module__', None)}:{name}"
    if _NAME.fullmatch(full) and _resolve(full, None, missing=None) is thing:
        return full
    raise ValueError(
        f"{thing!r} cannot be saved: it must be found under its name in its module, not be a lambda, a partial or "
        "defined inside a function; a frozen dataclass with __call__ can hold numbers"
    )


def _resolve(full: Any, allow: tuple[str, ...] | None, missing: Any = ValueError) -> Any:
    """The object that `module:name` names, if its module is allowed."""
    if not isinstance(full, str) or not _NAME.fullmatch(full):
        raise ValueError(f"a class or function is named as module:name; got {full!r}")
    module, _, name = full.partition(":")
    allowed = () if allow is None else ("stackjax", *allow)
    if allow is not None and module != "jax.nn" and not any(f"{module}.".startswith(f"{one}.") for one in allowed):
        raise ValueError(
            f"the model names {full}, which is not stackjax's; if you trust that module, load it with "
            f"allow=({module.partition('.')[0]!r},)"
        )
    try:
        thing = importlib.import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as error:
        if missing is None:
            return None
        raise ValueError(f"the model names {full}, which does not exist here: {error}") from error
    return thing


def _shapes(model: AbstractModel) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(model.declaration())
    return {path_name(path): declared.shape for path, declared in leaves}


def _check_shapes(declared: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]], what: str) -> None:
    if missing := sorted(declared.keys() - given.keys()):
        raise ValueError(f"{what} are not this model's: {len(missing)} are missing, first {missing[0]}")
    if unknown := sorted(given.keys() - declared.keys()):
        raise ValueError(f"{what} are not this model's: it has no {unknown[0]}")
    for name, shape in declared.items():
        if given[name] != shape:
            raise ValueError(f"{what} are not this model's: {name} must have shape {shape}; got {given[name]}")


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no model: there is no {path.name}")
    if path.stat().st_size > SIZE_LIMIT:
        raise ValueError(f"{path} is larger than any description: {path.stat().st_size:,} bytes")
    try:
        content = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no description of a model by stackjax")
    if type(version := content.get("version")) is not int or not 1 <= version <= VERSION:
        raise ValueError(f"{path} is of format version {version}; this stackjax reads up to {VERSION}: use a newer one")
    digest = content.pop("sha256", None)
    if digest != _digest(content) or content.keys() != {"format", "version", "params", "description"}:
        raise ValueError(f"{path} is damaged: it is not what was written, by its checksum")
    return content


def _params_path(folder: Path, entry: Any) -> Path:
    """The file of the parameters, whole and inside the folder."""
    name = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _PARAMS.fullmatch(name):
        raise ValueError(f"{folder / DESCRIPTION} must name a file of parameters beside it; got {name!r}")
    path = folder / name
    if not path.is_file() or path.resolve().parent != folder.resolve():
        raise ValueError(f"{folder} lacks {name}, which holds the parameters")
    if path.stat().st_size != entry.get("bytes"):
        raise ValueError(f"{path} is damaged: it has {path.stat().st_size:,} bytes, not {entry.get('bytes')}")
    if _file_digest(path) != entry.get("sha256"):
        raise ValueError(f"{path} is damaged: it is not what was written, by its checksum")
    return path


@contextlib.contextmanager
def _locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold a folder alone, or with others that do not write; where that is impossible, do not."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
