"""The base that a stack, a model and an encoder-decoder share: something with stacks of layers in it."""

import functools
import html
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.description import Description
from stackjax.display import block, field_lines, table
from stackjax.parameter import count, is_spec, path_name
from stackjax.structure import Structure
from stackjax.sublayer import Params, Result

if TYPE_CHECKING:
    from stackjax.stack import Stack

Path = tuple[str, ...]
"""The path of a stack's parameters in those of its model: (), (`stack`,), (`encoder`,), (`decoder`, `stack`)."""


class AbstractModel(Description):
    """Base of `Stack`, `Model` and `EncoderDecoder`; tools that work on any of them need no more than this."""

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`."""
        raise NotImplementedError(f"{type(self).__name__} must override declaration")

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier`."""
        raise NotImplementedError(f"{type(self).__name__} must override multipliers")

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Draw the parameters; layers are stacked on axis 0 within each segment."""
        raise NotImplementedError(f"{type(self).__name__} must override init")

    def project(self, params: Params) -> Params:
        """The parameters where the recipe wants them after each step, see `Recipe.project`."""
        raise NotImplementedError(f"{type(self).__name__} must override project")

    def update_statistics(self, params: Params, state: Params) -> Params:
        """Parameters after a step, with the running statistics that `apply` returned as `Result.state`."""
        raise NotImplementedError(f"{type(self).__name__} must override update_statistics")

    def apply(self, params: Params, *inputs: Any, **options: Any) -> tuple[jax.Array, Result]:
        """The output for the inputs, and what the stacks return beside it."""
        raise NotImplementedError(f"{type(self).__name__} must override apply")

    def stacks(self) -> "dict[Path, Stack]":
        """The stacks of layers, in the order in which they run."""
        raise NotImplementedError(f"{type(self).__name__} must override stacks")

    def with_stacks(self, stacks: "Mapping[Path, Stack]") -> Self:
        """A copy with other stacks in the places of these."""
        raise NotImplementedError(f"{type(self).__name__} must override with_stacks")

    def per_stack(self, value: "Callable[[Path, Stack], Any]") -> Any:
        """One value for each stack, as `apply` takes `taps`, `perturbations` and `coefficients`, and returns measures.

        That is the value itself where there is one stack, and {encoder: .., decoder: ..} in an encoder-decoder.
        """
        ((path, stack),) = self.stacks().items()
        return value(path, stack)

    def of_stack(self, values: Any, path: Path) -> Any:
        """One stack's part of what `per_stack` puts together."""
        return values

    def checked(self, params: Any, *groups: str) -> Params:
        """The parameters, if their structure and shapes are as declared; of groups that are empty some may be missing.

        Args:
            params: what was given.
            *groups: at the top of the tree that are needed; none means all of it, and no others.

        Raises:
            ValueError: parameters of something else.
        """
        if isinstance(params, Mapping) and any(name in params for name in groups):
            params = {name: params[name] for name in groups if name in params}
        return _structure(self, groups).fitted(params)

    def drawn_by(self) -> Params:
        """The tree of parameters, each leaf the stack whose recipe says how it is drawn."""
        (stack,) = self.stacks().values()
        return jax.tree.map(lambda _: stack, self.declaration(), is_leaf=is_spec)

    @property
    def n_params(self) -> int:
        """Number of trained parameters."""
        return count(self.declaration())

    def layer_params(self, params: Params, layer: int, stack: Path | None = None) -> Params:
        """The parameters of one layer, {sublayer: .., residual: ..}, without the layer axis.

        Args:
            params: of the whole.
            layer: l = 0 .. L-1; negative counts from the end.
            stack: which stack; None where there is only one.

        Raises:
            ValueError: no such layer or stack.
        """
        place, index = self._placed(layer, stack)
        stored = at(self.checked(params), place)
        return stored if index is None else jax.tree.map(lambda leaf: leaf[index], stored)

    def with_layer_params(self, params: Params, layer: int, new: Params, stack: Path | None = None) -> Params:
        """The parameters with one layer's replaced.

        Args:
            params: of the whole.
            layer: l = 0 .. L-1; negative counts from the end.
            new: as `layer_params` returns them.
            stack: which stack; None where there is only one.

        Raises:
            ValueError: no such layer or stack, or parameters of other shapes.
        """
        place, index = self._placed(layer, stack)
        params = self.checked(params)
        old = self.layer_params(params, layer, stack)
        got, expected = jax.tree.map(jnp.shape, new), jax.tree.map(jnp.shape, old)
        if got != expected:
            raise ValueError(f"the parameters of layer {layer} have the shapes {expected}; got {got}")
        if index is not None:
            new = jax.tree.map(lambda leaf, value: jnp.asarray(leaf).at[index].set(value), at(params, place), new)
        return put(params, place, new)

    def _placed(self, layer: int, stack: Path | None) -> tuple[Path, int | None]:
        """The path to the parameters that hold a layer, and its index on their axis 0; None where layers share them."""
        stacks = self.stacks()
        if stack is None and len(stacks) == 1:
            (stack,) = stacks
        if stack not in stacks:
            raise ValueError(f"say which stack, out of {sorted(stacks)}; got stack={stack}")
        depth = stacks[stack].depth
        if not (isinstance(layer, (int, np.integer)) and -depth <= layer < depth):
            raise ValueError(f"layer must be 0 .. L - 1, or negative to count from the end, L={depth}; got {layer}")
        name, start, segment = [placed for placed in stacks[stack].placed() if placed[1] <= layer % depth][-1]
        repeat, j = divmod(layer % depth - start, len(segment.layers))
        return (*stack, "segments", name, str(j)), None if segment.looped else repeat

    def __repr__(self) -> str:
        return block(f"{type(self).__name__}: {self.n_params:,} parameters", itertools.chain(*field_lines(self)))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>{table(self)._repr_html_()}"


@functools.lru_cache(maxsize=512)
def _structure(model: AbstractModel, groups: tuple[str, ...]) -> Structure:
    declaration = model.declaration()
    return Structure(type(model).__name__, {name: declaration[name] for name in groups or declaration})


def at(tree: Any, path: Path) -> Any:
    """The subtree at a path in a tree of dicts."""
    for name in path:
        tree = tree[name]
    return tree


def stack_path(path: tuple) -> Path:
    """The stack among whose layers the parameter at a path of jax's keys lies."""
    names = path_name(path).split("/")
    return tuple(names[: names.index("segments")])


def put(params: Params, path: Path, new: Any) -> Params:
    """`params` with something else at a path."""
    if not path:
        return new
    return {**params, path[0]: put(params[path[0]], path[1:], new)}
