"""Descriptions: frozen choices that are hashed, compared, copied and pickled by value, and given to jit as static.

A description of your own is a subclass decorated with `@dataclass(frozen=True, kw_only=True)` whose fields hold all
that distinguishes it. Anything else would compare equal to its siblings: a stack would fold different layers into
one, and jit would return another model's result.
"""

import dataclasses
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np

from stackjax.check import shown

DECORATE = "decorate it with @dataclass(frozen=True, kw_only=True)"


class Description:
    """Base of the frozen descriptions: `repr` leaves out what is at its default.

    `numbers` names fields that hold numbers which change no shape and no choice, or descriptions that name such fields.
    Layers that differ in nothing else share one program (`stackjax.by_layer`). A sublayer that names some reads them as
    `side_inputs.numbers.get(name, self.name)`; a position encoding gets them as further keywords of `prepare`. They
    count for the class that names them and not for its subclasses, which must name them again.

    Raises:
        ValueError: a class whose state is not in fields; a field that is given a value of another type.
    """

    numbers: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # dataclass() writes its own __repr__ unless the class itself holds one.
        cls.__repr__ = cls.__repr__

    def __new__(cls, *args: Any, **values: Any) -> Self:
        wanted = _described_fields(cls)
        for name, value in values.items():
            if name in wanted and not wanted[name].accepts(value):
                raise ValueError(f"{cls.__name__}: {name} must be {wanted[name].name}; got {shown(value)}")
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        # A dataclass refuses this itself; what arrives here comes from a subclass that is none.
        cls = type(self).__name__
        raise ValueError(f"{cls} sets {name!r}, which is not one of its fields; declare `{name}: ...` and {DECORATE}")

    def __repr__(self) -> str:
        given = [f"{name}={shown_value(value)}" for name, value, usual in field_values(self) if not usual]
        return f"{type(self).__name__}({', '.join(given)})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        cls = type(self)
        state = {
            name: _portable(value)
            for name, value in vars(self).items()
            if not isinstance(getattr(cls, name, None), functools.cached_property)
        }
        return _restored, (cls, state)


def field_values(description: Any) -> list[tuple[str, Any, bool]]:
    """Name and value of each field, and whether it is at its default."""
    values = []
    for field in dataclasses.fields(description):
        value = getattr(description, field.name)
        values.append((field.name, value, field.default is not dataclasses.MISSING and value == field.default))
    return values


def shown_value(value: Any) -> str:
    """A field's value as `repr` shows it."""
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """The values that a field accepts, in words and as a predicate."""

    name: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, (bool, np.bool))


_PLAIN = {
    int: _Wanted("an integer", lambda value: _is_number(value, Integral)),
    float: _Wanted("a number", lambda value: _is_number(value, Real)),
    bool: _Wanted("True or False", lambda value: isinstance(value, (bool, np.bool))),
    str: _Wanted("a string", lambda value: isinstance(value, str)),
}
"""The plain types of fields; numpy's scalars count."""


@functools.cache
def _described_fields(cls: type) -> dict[str, _Wanted]:
    """The fields that hold descriptions, functions, numbers or words, after a check of the class.

    Raises:
        ValueError: a class whose state is not in fields.
    """
    for base in cls.__mro__[: cls.__mro__.index(Description)]:
        _check_class(base)
    if not dataclasses.is_dataclass(cls):
        return {}
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a type that only the type checker, or a function's body, knows
        return {}
    wanted = {field.name: _wanted(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: one for name, one in wanted.items() if one is not None}


def _check_class(cls: type) -> None:
    def is_state(hint: Any) -> bool:
        return not (str(hint).startswith(("ClassVar", "typing.ClassVar")) or typing.get_origin(hint) is typing.ClassVar)

    state = {name for name, hint in inspect.get_annotations(cls).items() if is_state(hint)}
    parameters = vars(cls).get("__dataclass_params__")
    if parameters is None:
        added = sorted(state) or [name for name in ("__init__",) if name in vars(cls)]
        if added:
            raise ValueError(f"{cls.__name__} adds {', '.join(added)}, but is not a dataclass itself; {DECORATE}")
    elif not parameters.eq:
        raise ValueError(f"{cls.__name__} must compare by value; {DECORATE}, without eq=False")
    inherited = {
        field.name for base in cls.__bases__ if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)
    }
    if silent := sorted((vars(cls).keys() & inherited) - state):
        raise ValueError(
            f"{cls.__name__} assigns {', '.join(silent)} without a type, so that the default stays as it was; write "
            f"`{silent[0]}: <type> = ...` and {DECORATE}"
        )


def _wanted(hint: Any) -> _Wanted | None:
    """The values that a field of this type accepts, where they are descriptions, functions, numbers or words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, Description):
        return _Wanted(f"an instance of {hint.__name__}", lambda value: isinstance(value, hint))
    if origin is typing.Literal:
        return _Wanted(
            " or ".join(map(repr, arguments)), lambda value: any(value is word or value == word for word in arguments)
        )
    if origin is Callable:
        return _Wanted("a function", lambda value: callable(value) and not isinstance(value, type))
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        one = _wanted(arguments[0])
        if one is None:
            return None
        return _Wanted(
            f"a tuple, each entry {one.name}", lambda value: isinstance(value, tuple) and all(map(one.accepts, value))
        )
    if origin in (typing.Union, types.UnionType):
        several = [_wanted(argument) for argument in arguments if argument is not types.NoneType]
        choices = [one for one in several if one is not None]
        if not choices or len(choices) < len(several):
            return None
        optional = types.NoneType in arguments
        names = [one.name for one in choices] + ["None"] * optional
        return _Wanted(
            " or ".join(names),
            lambda value: (optional and value is None) or any(one.accepts(value) for one in choices),
        )
    return None


@dataclasses.dataclass(frozen=True)
class _Reference:
    """A module's own object that pickle cannot write by itself, such as a jitted function: by name."""

    module: str
    name: str


def _portable(value: Any) -> Any:
    """A field's value as pickle can write it."""
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(_portable, value))
    if not callable(value) or isinstance(value, (type, types.FunctionType, Description)):
        return value
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not (isinstance(module, str) and isinstance(name, str)):
        return value
    reference = _Reference(module, name)
    return reference if getattr(importlib.import_module(module), name, None) is value else value


def _resolved(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_resolved, value))
    return getattr(importlib.import_module(value.module), value.name) if isinstance(value, _Reference) else value


def _restored(cls: type, state: dict[str, Any]) -> Any:
    """A description out of what `Description.__reduce__` gave."""
    description = object.__new__(cls)
    vars(description).update({name: _resolved(value) for name, value in state.items()})
    return description
