"""Optimisers that know the layer axis and the recipe's multipliers, as optax gradient transformations.

A stacked leaf holds one matrix per layer. Whatever looks at a leaf as a whole (Muon's orthogonalisation, clipping by a
norm) must be told so; and learning rate, weight decay and epsilon follow the recipe by role and layer. Learning
rate and weight decay may be traced, so a vmap over them is one compile.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from stackjax.norm import upcast
from stackjax.parameter import MATRICES, Declared, is_spec, path_name
from stackjax.recipe.base import Multiplier
from stackjax.sublayer import Params

DECAYED = MATRICES | {"embed", "unembed", "router", "mix"}
"""Roles that weight decay acts on: matrices, and no norm, bias, gate or position table."""


class Described(Protocol):
    """A model or a stack."""

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`."""
        ...

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier`."""
        ...

    def project(self, params: Params) -> Params:
        """The parameters where the recipe wants them after each step."""
        ...


def _each(model: Described, change: Callable[..., jax.Array], *trees: Any) -> Any:
    """`change(declared, multiplier, *leaves)` for every parameter."""
    declared, multipliers = model.declaration(), model.multipliers()
    return jax.tree.map(
        change, declared, multipliers, *trees, is_leaf=lambda x: is_spec(x) or isinstance(x, Multiplier)
    )


def _times(declared: Declared, factor: Any, leaf: jax.Array) -> jax.Array:
    """The leaf times a number per role, () or (L,)."""
    if isinstance(factor, float) and factor == 1.0:
        return leaf
    return leaf * declared.spread(factor).astype(leaf.dtype)


def by_epsilon(model: Described) -> optax.GradientTransformation:
    """Divide gradients by the recipe's factors k on Adam's epsilon, before Adam.

    m / (sqrt(v) + k eps) is Adam with plain eps on g / k, since m and sqrt(v) are linear in the scale of g.
    """
    return optax.stateless(lambda updates, _: _each(model, lambda d, m, u: _times(d, _inverse(m.eps), u), updates))


def _inverse(factor: Any) -> Any:
    return 1.0 / factor


def by_recipe(
    model: Described, *, learning_rate: Any, weight_decay: Any = 0.0, others: Any = 1.0
) -> optax.GradientTransformation:
    """-lr m_lr (update + wd m_wd weight), with the recipe's factors m; statistics stay as they are.

    Args:
        model: declares the parameters and the factors.
        learning_rate: a number, traced or not, or an optax schedule.
        weight_decay: a number, traced or not; acts on the roles in `DECAYED`.
        others: factor on the learning rate of everything that is not a hidden matrix.
    """

    def scale(updates: Any, params: Any) -> Any:
        def change(declared: Declared, m: Multiplier, update: jax.Array, weight: jax.Array) -> jax.Array:
            spec = declared.spec
            if spec.role == "statistic":
                return jnp.zeros_like(update)
            if spec.role in DECAYED and not (isinstance(weight_decay, float) and weight_decay == 0.0):
                update = update + weight_decay * _times(declared, m.weight_decay, weight)
            update = _times(declared, m.learning_rate, update)
            return update if spec.is_matrix or (isinstance(others, float) and others == 1.0) else others * update

        return _each(model, change, updates, params)

    return optax.chain(optax.stateless(scale), optax.scale_by_learning_rate(learning_rate))


def by_projection(model: Described) -> optax.GradientTransformation:
    """Bend the updates, after all else, so that they end where the recipe's `project` puts the parameters."""

    def bend(updates: Any, params: Any) -> Any:
        moved: Any = optax.apply_updates(params, updates)
        held = model.project(moved)
        return updates if held is moved else jax.tree.map(jnp.subtract, held, params)

    return optax.stateless(bend)


def adamw(
    model: Described,
    *,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    b1: Any = 0.9,
    b2: Any = 0.95,
    eps: Any = 1e-8,
) -> optax.GradientTransformation:
    """AdamW with the recipe's multipliers.

    Args:
        model: a model or a stack.
        learning_rate: a number, traced or not, or an optax schedule.
        weight_decay: decoupled, multiplied by the learning rate; acts on the roles in `DECAYED`.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment, times the recipe's factor.

    Source: Loshchilov & Hutter 2019, algorithm 2, arXiv:1711.05101.
    """
    return optax.chain(
        by_epsilon(model),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        by_recipe(model, learning_rate=learning_rate, weight_decay=weight_decay),
        by_projection(model),
    )


def muon(
    model: Described,
    *,
    learning_rate: Any,
    adam_ratio: Any = 0.1,
    weight_decay: Any = 0.0,
    momentum: Any = 0.95,
    b1: Any = 0.9,
    b2: Any = 0.95,
    eps: Any = 1e-8,
) -> optax.GradientTransformation:
    """Muon on the hidden matrices, each layer's by itself, and AdamW on everything else.

    An orthogonalised update is multiplied by sqrt(max(1, out / in)).

    Args:
        model: a model or a stack.
        learning_rate: of the hidden matrices; a number, traced or not, or an optax schedule.
        adam_ratio: AdamW's learning rate as a share of it.
        weight_decay: decoupled; acts on the roles in `DECAYED`.
        momentum: Nesterov.
        b1: AdamW's.
        b2: AdamW's.
        eps: AdamW's.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    labels = jax.tree.map(lambda d: "muon" if d.spec.is_matrix else "adam", model.declaration(), is_leaf=is_spec)
    last_two = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    def axes(updates: Any) -> Any:
        return jax.tree.map(lambda _: last_two, updates)

    def by_shape(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5, updates)

    orthogonal = optax.chain(scale_by_muon(beta=momentum, weight_dimension_numbers=axes), optax.stateless(by_shape))
    return optax.chain(
        by_epsilon(model),
        optax.partition({"muon": orthogonal, "adam": optax.scale_by_adam(b1=b1, b2=b2, eps=eps)}, labels),
        by_recipe(model, learning_rate=learning_rate, weight_decay=weight_decay, others=adam_ratio),
        by_projection(model),
    )


def clip_by_layer_norm(model: Described, max_norm: Any) -> optax.GradientTransformation:
    """Scale the gradient of each layer of each stack, and of all that is outside, to a norm of at most `max_norm`.

    The counterpart for the whole tree is `optax.clip_by_global_norm`.
    """
    placed = jax.tree_util.tree_leaves_with_path(model.declaration(), is_leaf=is_spec)
    stacks = [path_name(path).partition("segments/")[0] for path, _ in placed]
    depths: dict[str, int] = {}
    for name, (_, d) in zip(stacks, placed, strict=True):
        depths[name] = max(depths.get(name, 0), 1 + max(d.layers, default=-1))
    starts = dict(zip(depths, accumulate(depths.values(), initial=0), strict=False))
    n_layers = sum(depths.values())
    declared: list[tuple[int, Declared]] = [(starts[name], d) for name, (_, d) in zip(stacks, placed, strict=True)]

    def clip(updates: Any, _: Any) -> Any:
        leaves, tree = jax.tree.flatten(updates)
        squares = jnp.zeros(n_layers + 1, jnp.result_type(jnp.float32, *leaves))
        for leaf, (start, d) in zip(leaves, declared, strict=True):
            where = start + jnp.asarray(d.layers) if d.layers else jnp.asarray([n_layers])
            square = jnp.square(upcast(leaf))
            each = jnp.sum(square, tuple(range(1, leaf.ndim))) if d.stacked else jnp.sum(square)
            squares = squares.at[where].add(each)
        factors = jnp.minimum(1.0, max_norm / (jnp.sqrt(squares) + 1e-12))

        def scaled(leaf: jax.Array, start: int, d: Declared) -> jax.Array:
            return (leaf * (d.spread(factors[start:]) if d.layers else factors[-1])).astype(leaf.dtype)

        return jax.tree.unflatten(tree, [scaled(leaf, *where) for leaf, where in zip(leaves, declared, strict=True)])

    return optax.stateless(clip)
