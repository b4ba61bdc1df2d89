"""Optimisers that know the layer axis and the recipe's multipliers, as optax gradient transformations.

A stacked leaf holds one matrix per layer. Whatever looks at a leaf as a whole (Muon's orthogonalisation, clipping by a
norm) must be told so; and learning rate, weight decay and epsilon follow the recipe by role and layer. Learning
rate and weight decay may be traced, so a vmap over them is one compile.

Every transformation here works on any part of the tree, so optax's own wrappers apply. What is frozen has no moments:

    frozen = jax.tree.map(lambda d: d.spec.role == "embed", model.declaration())
    tx = optax.selective_transform(sj.optim.adamw(model, learning_rate=1e-3), freeze_mask=frozen)

A layer of a stacked leaf cannot be masked; its learning rate can be scaled, by 0 too:

    rates = sj.optim.factors(model, layers=[0.0, 0.0, 1.0, 1.0], roles={"embed": 0.1}, paths={"head/*": 0.5})
    tx = sj.optim.with_rates(model, sj.optim.muon(model, learning_rate=1e-2), rates)
    tx = sj.optim.with_rates(model, optax.lion(1e-4), sj.optim.layer_decay(model, 0.8))
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from stackjax.abstract_model import AbstractModel, stack_path
from stackjax.norm import upcast
from stackjax.parameter import MATRICES, Declared, path_name, restrict
from stackjax.recipe.base import Multiplier
from stackjax.sublayer import Params

DECAYED = MATRICES | {"embed", "unembed", "router", "mix"}
"""Roles that weight decay acts on: matrices, and no norm, bias, gate or position table."""


def _each(model: AbstractModel, change: Callable[..., jax.Array], *trees: Any) -> Any:
    """`change(declared, multiplier, *leaves)` for every parameter that the trees have."""
    declared, multipliers = (restrict(tree, trees[0]) for tree in (model.declaration(), model.multipliers()))
    return jax.tree.map(change, declared, multipliers, *trees)


def _times(declared: Declared, factor: Any, leaf: jax.Array) -> jax.Array:
    """The leaf times a number per role, () or (L,)."""
    if isinstance(factor, float) and factor == 1.0:
        return leaf
    return leaf * declared.spread(factor).astype(leaf.dtype)


def by_epsilon(model: AbstractModel) -> optax.GradientTransformation:
    """Divide gradients by the recipe's factors k on Adam's epsilon, before Adam.

    m / (sqrt(v) + k eps) is Adam with plain eps on g / k, since m and sqrt(v) are linear in the scale of g.
    """
    return optax.stateless(lambda updates, _: _each(model, lambda d, m, u: _times(d, _inverse(m.eps), u), updates))


def _inverse(factor: Any) -> Any:
    return 1.0 / factor


def by_recipe(
    model: AbstractModel, *, learning_rate: Any, weight_decay: Any = 0.0, others: Any = 1.0
) -> optax.GradientTransformation:
    """-lr m_lr (update + wd m_wd weight), with the recipe's factors m; statistics stay as they are.

    Args:
        model: declares the parameters and the factors.
        learning_rate: a number, traced or not, or an optax schedule.
        weight_decay: a number, traced or not, or an optax schedule; acts on the roles in `DECAYED`.
        others: factor on the learning rate of everything that is not a hidden matrix.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        decay: Any = weight_decay(state.count) if callable(weight_decay) else weight_decay

        def change(declared: Declared, m: Multiplier, update: jax.Array, weight: jax.Array) -> jax.Array:
            spec = declared.spec
            if spec.role == "statistic":
                return jnp.zeros_like(update)
            if spec.role in DECAYED and not (isinstance(decay, float) and decay == 0.0):
                update = update + decay * _times(declared, m.weight_decay, weight)
            update = _times(declared, m.learning_rate, update)
            return update if spec.is_matrix or (isinstance(others, float) and others == 1.0) else others * update

        changed = _each(model, change, updates, _given(params))
        return changed, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    def init(params: Any) -> Any:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


def by_projection(model: AbstractModel) -> optax.GradientTransformation:
    """Bend the updates, after all else, so that they end where the recipe's `project` puts the parameters.

    The copy of a parameter that no update moves stays exactly where it is.
    """

    def bend(updates: Any, params: Any) -> Any:
        moved: Any = optax.apply_updates(_given(params), updates)

        def change(declared: Declared, _: Multiplier, update: Any, before: Any, after: Any, projected: Any) -> Any:
            if projected is after:
                return update
            axes = tuple(range(declared.stacked, update.ndim))
            return jnp.where(jnp.any(update != 0, axes, keepdims=True), projected - before, update)

        projected = model.project(moved) if jax.tree.leaves(moved) else moved  # masked whole: nothing to project
        return _each(model, change, updates, params, moved, projected)

    return optax.stateless(bend)


def _given(params: Any) -> Any:
    if params is None:
        raise ValueError("this optimiser reads the parameters; call update(updates, state, params)")
    return params


def adamw(
    model: AbstractModel,
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
        weight_decay: decoupled, multiplied by the learning rate; a number, traced or not, or an optax schedule; acts on
            the roles in `DECAYED`.
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
    model: AbstractModel,
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
        weight_decay: decoupled, multiplied by the learning rate; a number, traced or not, or an optax schedule; acts on
            the roles in `DECAYED`.
        momentum: Nesterov.
        b1: AdamW's.
        b2: AdamW's.
        eps: AdamW's.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    labels = jax.tree.map(lambda d: "muon" if d.spec.is_matrix else "adam", model.declaration())

    def label(part: Any) -> Any:
        return restrict(labels, part)

    last_two = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    def axes(updates: Any) -> Any:
        return jax.tree.map(lambda _: last_two, updates)

    def by_shape(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5, updates)

    orthogonal = optax.chain(scale_by_muon(beta=momentum, weight_dimension_numbers=axes), optax.stateless(by_shape))
    return optax.chain(
        by_epsilon(model),
        optax.partition({"muon": orthogonal, "adam": optax.scale_by_adam(b1=b1, b2=b2, eps=eps)}, label),
        by_recipe(model, learning_rate=learning_rate, weight_decay=weight_decay, others=adam_ratio),
        by_projection(model),
    )


def clip_by_layer_norm(model: AbstractModel, max_norm: Any) -> optax.GradientTransformation:
    """Scale the gradient of each layer of each stack, and of all that is outside, to a norm of at most `max_norm`.

    The counterpart for the whole tree is `optax.clip_by_global_norm`.
    """
    declaration, starts = model.declaration(), _first_rows(model)
    n_rows = 1 + sum(stack.depth for stack in model.stacks().values())

    def clip(updates: Any, _: Any) -> Any:
        leaves, tree = jax.tree.flatten(updates)
        declared = jax.tree.leaves(restrict(declaration, updates))
        rows = [
            start + jnp.asarray(d.layers if d.stacked else d.layers[:1] or (0,), jnp.int32)
            for d, start in zip(declared, jax.tree.leaves(restrict(starts, updates)), strict=True)
        ]
        squares = jnp.zeros(n_rows, jnp.result_type(jnp.float32, *leaves))
        for leaf, d, at in zip(leaves, declared, rows, strict=True):
            square = jnp.square(upcast(leaf))
            squares = squares.at[at].add(jnp.sum(square, tuple(range(1, leaf.ndim))) if d.stacked else jnp.sum(square))
        factors = jnp.minimum(1.0, max_norm / (jnp.sqrt(squares) + 1e-12))

        def scaled(leaf: jax.Array, d: Declared, at: jax.Array) -> jax.Array:
            factor = factors[at].reshape(-1, *(1,) * len(d.spec.shape)) if d.stacked else factors[at[0]]
            return (leaf * factor).astype(leaf.dtype)

        return jax.tree.unflatten(tree, list(map(scaled, leaves, declared, rows)))

    return optax.stateless(clip)


def _first_rows(model: AbstractModel) -> Params:
    """The number of layer 0 of each parameter's stack, where the layers of all stacks are counted from 1; 0 for what
    lies outside of the layers."""
    depths = [(path, stack.depth) for path, stack in model.stacks().items()]
    rows = dict(zip([path for path, _ in depths], accumulate([n for _, n in depths], initial=1), strict=False))
    return jax.tree_util.tree_map_with_path(
        lambda path, d: rows[stack_path(path)] if d.layers else 0, model.declaration()
    )


def factors(
    model: AbstractModel,
    *,
    layers: Any = None,
    roles: Mapping[str, Any] | None = None,
    paths: Mapping[str, Any] | None = None,
) -> Params:
    """A tree of factors on the learning rate, one for each parameter or one for each layer of it, for `with_rates`.

    A parameter's factor is the product of all that speak of it, and 1 if none does.

    Args:
        model: a stack, a model or an encoder-decoder.
        layers: (L,) a number for each layer; in an encoder-decoder {encoder: (N,), decoder: (M,)}. A looped layer takes
            that of its first turn.
        roles: {role: number}, see `Spec`.
        paths: {pattern: number} for parameters whose path, e.g. `stack/segments/0/0/attention/query`, matches the
            pattern, with * for any characters.

    Returns:
        Like the parameters, each leaf () or (L, 1, ..) with the number of layers that it is stacked over.

    Raises:
        ValueError: a role or a pattern that no parameter has, or another number of layers.
    """
    declaration = model.declaration()
    stacks = {} if layers is None else {path: jnp.asarray(model.of_stack(layers, path)) for path in model.stacks()}
    for path, numbers in stacks.items():
        if numbers.shape != (depth := model.stacks()[path].depth,):
            raise ValueError(f"layers must hold one number for each of the {depth} layers; got shape {numbers.shape}")
    unused = {*(roles or {}), *(paths or {})}

    def factor(path: tuple, declared: Declared) -> jax.Array:
        product = declared.spread(stacks[stack_path(path)]) if stacks and declared.layers else jnp.ones(())
        for role, number in (roles or {}).items():
            if declared.spec.role == role:
                unused.discard(role)
                product = product * number
        for pattern, number in (paths or {}).items():
            if fnmatchcase(path_name(path), pattern):
                unused.discard(pattern)
                product = product * number
        return product

    tree = jax.tree_util.tree_map_with_path(factor, declaration)
    if unused:
        roles_here = sorted({d.spec.role for d in jax.tree.leaves(declaration)})
        raise ValueError(f"no parameter has the role or path {sorted(unused)}; the roles are {', '.join(roles_here)}")
    return tree


def layer_decay(model: AbstractModel, decay: Any) -> Params:
    """Factors decay^(L + 1 - l) for layers l = 1 .. L, decay^(L + 1) for what lies before them or is shared by all of
    them, and 1 for what lies behind.

    Args:
        model: a stack or a model.
        decay: factor from one layer to the one below.

    Returns:
        As `factors` does.

    Raises:
        ValueError: an encoder-decoder.

    Source: Clark et al. 2020, appendix A, arXiv:2003.10555; with ends as in Bao et al. 2021, arXiv:2106.08254.
    """
    if len(model.stacks()) > 1:
        raise ValueError(
            "layer_decay is for one stack of layers; use factors(model, layers={encoder: .., decoder: ..})"
        )
    (stack,) = model.stacks().values()
    powers = decay ** jnp.arange(stack.depth, -1, -1)

    def factor(path: tuple, declared: Declared) -> jax.Array:
        if declared.layers:
            return declared.spread(powers)
        before = {"embedding", "enter", "shared"}.intersection(path_name(path).split("/"))
        return powers[0] * decay if before else jnp.ones(())

    return jax.tree_util.tree_map_with_path(factor, model.declaration())


def with_rates(
    model: AbstractModel, inner: optax.GradientTransformation, rates: Params
) -> optax.GradientTransformationExtraArgs:
    """An optimiser with a factor on its learning rate for each parameter and layer; 0 freezes it.

    What is frozen moves by exactly 0 and its gradient is taken as 0, by clipping too.

    Args:
        model: a stack, a model or an encoder-decoder.
        inner: an optimiser of this module or of optax.
        rates: the factors, as `factors` makes them.
    """

    def shut(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, r: jnp.where(r == 0, 0, u), updates, restrict(rates, updates))

    def scale(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, r: jnp.where(r == 0, 0, r * u).astype(u.dtype), updates, restrict(rates, updates))

    return optax.chain(optax.stateless(shut), inner, optax.stateless(scale), by_projection(model))
