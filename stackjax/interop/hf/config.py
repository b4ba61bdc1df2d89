"""config.json, read strictly: an option that nobody reads is refused, so that none is silently left out."""

from collections.abc import Callable, Collection
from typing import Any

from stackjax import feed_forward
from stackjax.feed_forward import Activation

ACTIVATIONS: dict[str, Activation] = {
    "relu": feed_forward.relu,
    "relu2": feed_forward.squared_relu,
    "gelu": feed_forward.gelu,
    "gelu_new": feed_forward.gelu_tanh,
    "gelu_fast": feed_forward.gelu_tanh,
    "gelu_pytorch_tanh": feed_forward.gelu_tanh,
    "quick_gelu": feed_forward.gelu_sigmoid,
    "silu": feed_forward.silu,
    "swish": feed_forward.silu,
}


class Config:
    """The options of a config.json, and which of them were read.

    Args:
        fields: of config.json.
    """

    def __init__(self, fields: dict[str, Any]):
        self.fields = dict(fields)
        self.read: dict[str, Any] = {}
        self.inside: dict[str, Config] = {}

    def take(self, name: str, default: Any = ...) -> Any:
        """Read an option.

        Args:
            name: of the option.
            default: what the format means when the option is not there; without one, the option is required.
        """
        if name not in self.fields and default is ...:
            raise ValueError(f"config.json lacks the option {name}")
        self.read[name] = self.fields.get(name, default)
        return self.read[name]

    def nested(self, name: str) -> "Config":
        """The options of a config inside this one; those that are not read are refused as `name.option`."""
        inside = self.take(name, None) or {}
        return self.inside.setdefault(name, Config(inside))

    def rename(self, **older: str) -> None:
        """Let options that this format names in its own way be read under the names that most formats use.

        Args:
            **older: this format's name by the usual one.

        Raises:
            ValueError: both are there, and differ.
        """
        for usual, name in older.items():
            if name in self.fields:
                value = self.take(name)
                if self.fields.setdefault(usual, value) != value:
                    raise ValueError(
                        f"config.json has {name}={value!r} and {usual}={self.fields[usual]!r}, which are one option; "
                        "keep the one that is meant"
                    )

    def only(self, **expected: Any) -> None:
        """Refuse any other value of these options (a tuple lists several); one that is not there is taken as met."""
        for name, wanted in expected.items():
            choices = wanted if isinstance(wanted, tuple) else (wanted,)
            value = self.take(name, choices[0])
            if value not in choices:
                supported = " or ".join(map(repr, choices))
                raise ValueError(f"config.json has {name}={value!r}, which is not supported; only {supported} is")

    def activation(self, name: str, default: Any = ...) -> Activation:
        """Read an option that names an activation."""
        value = self.take(name, default)
        if value not in ACTIVATIONS:
            raise ValueError(f"config.json has {name}={value!r}; supported are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def unknown(self, inert: Callable[[str], bool]) -> dict[str, Any]:
        """The options that were not read and that might change the computation.

        Args:
            inert: whether the option of a name is without effect.

        Returns:
            Values by name. One that is itself nothing (null, false, or empty) asks for nothing.
        """
        unread = sorted(self.fields.keys() - self.read.keys())
        unknown = {name: self.fields[name] for name in unread if not (is_nothing(self.fields[name]) or inert(name))}
        for outer, config in self.inside.items():
            unknown |= {f"{outer}.{name}": value for name, value in config.unknown(inert).items()}
        return unknown


def without(fields: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The options of a config.json but some, of which `outer.inner` is one of a config inside it."""
    left = {name: value for name, value in fields.items() if name not in names}
    for outer, _, inner in (name.partition(".") for name in names):
        if inner:
            left[outer] = without(left[outer], [inner])
    return left


def is_nothing(value: Any) -> bool:
    """True if an option's value is null, false, or empty."""
    return value is None or value is False or (isinstance(value, (str, list, dict)) and not value)
