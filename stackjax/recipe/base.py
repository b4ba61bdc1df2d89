"""The recipe: the whole depth treatment as one object.

What makes depth work is never one thing. A recipe holds all of it, so that no half of a paper can be used by accident:

    adapt         what must be true inside a branch (norms on hidden layers, attention scale), and in the head
    form          how a branch joins the stream; opens and closes the stream, the final norm included
    coefficients  depth -> numbers for each layer and sublayer, arrays that the scan reads as data
    default_init, gain    the initialiser of weight matrices, and factors on every initialiser, by role and layer
    multiplier    learning rate, weight decay and Adam's epsilon, by role and layer
    project, calibrate    what happens after each step, and once before the first

A recipe of your own is a subclass, in your own file, that overrides what differs from the plain one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from stackjax.check import whole
from stackjax.description import Description
from stackjax.embedding import Head
from stackjax.norm import NoNorm
from stackjax.parameter import Declared, Gain, Init, is_spec, path_name, per_layer, xavier
from stackjax.recipe.form import Form
from stackjax.sublayer import Params, Sublayer


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The layers of a stack that run several times with one copy of their parameters.

    Args:
        before: layers in front of them.
        length: layers in one turn.
        turns: how many times they run.
    """

    before: int = 0
    length: int
    turns: int

    @property
    def stop(self) -> int:
        """Index of the first layer behind the loop."""
        return self.before + self.length * self.turns


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The numbers that a recipe's constants may depend on.

    Args:
        depth: L, layers in this stack.
        d_model: D.
        n_sublayers: sublayers in a layer (2; 3 with cross-attention; 1 when parallel: its branches make one sum).
        side: whether this stack is an encoder or a decoder.
        other_depth: layers in the stack on the other side of an encoder-decoder; 0 if there is none.
        loop: the layers, among those, that share parameters; None if none do.
    """

    depth: int
    d_model: int
    n_sublayers: int = 2
    side: Literal["encoder", "decoder"] = "decoder"
    other_depth: int = 0
    loop: Loop | None = None

    def __post_init__(self):
        if self.side not in ("encoder", "decoder"):
            raise ValueError(f"side must be 'encoder' or 'decoder'; got {self.side!r}")
        whole(depth=self.depth, d_model=self.d_model, other_depth=self.other_depth)
        for name, least in (("depth", 0), ("d_model", 1), ("other_depth", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more; got {getattr(self, name)}")

    @property
    def encoder_depth(self) -> int:
        """N, 0 without an encoder."""
        return self.depth if self.side == "encoder" else self.other_depth

    @property
    def decoder_depth(self) -> int:
        """M, 0 without a decoder."""
        return self.depth if self.side == "decoder" else self.other_depth


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """Factors on the optimiser's numbers for the parameters of one role, each () or (L,).

    Args:
        learning_rate: on the learning rate.
        weight_decay: on the weight decay, which is itself multiplied by the learning rate before this factor.
        eps: on Adam's epsilon.
    """

    learning_rate: Any = 1.0
    weight_decay: Any = 1.0
    eps: Any = 1.0


Coefficients = dict[str, Any]
"""The numbers of every form by depth, as data: {sublayer: {name: (L, S)}, outer: {name: (L,)}, embed: (), unembed: ()},
S the sublayers of a layer."""

Observe = Callable[[Params, Callable[[Any], dict[str, jax.Array]]], dict[str, jax.Array]]
"""`observe(params, measure)` runs one batch and returns what `measure` made of each layer's trace, leading axis L."""

BRANCH = frozenset({"value", "out", "up", "gate", "down"})
"""Roles of the matrices that a branch's output is proportional to; queries and keys only steer it."""

CROSS_BRANCH = frozenset({"cross_value", "cross_out"})
"""Roles of such matrices in cross-attention."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Description):
    """Base of every recipe: one residual form for all sublayers, Xavier's init, no constant that depends on depth.

    Args:
        residual: the form.
        default_init: init of the matrices whose declaration names none.
    """

    residual: Form
    default_init: Init = xavier

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        """A sublayer with whatever the recipe changes inside it."""
        return sublayer

    def adapt_head(self, head: Head, geometry: Geometry) -> Head:
        """The model's head with whatever the recipe changes in it."""
        return head

    def form(self, sublayer: Sublayer, index: int, layer: int, geometry: Geometry) -> Form:
        """The residual form of sublayer number `index` (0 .. S-1) of layer `layer` (0 .. L-1)."""
        return self.residual

    def outer(self, layer: int, geometry: Geometry) -> Form | None:
        """The form around the whole layer; None where its sublayers join the stream and no more is needed."""
        return None

    def coefficients(self, geometry: Geometry) -> Coefficients:
        """Numbers for each sublayer (L, S), each layer (L,), the embedding () and the logits ()."""
        one = jnp.ones((geometry.depth, geometry.n_sublayers), jnp.float32)
        return {
            "sublayer": {"alpha": one, "beta": one, "gamma": one},
            "outer": {},
            "embed": jnp.float32(1),
            "unembed": jnp.float32(1),
        }

    def gain(self, role: str, geometry: Geometry) -> Gain:
        """Factor on the init of parameters of this role, () or (L,)."""
        return 1.0

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        """Factors on the optimiser's numbers for parameters of this role."""
        return Multiplier()

    def project(self, params: Params, declaration: Any) -> Params:
        """Parameters where they must be, before the first step and after every one; most recipes leave them alone.

        `Model.init` applies it, and so do the updates of every optimiser in `stackjax.optim`: a loop that adds them up
        with `optax.apply_updates` need do nothing. With an optimiser from elsewhere, a step ends with

            params = optax.apply_updates(params, updates)
            params = model.project(params)

        Applying it twice changes nothing. The optimiser's state is not touched.

        Args:
            params: of a model or a stack, or a part of them: an optimiser that trains only some sees only those.
            declaration: the same tree of `Declared`.
        """
        return params

    def calibrate(self, params: Params, declaration: Params, observe: Observe) -> Params:
        """Parameters before the first step, given what a forward pass over one batch sees.

        A pure function, called through `Stack.calibrate` or `Model.calibrate`, which know the batch.

        Args:
            params: of one stack, as drawn by `Stack.init`.
            declaration: the same tree of `Declared`.
            observe: runs the batch with given parameters of this stack and a measure.
        """
        return params


def checked_gain(recipe: Recipe, role: str, geometry: Geometry) -> Gain:
    """The recipe's factor on the init of a role.

    Raises:
        ValueError: neither () nor (L,).
    """
    gain = recipe.gain(role, geometry)
    per_layer(f"{type(recipe).__name__}'s gain for the role {role!r}", gain, geometry.depth)
    return gain


def multipliers(declaration: Params, recipe: Recipe, geometry: Geometry) -> Params:
    """A tree of `Declared` as a tree of the recipe's `Multiplier`.

    Raises:
        ValueError: a factor that is neither () nor (L,).
    """

    def of(declared: Declared) -> Multiplier:
        role = declared.spec.role
        multiplier = recipe.multiplier(role, geometry)
        for field in fields(multiplier):
            what = f"{type(recipe).__name__}'s multiplier of {field.name} for the role {role!r}"
            per_layer(what, getattr(multiplier, field.name), geometry.depth)
        return multiplier

    return jax.tree.map(of, declaration, is_leaf=is_spec)


def checked_coefficients(coefficients: Coefficients | None, recipe: Recipe, geometry: Geometry) -> Coefficients:
    """The caller's coefficients; None means the recipe's.

    Args:
        coefficients: what was given.
        recipe: whose numbers they replace.
        geometry: of the stack.

    Raises:
        ValueError: other names than the recipe's, or other leading axes.
    """
    name, axes = type(recipe).__name__, _coefficient_axes(recipe, geometry)
    if coefficients is None:
        return recipe.coefficients(geometry)
    shapes = _shapes(coefficients)
    missing, unknown = sorted(axes.keys() - shapes.keys()), sorted(shapes.keys() - axes.keys())
    if missing or unknown:
        raise ValueError(
            f"{name} has the coefficients {', '.join(axes)}; missing: {missing}, unknown: {unknown}. Start from "
            "`stack.coefficients()`, and let `with_coefficients` replace some of them"
        )
    _check_axes(shapes, axes)
    return coefficients


@functools.lru_cache(maxsize=512)
def _coefficient_axes(recipe: Recipe, geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """The leading axes of each coefficient: {sublayer/alpha: (L, S), .., embed: (), unembed: ()}.

    Raises:
        ValueError: the recipe returns something else.
    """
    groups = {
        "sublayer": (geometry.depth, geometry.n_sublayers),
        "outer": (geometry.depth,),
        "embed": (),
        "unembed": (),
    }
    returned = _shapes(jax.eval_shape(lambda: recipe.coefficients(geometry)))
    top = {path.partition("/")[0] for path in returned}
    if not top <= groups.keys() or not {"embed", "unembed"} <= top:
        raise ValueError(
            f"{type(recipe).__name__}.coefficients must return {{{', '.join(groups)}}}; got {sorted(returned)}"
        )
    axes = {path: groups[path.partition("/")[0]] for path in returned}
    _check_axes(returned, axes)
    return axes


def _shapes(coefficients: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(coefficients)}


def _check_axes(shapes: dict[str, tuple[int, ...]], axes: dict[str, tuple[int, ...]]) -> None:
    for path, leading in axes.items():
        if shapes[path][: len(leading)] != leading:
            raise ValueError(
                f"the coefficient {path} must begin with the axes {leading} (layers, sublayers); got {shapes[path]}. "
                "`with_coefficients` broadcasts"
            )


def with_coefficients(coefficients: Coefficients, **numbers: Any) -> Coefficients:
    """`coefficients` with some of the sublayers' numbers replaced or added, each broadcast to (L, S)."""
    shape = coefficients["sublayer"]["alpha"].shape
    new = {name: jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape) for name, x in numbers.items()}
    return {**coefficients, "sublayer": {**coefficients["sublayer"], **new}}


def innermost(sublayer: Sublayer) -> list[Sublayer]:
    """The sublayers that a container holds, or the sublayer itself."""
    held: list[Sublayer] = []

    def note(one: Sublayer) -> Sublayer:
        held.append(one)
        return one

    sublayer.map(note)
    return held


def is_attention(sublayer: Sublayer) -> bool:
    """True for a sublayer that attends.

    Raises:
        ValueError: a container of attention and something else, for which a recipe that asks has no rule.
    """
    kinds = {one.attends for one in innermost(sublayer)}
    if len(kinds) > 1:
        raise ValueError(f"this recipe treats attention apart from other sublayers, and {sublayer.name!r} holds both")
    return kinds == {True}


def inside(sublayer: Sublayer, **fields: Any) -> Sublayer:
    """`sublayer` with these fields, which it must have, and which must not hold another choice yet.

    Raises:
        ValueError: a sublayer without such a field, or whose field is already in use.
    """
    for name, value in fields.items():
        if not hasattr(sublayer, name):
            raise ValueError(
                f"this recipe sets {name} inside each branch, and {type(sublayer).__name__} ({sublayer.name!r}) has no "
                "such field; give it one, or use another recipe"
            )
        if getattr(sublayer, name) not in (NoNorm(), value):
            raise ValueError(
                f"this recipe sets {name} inside each branch, but {sublayer.name!r} has "
                f"{name}={getattr(sublayer, name)}; leave it to the recipe"
            )
    return replace(sublayer, **fields)


def layer_index(geometry: Geometry) -> jax.Array:
    """l = 1 .. L, (L, 1): the layer's number as papers count it."""
    return jnp.arange(1, geometry.depth + 1, dtype=jnp.float32)[:, None]


def sublayer_index(geometry: Geometry) -> jax.Array:
    """s = 1 .. L S, (L, S): the sublayer's number in the whole stack as papers count it."""
    numbers = jnp.arange(1, geometry.depth * geometry.n_sublayers + 1, dtype=jnp.float32)
    return numbers.reshape(geometry.depth, geometry.n_sublayers)
