"""Words on a command line, and the objects they stand for.

Anything that is not in a table is named by its dotted path, `my.module:thing`.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from stackjax import position, recipe
from stackjax.interop import hf
from stackjax.position.base import Position
from stackjax.recipe.base import Recipe

from .environment import PACKAGES

POSITIONS: Mapping[str, Callable[[int], Position]] = {
    "none": lambda context: position.NoPosition(),
    "scalar": lambda context: position.Scalar(),
    "sinusoidal": lambda context: position.Sinusoidal(),
    "learned": lambda context: position.Learned(n_positions=context),
    "rotary": lambda context: position.Rotary(),
    "alibi": lambda context: position.ALiBi(),
    "t5": lambda context: position.T5Bias(),
    "fire": lambda context: position.FIRE(),
    "shaw": lambda context: position.Shaw(),
    "transformer_xl": lambda context: position.TransformerXL(),
}
"""Position encodings by name, each called with the number of tokens in a window."""


def recipe_named(name: str) -> Recipe:
    """The recipe of this name.

    Args:
        name: a key of `stackjax.recipe.NAMES`, or the dotted path of a `Recipe`, or of something that makes one
            without arguments.

    Raises:
        ValueError: nothing of that name, or not a recipe.
    """
    return _made(name, "recipe", recipe.NAMES, Recipe)


def recipes(*words: str) -> dict[str, Recipe]:
    """Recipes by their names, each once.

    Raises:
        ValueError: see `recipe_named`.
    """
    return {word: recipe_named(word) for word in words}


def position_named(name: str, context: int) -> Position:
    """The position encoding of this name, for windows of `context` tokens; like `recipe_named`."""
    tables = {key: functools.partial(make, context) for key, make in POSITIONS.items()}
    return _made(name, "position", tables, Position)


def architectures_named(name: str) -> dict[str, hf.Architecture]:
    """The architectures of checkpoints at a dotted path, by model_type.

    Raises:
        ValueError: a path that cannot be imported, or something else there.
    """
    table = dotted(name, "architectures")
    if not isinstance(table, Mapping) or not all(isinstance(each, hf.Architecture) for each in table.values()):
        raise ValueError(f"{name!r} is no mapping from model_type to stackjax.interop.hf.Architecture; it is {table!r}")
    return dict(table)


def mesh_sizes(words: str) -> dict[str, int]:
    """Sizes of a mesh of devices by axis, from words such as "data=4 model=2".

    Raises:
        ValueError: no words, one that is no axis with its size, or an axis that is there twice.
    """
    pairs = [word.partition("=") for word in words.split()]
    sizes = {axis: int(size) for axis, _, size in pairs if re.fullmatch(r"[a-z]\w*=[1-9]\d*", f"{axis}={size}")}
    if not pairs or len(sizes) < len(pairs):
        raise ValueError(f"--mesh takes axes with their sizes, each once, such as data=4 model=2; got {words!r}")
    return sizes


def _made(name: str, kind: str, table: Mapping[str, Callable[[], Any]], wanted: type) -> Any:
    factory = dotted(name, kind) if ":" in name else table.get(name)
    if factory is None:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(table)}"
        raise ValueError(f"unknown {kind} {name!r}; {hint} (or give a dotted path, my.module:{kind})")
    try:
        made = factory if isinstance(factory, wanted) else factory()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{kind} {name!r} cannot be made without arguments: {why}") from error
    if not isinstance(made, wanted):
        raise ValueError(f"{name!r} is no {kind}: it gives {type(made).__name__}, not {wanted.__name__}")
    return made


def metrics_named(name: str) -> Callable[..., Any]:
    """The function of this dotted path.

    Raises:
        ValueError: a path that cannot be imported, or no function of three arguments there.
    """
    made = dotted(name, "metrics")
    try:
        inspect.signature(made).bind("task", "params", "batch")
    except TypeError:
        raise ValueError(
            f"metrics {name!r} must be a function (task, params, batch) -> {{name: array}}; it is {made!r}"
        ) from None
    return made


def dotted(name: str, kind: str) -> Any:
    """The object at a dotted path, `my.module:thing`.

    Args:
        name: the path.
        kind: of thing, for the error.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except Exception as error:
        raise ValueError(f"{kind} {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def describe(value: Any) -> Any:
    """A frozen description (a recipe, a model, a task) as plain JSON, equal for equal descriptions.

    What is defined outside the packages whose versions are on record holds a hash of the module that it is defined in,
    without comments: results of one formula are not taken for those of another. Modules that it imports are not read.

    Raises:
        ValueError: a function that has no name of its own, such as a lambda, which another might share; something
            defined where its code cannot be read, such as a cell of a notebook.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        kind = type(value)
        return {"is": f"{kind.__module__}:{kind.__qualname__}", **_code(kind.__module__, kind), **fields}
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return {"is": describe(value.func), "arguments": describe(value.args), "options": describe(value.keywords)}
    if callable(value):
        name = f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
        if "<" in name:
            raise ValueError(
                f"{name} has no name by which its results could be found again: define the function in a module, and "
                "give it numbers by functools.partial"
            )
        code = _code(value.__module__, value)
        return {"is": name, **code} if code else name
    return value


@functools.cache
def _code(module: str, thing: Any) -> dict[str, str]:
    """{"code": a hash of the module that a thing is defined in}; nothing where versions say it.

    It is taken once for each class and function, so a file that is edited while a sweep runs changes no name in it.
    """
    root = module.partition(".")[0]
    if root in PACKAGES or root in sys.stdlib_module_names:
        return {}
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        raise ValueError(
            f"the code of {thing!r} cannot be read, by which its results could be told from those of another version: "
            "define it in a module"
        ) from None
    return {"code": hashlib.sha256(ast.unparse(ast.parse(source)).encode()).hexdigest()[:10]}
