"""The table from tensors of a checkpoint to parameters, one for each architecture, and what it unfolds to.

A table maps a module's name in the checkpoint to the parameters it holds:

    {"h.{layer}.attn.c_attn": stored("stack/{layer}/attention/query", "stack/{layer}/attention/key", ...), ...}

`{layer}` runs over the layers of a stack, `{expert}` over the first axis of the parameter. Tensors that a layer does
not declare (a bias, the experts of a dense layer) are passed over; of several rules for a name, a layer takes the one
that it declares. A table must account for every parameter.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from stackjax.parameter import Declared, is_spec, path_name


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The parameters that one module of a checkpoint holds, and how they are stored.

    Args:
        leaves: parameters, by address: their path in the tree, with `stack/{layer}/...` for those of a layer. Several
            are stored side by side along their last axis.
        tensors: for each tensor of the module: what ends its name, what ends the parameters', whether the last two
            axes are stored the other way round.
        groups: of how many groups the last axis consists, each with its share of every parameter: 1 for plain
            concatenation, the number of heads for projections stored head by head, F for interleaved columns.
        shape: as which the numbers are stored, where that has other axes; one of them may be -1, what is left.
    """

    leaves: tuple[str, ...]
    tensors: tuple[tuple[str, str, bool], ...]
    groups: int = 1
    shape: tuple[int, ...] = ()


Table = dict[str, Rule | tuple[Rule, ...]]
"""The rule, or the alternative rules, for each module of a checkpoint by its name."""


def dense(*leaves: str, groups: int = 1) -> Rule:
    """A torch Linear: `weight` (out, in) and perhaps `bias`."""
    return Rule(leaves=leaves, tensors=((".weight", "", True), (".bias", "_bias", False)), groups=groups)


def stored(*leaves: str) -> Rule:
    """A layer whose `weight` is stored (in, out), like ours, and perhaps `bias`."""
    return Rule(leaves=leaves, tensors=((".weight", "", False), (".bias", "_bias", False)))


def norm(leaf: str) -> Rule:
    """A norm: `weight` and perhaps `bias`."""
    return Rule(leaves=(leaf,), tensors=((".weight", "/scale", False), (".bias", "/bias", False)))


def tensor(*leaves: str, transposed: bool = False, groups: int = 1, shape: tuple[int, ...] = ()) -> Rule:
    """A tensor by its full name."""
    return Rule(leaves=leaves, tensors=(("", "", transposed),), groups=groups, shape=shape)


def within(module: str, leaf: str, table: Table) -> Table:
    """`table` with `module` in front of its names and `leaf` in front of its addresses."""

    def moved(rule: Rule) -> Rule:
        return replace(rule, leaves=tuple(leaf + each for each in rule.leaves))

    return {module + name: tuple(map(moved, rules(entry))) for name, entry in table.items()}


def rules(entry: Rule | tuple[Rule, ...]) -> tuple[Rule, ...]:
    """A row's rules as a tuple."""
    return entry if isinstance(entry, tuple) else (entry,)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter, or one layer's or expert's share of it.

    Args:
        path: of the stored leaf in the tree of parameters.
        index: of the share in the leaf.
        shape: of the share.
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Link:
    """One tensor of a checkpoint, and what it holds.

    Args:
        name: of the tensor.
        parts: side by side along the last axis.
        transposed: see `Rule`.
        groups: see `Rule`.
        stored: see `Rule.shape`.
    """

    name: str
    parts: tuple[Part, ...]
    transposed: bool = False
    groups: int = 1
    stored: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor as stored in the checkpoint."""
        left = math.prod(self._plain) // abs(math.prod(self.stored))
        return tuple(left if size == -1 else size for size in self.stored) or self._plain

    @property
    def _plain(self) -> tuple[int, ...]:
        """The shape without the axes that only the file has."""
        lead, last = self.parts[0].shape[:-1], sum(part.shape[-1] for part in self.parts if part.shape)
        if self.transposed:
            lead, last = (*lead[:-1], last), lead[-1]
        if not self.parts[0].shape:
            return ()
        return (*lead, last)

    def split(self, value: np.ndarray) -> list[np.ndarray]:
        """The tensor's parts, in our orientation."""
        value = value.reshape(self._plain)
        if self.transposed:
            value = np.swapaxes(value, -1, -2)
        if len(self.parts) == 1:
            return [value]
        grouped = value.reshape(*value.shape[:-1], self.groups, -1)
        ends = np.cumsum([part.shape[-1] // self.groups for part in self.parts])[:-1]
        return [x.reshape(part.shape) for x, part in zip(np.split(grouped, ends.tolist(), -1), self.parts, strict=True)]

    def join(self, values: list[np.ndarray]) -> np.ndarray:
        """The inverse of `split`."""
        value = values[0]
        if len(values) > 1:
            grouped = [x.reshape(*x.shape[:-1], self.groups, -1) for x in values]
            value = np.concatenate(grouped, -1).reshape(*value.shape[:-1], -1)
        if self.transposed:
            value = np.swapaxes(value, -1, -2)
        return value.reshape(self.shape)


def unfold(declaration: Any, table: Table) -> list[Link]:
    """Every tensor that a checkpoint of a model has.

    Args:
        declaration: the model's.
        table: of its architecture.

    Raises:
        ValueError: a table that leaves parameters out (the message gives their addresses), or names one or a tensor
            twice.
    """
    places = _addresses(declaration)
    by_row = {
        name: [link for rule in rules(entry) for link in _links(name, rule, places)] for name, entry in table.items()
    }
    links = [link for row in by_row.values() for link in row]
    parts = Counter(part for link in links for part in link.parts)
    covered: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, times in Counter(link.name for link in links).items():
        if times > 1:
            raise ValueError(f"the table of tensors has {times} places for {name}")
    for part, times in parts.items():
        if times > 1:
            raise ValueError(f"the table of tensors names {part.path} {part.index} {times} times")
        for length in range(len(part.index) + 1):
            covered[part.path, part.index[:length]] += math.prod(part.shape)
    sizes = {name: covered[part.path, part.index] - math.prod(part.shape) for name, part in places.items()}
    if twice := [name for name, excess in sizes.items() if excess > 0]:
        raise ValueError(f"the table of tensors names {listed(twice)} twice, whole and in parts")
    lacking = [name for name, excess in sizes.items() if excess < 0]
    if lacking:
        idle = [name for name, row in by_row.items() if not row]
        raise ValueError(
            f"the table of tensors does not account for all of {listed(lacking)}; its rows that name nothing: "
            f"{listed(idle) or 'none'}"
        )
    return links


def listed(names: Sequence[str]) -> str:
    """`a, b, c`, and how many more where there are many."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def addresses(model: Any) -> dict[str, tuple[int, ...]]:
    """The address of every parameter that a table of tensors must name, and its shape.

    Args:
        model: a `Model` or an `EncoderDecoder`.

    Returns:
        For instance {"stack/3/attention/query": (768, 768), ...}; `{layer}` in a table stands for the number.
    """
    return {name: part.shape for name, part in _addresses(model.declaration()).items()}


def _leaves(declaration: Any) -> dict[str, Declared]:
    pairs = jax.tree_util.tree_leaves_with_path(declaration, is_leaf=is_spec)
    return {path_name(path): declared for path, declared in pairs}


def _addresses(declaration: Any) -> dict[str, Part]:
    """Each parameter of each layer by its address: `stack/3/attention/query`, whatever segment layer 3 is in."""
    addresses = {}
    for path, declared in _leaves(declaration).items():
        match = re.fullmatch(r"(.*)/segments/\d+/\d+/(.*)", path)
        if not match:
            addresses[path] = Part(path=path, index=(), shape=declared.shape)
            continue
        for row, layer in enumerate(declared.layers):
            index = (row,) if declared.stacked else ()
            part = Part(path=path, index=index, shape=declared.spec.shape)
            addresses[f"{match[1]}/{layer}/{match[2]}"] = part
    return addresses


def _links(name: str, rule: Rule, addresses: dict[str, Part]) -> list[Link]:
    links = []
    for ending, ours, transposed in rule.tensors:
        for layer in _range(rule.leaves[0] + ours, addresses):
            wanted = [leaf.replace("{layer}", layer) + ours for leaf in rule.leaves]
            parts = [addresses[address] for address in wanted if address in addresses]
            if not parts:
                continue
            if len(parts) < len(wanted):
                raise ValueError(f"{name}{ending} is to hold {wanted}, but the model declares only some of them")
            for expert in range(parts[0].shape[0]) if "{expert}" in name else [None]:
                links.append(
                    Link(
                        name=(name + ending).replace("{layer}", layer).replace("{expert}", str(expert)),
                        parts=tuple(part if expert is None else _row(part, expert) for part in parts),
                        transposed=transposed,
                        groups=rule.groups,
                        stored=rule.shape,
                    )
                )
    return links


def _range(address: str, addresses: dict[str, Part]) -> list[str]:
    """The layers that have the parameter; one empty text for an address outside the layers."""
    if "{layer}" not in address:
        return [""]
    before, after = address.split("{layer}")
    layers = [a[len(before) : len(a) - len(after)] for a in addresses if a.startswith(before) and a.endswith(after)]
    return [layer for layer in layers if layer.isdecimal()]


def _row(part: Part, expert: int) -> Part:
    return replace(part, index=(*part.index, expert), shape=part.shape[1:])
