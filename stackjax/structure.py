"""Parameters against their declaration: one look at tree structure and shapes, the same at every door."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import jax

from stackjax.check import shown
from stackjax.parameter import is_spec, path_name
from stackjax.sublayer import Params

Shapes = dict[str, tuple[int, ...]]
"""{path of a parameter: its shape}."""

MANY = 3
"""Parameters that an error names before it counts the rest."""


@dataclass(frozen=True)
class Structure:
    """The structure and the shapes that parameters must have.

    Args:
        name: of what declares them.
        declaration: the tree of `Declared`.
    """

    name: str
    declaration: Params

    @cached_property
    def _expected(self) -> tuple[Any, list[tuple[int, ...]]]:
        leaves, tree = jax.tree.flatten(self.declaration, is_leaf=is_spec)
        return tree, [declared.shape for declared in leaves]

    def fitted(self, params: Any) -> Params:
        """The parameters, with missing groups that are declared empty filled in, as flat formats leave them out.

        Raises:
            ValueError: another structure, or other shapes.
        """
        if not isinstance(params, Mapping):
            raise ValueError(
                f"the parameters of a {self.name} are a dict, as its `init` draws them; got {shown(params)}"
            )
        leaves, tree = jax.tree.flatten(params)
        if (tree, list(map(_shape, leaves))) == self._expected:
            return cast(Params, params)
        given, declared = _by_path(params), _by_path(self.declaration)
        if given != declared:
            raise ValueError(
                f"parameters must have the structure and the shapes that the {self.name} declares, as its `init` draws "
                f"them; {_differences(given, declared)}{_advice(params, given, declared)}"
            )
        return with_empty_groups(self.declaration, params)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _by_path(tree: Any) -> Shapes:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_spec)
    return {path_name(path): _shape(leaf) for path, leaf in leaves}


def _differences(given: Shapes, declared: Shapes) -> str:
    def some(names: list[str]) -> str:
        rest = len(names) - MANY
        return ", ".join(names[:MANY]) + (f" and {rest} more" if rest > 0 else "")

    missing = [name for name in declared if name not in given]
    unknown = [name for name in given if name not in declared]
    reshaped = [
        f"{name} {given[name]} in place of {shape}"
        for name, shape in declared.items()
        if given.get(name, shape) != shape
    ]
    kinds = {"missing": missing, "not declared": unknown, "of another shape": reshaped}
    return "; ".join(f"{kind}: {some(names)}" for kind, names in kinds.items() if names)


def _advice(params: Mapping[str, Any], given: Shapes, declared: Shapes) -> str:
    """A sentence on what may have happened and what to do."""
    groups = dict.fromkeys(group for name in declared for group in _groups(name))
    for group in groups:
        if given and given == _below(declared, group):
            return f". These are the parameters of `{group}` alone: give the whole tree"
    for name in params:
        if _below(given, name) == declared:
            return f". They lie inside of what was given: give params[{name!r}]"
    depths = {
        (given[name][0], shape[0])
        for name, shape in declared.items()
        if name in given and given[name] != shape and given[name][1:] == shape[1:] and given[name] and shape
    }
    if len(depths) == 1 and given.keys() == declared.keys():
        ((old, new),) = depths
        return f". They hold {old} layers where {new} are declared: build the stack with the depth of the parameters"
    return ". Use the description with which the parameters were made, or draw new ones"


def _groups(path: str) -> list[str]:
    """The groups that a path goes through: a and a/b of a/b/c."""
    steps = path.split("/")
    return ["/".join(steps[:n]) for n in range(1, len(steps))]


def _below(shapes: Shapes, group: str) -> Shapes:
    """The part of a tree under a path, with paths from there."""
    return {name[len(group) + 1 :]: shape for name, shape in shapes.items() if name.startswith(f"{group}/")}


def with_empty_groups(declaration: Any, tree: Any) -> Any:
    """A tree nested like the parameters, but perhaps for groups that are masked, with the empty ones that it lacks."""
    if is_spec(declaration) or not isinstance(tree, Mapping):
        return tree
    return {name: with_empty_groups(group, tree.get(name, {})) for name, group in declaration.items()}
