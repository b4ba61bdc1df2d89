"""One mechanism for growing and cutting: a list of layers, and all that is laid out by layers gathered by it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.abstract_model import AbstractModel, Path, put
from stackjax.check import shown
from stackjax.parameter import Gain, is_spec
from stackjax.recipe.around import Around
from stackjax.recipe.base import Coefficients, Geometry, Loop, Multiplier
from stackjax.recipe.form import Form
from stackjax.stack import Stack
from stackjax.structure import with_empty_groups
from stackjax.sublayer import Params, Sublayer

Numbers = Literal["original", "new"]
"""The choice of whether layers keep the coefficients, forms, gains and multipliers of their old place, or get those
of their new place in a stack of the new depth."""


def existing(depth: int, layers: Sequence[int]) -> list[int]:
    """The layers that are named, if a stack of this depth has them.

    Raises:
        ValueError: it has not; numbers from the end are none, nor are booleans.
    """
    numbers = np.asarray(layers)
    if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"layers must be named by integers, a mask by np.flatnonzero(mask); got {shown(layers)}")
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise ValueError(f"layers must be 0 .. {depth - 1}; got {wrong[0]}")
    return [int(layer) for layer in layers]


def stacked(depth: int, times: int) -> list[int]:
    """The layers 0 .. L-1 again and again: 0 1 2 0 1 2. Source: Gong et al. 2019, ICML, "progressive stacking"."""
    return list(range(depth)) * times


def interleaved(depth: int, times: int) -> list[int]:
    """Each layer next to its copies: 0 0 1 1 2 2. Source: Chang et al. 2018, arXiv:1710.10348."""
    return [layer for layer in range(depth) for _ in range(times)]


def duplicated(depth: int, layers: Sequence[int]) -> list[int]:
    """All layers, each followed by as many copies as it is named."""
    named = existing(depth, layers)
    return [layer for layer in range(depth) for _ in range(1 + named.count(layer))]


def pruned(depth: int, layers: Sequence[int]) -> list[int]:
    """All layers but those named."""
    named = existing(depth, layers)
    return [layer for layer in range(depth) if layer not in named]


@dataclass(frozen=True, kw_only=True)
class _OfLayers(Around):
    """A recipe whose layers keep what they had in another stack.

    Args:
        layers: for each layer of this stack its index in the other one.
        geometry: of the other stack.
    """

    layers: tuple[int, ...]
    geometry: Geometry

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        return self.base.adapt(sublayer, self.geometry)

    def adapt_head(self, head: Any, geometry: Geometry) -> Any:
        return self.base.adapt_head(head, self.geometry)

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        return self.base.form(sublayer, index, self._source(layer), self.geometry)

    def outer(self, layer: int, geometry: Geometry) -> Form | None:
        return self.base.outer(self._source(layer), self.geometry)

    def coefficients(self, geometry: Geometry) -> Coefficients:
        numbers = self.base.coefficients(self.geometry)
        rows = np.array(self.layers[: geometry.depth], np.int32)
        return {**numbers, **jax.tree.map(lambda x: x[rows], {name: numbers[name] for name in ("sublayer", "outer")})}

    def gain(self, role: str, geometry: Geometry) -> Gain:
        return self._chosen(self.base.gain(role, self.geometry))

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        m = self.base.multiplier(role, self.geometry)
        names = ("learning_rate", "weight_decay", "eps")
        return Multiplier(**{name: self._chosen(getattr(m, name)) for name in names})

    def _source(self, layer: int) -> int:
        """The layer in the other stack; a stack without layers is described by the first."""
        return self.layers[layer] if self.layers else 0

    def _chosen(self, numbers: Any) -> Any:
        return numbers if jnp.ndim(numbers) == 0 else numbers[np.array(self.layers, np.int32)]


def select(
    model: AbstractModel,
    params: Params,
    layers: Sequence[int],
    *,
    coefficients: Numbers,
    state: Any = None,
    stack: Path | None = None,
) -> tuple[Any, Params, Any]:
    """A model made of some layers of another one, in any order and as often as wanted.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters.
        layers: 0 .. L-1 of the old stack, one for each layer of the new one; none leaves no layer.
        coefficients: "original" keeps what the recipe gave each layer in its old place, "new" asks the recipe again.
        state: an optimiser's state, or any tree that holds trees nested like the parameters.
        stack: which stack; None where there is only one.

    Returns:
        The model, its parameters and the state.

    Raises:
        ValueError: layers that are not there; a loop whose pattern would break; parameters whose shapes depend on the
            depth; a state that is not laid out by layers, or in which nothing is nested like the parameters.
    """
    if coefficients not in ("original", "new"):
        raise ValueError(f"coefficients must be 'original' or 'new'; got {coefficients!r}")
    path, old = stack_at(model, stack)
    order = existing(old.depth, layers)
    stacks = {**model.stacks(), path: _rebuilt(old, order, coefficients)}
    if coefficients == "new":
        stacks |= {
            other: _rebuilt(held, list(range(held.depth)), "new", other_depth=len(order))
            for other, held in model.stacks().items()
            if other != path
        }
    new = model.with_stacks(stacks)

    def move(tree: Params) -> Params:
        part = within(tree, path)
        return tree if part is None else put(tree, path, {**part, **_moved(old, stacks[path], part, order)})

    moved = move(model.checked(params))
    expected = jax.tree.map(lambda d: d.shape, new.declaration())
    if jax.tree.map(jnp.shape, moved) != expected:
        raise ValueError(
            f"{type(old.recipe).__name__} declares parameters that depend on the depth or on a layer's place, so that "
            "its layers do not fit elsewhere"
        )
    return new, moved, each_tree(model, move, state)


def stack_at(model: AbstractModel, stack: Path | None) -> tuple[Path, Stack]:
    """The stack of a model that is meant, and the path to its parameters."""
    stacks = model.stacks()
    if stack is None and len(stacks) == 1:
        (stack,) = stacks
    if stack not in stacks:
        raise ValueError(f"say which stack, out of {sorted(stacks)}; got stack={stack}")
    return stack, stacks[stack]


def _rebuilt(old: Stack, order: list[int], coefficients: Numbers, other_depth: int | None = None) -> Stack:
    """The description of a stack of these layers."""
    every = [layer for segment in old.segments for layer in segment.each]
    chosen = [every[layer] for layer in order] or [old.segments[0].layers[0]]
    loop = None if old.geometry.loop is None else _kept(old.geometry.loop, order)
    recipe, geometry, sources = old.recipe, old.geometry, order
    if isinstance(recipe, _OfLayers):
        recipe, geometry, sources = recipe.base, recipe.geometry, [recipe.layers[layer] for layer in order]
    if coefficients == "original" and sources != list(range(geometry.depth)):
        recipe = _OfLayers(base=recipe, layers=tuple(sources), geometry=geometry)
    changed = {} if other_depth is None else {"other_depth": other_depth}
    width = max(len(layer.sublayers) for layer in chosen)
    new = replace(old.geometry, depth=len(order), n_sublayers=width, loop=loop, **changed)
    return Stack.from_layers(chosen, new, recipe)


def _kept(loop: Loop, order: list[int]) -> Loop:
    """The loop among some layers of its stack.

    Raises:
        ValueError: a pattern that breaks, or layers around the loop inside of it.
    """
    before, inside, after = (
        [layer for layer in order if start <= layer < stop]
        for start, stop in ((0, loop.before), (loop.before, loop.stop), (loop.stop, math.inf))
    )
    places = [(layer - loop.before) % loop.length for layer in inside]
    turns, rest = divmod(len(inside), loop.length)
    if not inside or rest or order != before + inside + after or places != list(range(loop.length)) * turns:
        raise ValueError(f"a loop repeats its whole pattern of {loop.length} layers, once or more; got layers {order}")
    return replace(loop, before=len(before), turns=turns)


def places(stack: Stack) -> list[tuple[str, str, int]]:
    """Each layer's segment, its place in the pattern and its repeat."""
    return [
        (name, str(j), repeat)
        for name, _, segment in stack.placed()
        for repeat in range(segment.n)
        for j in range(len(segment.layers))
    ]


def _moved(old: Stack, new: Stack, tree: Params, order: list[int]) -> Params:
    """{segments: ..} of the new stack, gathered from a tree like the parameters of the old one."""
    held, sizes = places(old), {name: segment.n for name, _, segment in old.placed()}
    first, looped = old.placed()[0][0], {name for name, _, segment in old.placed() if segment.looped}

    def rows(name: str, j: str, repeats: list[int]) -> Any:
        def row(leaf: Any) -> Any:
            if jnp.shape(leaf)[:1] != (sizes[name],):
                raise ValueError(
                    f"a leaf of shape {jnp.shape(leaf)} in place of a parameter is not laid out by the {sizes[name]} "
                    "layers it belongs to, so it cannot follow them"
                )
            return leaf[np.array(repeats, np.int32)]

        stored = tree["segments"][name][j]
        return stored if name in looped else jax.tree.map(row, stored)

    segments: Params = {}
    for name, start, segment in new.placed():
        segments[name] = {}
        for j in range(len(segment.layers)):
            sources = [held[layer] for layer in order[start + j : start + segment.depth : len(segment.layers)]]
            kinds = {source[:2] for source in sources} or {(first, str(j))}
            if len(kinds) == 1:
                gathered = rows(*sorted(kinds)[0], [repeat for *_, repeat in sources])
            else:
                each = [rows(*source[:2], [source[2]]) for source in sources]
                gathered = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each)
            segments[name][str(j)] = gathered
    return {"segments": segments}


def within(tree: Any, path: Path) -> Any:
    """The subtree at a path in a tree like the parameters; None where that is masked."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else None


def each_tree(model: AbstractModel, change: Callable[[Params], Params], state: Any) -> Any:
    """A state with each tree in it that is nested like the parameters changed; groups that are empty may be missing.

    Raises:
        ValueError: there is none, and yet an array of numbers.
    """
    declaration, found = model.declaration(), []
    full = {name for name, group in declaration.items() if jax.tree.leaves(group, is_leaf=is_spec)}

    def is_tree(node: Any) -> bool:
        return isinstance(node, Mapping) and full <= node.keys() <= declaration.keys()

    def changed(node: Any) -> Any:
        if not is_tree(node):
            return node
        found.append(node)
        return change(with_empty_groups(declaration, node))

    new = jax.tree.map(changed, state, is_leaf=is_tree)
    arrays = [x for x in jax.tree.leaves(state) if getattr(x, "ndim", 0) and jnp.issubdtype(x.dtype, jnp.inexact)]
    if arrays and not found:
        raise ValueError(
            f"nothing in the state is nested like the parameters, {{{', '.join(declaration)}}}, so that its arrays "
            f"cannot follow the layers; its first is {shown(arrays[0])}"
        )
    return new
