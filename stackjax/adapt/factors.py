"""Low-rank factors beside the matrices of a model: the sublayer that adds them, and what goes in and out of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.abstract_model import AbstractModel
from stackjax.layer import Layer
from stackjax.norm import upcast
from stackjax.parameter import FanIn, Spec, is_spec, path_name, realise, zeros
from stackjax.stack import Stack
from stackjax.sublayer import Params, Sublayer
from stackjax.wrapped import Wrapped

GROUP = "low_rank"
"""Name of the group that holds the factors, beside the matrices of their sublayer."""


@dataclass(frozen=True, kw_only=True)
class LowRank(Wrapped):
    """A sublayer whose matrices W of some roles act as W + (alpha / rank) A B, or as that with columns of other norms.

    With magnitudes (DoRA) W' = W + (alpha / rank) A B acts as W' (|W| + m) / |W'|, norms and m for each column, whose
    gradient takes |W'| for a constant; a column of zeros has no direction and acts as it is.

    Args:
        name: that of the inner sublayer, whose parameters keep their names.
        inner: the sublayer.
        rank: columns of A (I, rank) and rows of B (rank, O).
        alpha: of the factor alpha / rank.
        roles: of the matrices.
        magnitude: whether each column's norm is trained by itself.
    """

    rank: int
    alpha: float
    roles: tuple[str, ...]
    magnitude: bool = False
    numbers = Wrapped.numbers

    def map(self, change: Callable[[Sublayer], Sublayer]) -> Sublayer:
        return replace(self, inner=self.inner.map(change))

    def spec(self, d_model: int) -> dict[str, Any]:
        specs = self.inner.spec(d_model)

        def factors(spec: Spec) -> dict[str, Spec]:
            *experts, n_in, n_out = spec.shape
            norms = {"magnitude": Spec(shape=(*experts, n_out), role="adapter", init=zeros)} if self.magnitude else {}
            return {
                **norms,
                "a": Spec(shape=(*experts, n_in, self.rank), role="adapter", init=FanIn(1 / 3)),
                "b": Spec(shape=(*experts, self.rank, n_out), role="adapter", init=zeros),
            }

        return {**specs, GROUP: {name: factors(specs[name]) for name in self.adapted(specs)}}

    def adapted(self, specs: Mapping[str, Any]) -> list[str]:
        """Names of the matrices that have factors."""
        return [name for name, spec in specs.items() if is_spec(spec) and spec.role in self.roles]

    def effective(self, params: Params) -> Params:
        inner = {name: value for name, value in params.items() if name != GROUP}
        for name, factors in params[GROUP].items():
            inner[name] = _adapted(inner[name], factors, self.alpha / self.rank)
        return inner


def low_rank(
    model: AbstractModel,
    *,
    rank: int,
    alpha: float | None = None,
    roles: tuple[str, ...] = ("query", "value"),
    magnitude: bool = False,
) -> Any:
    """The model with low-rank factors beside each matrix of the roles.

    Args:
        model: a stack, a model or an encoder-decoder.
        rank: of the product A B.
        alpha: of the factor alpha / rank; None means rank, a factor of 1.
        roles: of hidden matrices that sublayers declare by name, see `Spec`.
        magnitude: whether the norm of each column is trained apart from its direction (DoRA).

    Raises:
        ValueError: a rank below 1; a role that no matrix of the model has; a model that is adapted already.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if next(_adapted_in(model), None) is not None:
        raise ValueError("the model is adapted already; merge first, or adapt all roles at once")
    factor = float(rank if alpha is None else alpha)

    def wrap(sublayer: Sublayer, d_model: int) -> Sublayer:
        wrapped = LowRank(
            name=sublayer.name, inner=sublayer, rank=rank, alpha=factor, roles=tuple(roles), magnitude=magnitude
        )
        return wrapped if wrapped.adapted(sublayer.spec(d_model)) else sublayer

    def adapt(stack: Stack) -> Stack:
        return _changed(stack, lambda sublayer: wrap(sublayer, stack.d_model))

    adapted = model.with_stacks({path: adapt(stack) for path, stack in model.stacks().items()})
    leaves = jax.tree_util.tree_leaves_with_path(adapted.declaration())
    roles_found = {d.spec.role for path, d in leaves if factor_of(path) is None}
    if missing := [role for role in roles if role not in roles_found]:
        raise ValueError(f"no matrix has the role {missing[0]!r}; the roles are {', '.join(sorted(roles_found))}")
    return adapted


def start(adapted: AbstractModel, params: Params, key: jax.Array) -> Params:
    """The parameters of the model with new factors beside them: A as declared, B zero.

    Args:
        adapted: what `low_rank` made of the model.
        params: of the model before that.
        key: of the draw.
    """
    held = dict(jax.tree_util.tree_leaves_with_path(params))
    dtype = jnp.result_type(*held.values())
    return jax.tree_util.tree_map_with_path(
        lambda path, d: held[path] if factor_of(path) is None else realise(key, d, dtype=dtype), adapted.declaration()
    )


def frozen(adapted: AbstractModel) -> Params:
    """True for all parameters but the factors, as `optax.selective_transform` takes it."""
    return jax.tree_util.tree_map_with_path(lambda path, _: factor_of(path) is None, adapted.declaration())


def merge(adapted: AbstractModel, params: Params) -> tuple[Any, Params]:
    """The model without factors, and its parameters with the products added to the matrices."""
    model, held = _without(adapted), held_by(adapted)
    leaves = dict(jax.tree_util.tree_leaves_with_path(params))
    pairs: dict[str, dict[str, jax.Array]] = {}
    for path, leaf in leaves.items():
        if place := factor_of(path):
            pairs.setdefault(place[0], {})[place[1]] = leaf

    def merged(path: tuple, _: Any) -> jax.Array:
        pair = pairs.get(path_name(path))
        return leaves[path] if pair is None else _adapted(leaves[path], pair, held.alpha / held.rank)

    return model, jax.tree_util.tree_map_with_path(merged, model.declaration())


def _adapted(matrix: jax.Array, factors: Mapping[str, jax.Array], scale: float) -> jax.Array:
    """W + scale A B, perhaps with columns of other norms, with any leading axes."""
    new = matrix + (scale * factors["a"] @ factors["b"]).astype(matrix.dtype)
    if "magnitude" not in factors:
        return new
    before, after = map(_column_norms, (matrix, jax.lax.stop_gradient(new)))
    wanted = before + upcast(factors["magnitude"][..., None, :])
    factor = jnp.where(after == 0, 1, wanted / jnp.where(after == 0, 1, after))
    return (upcast(new) * factor).astype(matrix.dtype)


def _column_norms(matrix: jax.Array) -> jax.Array:
    """The norm of each column, (..., 1, O); the gradient of that of a column of zeros is zero."""
    squares = jnp.sum(jnp.square(upcast(matrix)), axis=-2, keepdims=True)
    return jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def factor_of(path: tuple) -> tuple[str, str] | None:
    """The matrix that a factor belongs to and which of the two it is; None for other parameters."""
    *steps, last = path_name(path).split("/")
    if GROUP not in steps:
        return None
    return "/".join(step for step in steps if step != GROUP), last


def _changed(stack: Stack, change: Callable[[Sublayer], Sublayer]) -> Stack:
    """The stack with other sublayers."""

    def in_layer(layer: Layer) -> Layer:
        return replace(layer, sublayers=tuple(sublayer.map(change) for sublayer in layer.sublayers))

    return replace(stack, segments=tuple(segment.map(in_layer) for segment in stack.segments))


def held_by(value: Any) -> LowRank:
    """An adapted sublayer of a description.

    Raises:
        ValueError: there is none, or there are several of different rank or alpha.
    """
    every = list(_adapted_in(value))
    if not every:
        raise ValueError("the model is not adapted; make it so with low_rank")
    if len(kinds := {(one.rank, one.alpha) for one in every}) > 1:
        raise ValueError(f"all adapters of a model have one rank and alpha; got {sorted(kinds)}")
    return every[0]


def _adapted_in(value: Any) -> Iterator[LowRank]:
    if isinstance(value, LowRank):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _adapted_in(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _adapted_in(getattr(value, field.name))


def _without(value: Any) -> Any:
    """A description in which each adapted sublayer is the one inside it."""
    if isinstance(value, LowRank):
        return _without(value.inner)
    if isinstance(value, tuple):
        return tuple(map(_without, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    new = {field.name: _without(getattr(value, field.name)) for field in fields(value) if field.init}
    return replace(value, **{name: one for name, one in new.items() if one != getattr(value, name)})
