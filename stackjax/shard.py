"""Sharding: where parameters, optimiser state and batches lie on a mesh of devices, from the declaration alone.

Each role has named axes; one table of rules sends names to axes of the mesh. With the default rules, batches are split
over `replica` and `data`, the model's width over `data` and `sequence` (fully sharded parameters) and heads, hidden
features, experts and vocabulary over `model` (tensor parallelism); `replica` alone is plain data parallelism, each
device with all parameters. The layer axis stays whole, since the scan walks along it.

    mesh = sj.shard.mesh(data=4, model=2)
    params = jax.jit(model.init, out_shardings=sj.shard.parameters(model, mesh))(key)

Activations follow by themselves: a stack pins its stream to the batch at the door of every layer (`stackjax.pin`), on
the mesh that the parameters lie on. A program compiled from shapes alone needs `with jax.set_mesh(mesh):` around it.
On `mesh(data=2, sequence=4)` the tokens of long inputs are split, too (`stackjax.sequence`); on `mesh(data=4, model=2)`
the stream between sublayers, whose products are split by heads and hidden features (`stackjax.tensor_parallel`).

A training loop in which every device holds its share of parameters, moments and batch (as many devices as there are):

    >>> import jax, jax.numpy as jnp, optax, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> mesh = sj.shard.mesh(data=jax.device_count())
    >>> params = jax.jit(model.init, out_shardings=sj.shard.parameters(model, mesh))(jax.random.key(0))
    >>> optimizer = sj.optim.adamw(model, learning_rate=1e-2)
    >>> shapes = jax.eval_shape(optimizer.init, params)
    >>> state = jax.jit(optimizer.init, out_shardings=sj.shard.state(model, mesh, shapes))(params)
    >>> @jax.jit
    ... def step(params, state, tokens):
    ...     loss = lambda params: sj.loss.next_token(model.apply(params, tokens)[0], tokens)
    ...     value, gradient = jax.value_and_grad(loss)(params)
    ...     updates, state = optimizer.update(gradient, state, params)
    ...     return optax.apply_updates(params, updates), state, value
    >>> tokens = jnp.arange(8 * jax.device_count()).reshape(-1, 8) % 16
    >>> tokens = jax.device_put(tokens, sj.shard.batch(mesh))
    >>> for _ in range(2):
    ...     params, state, value = step(params, state, tokens)
    >>> bool(jnp.isfinite(value))
    True
"""

import math
import warnings
from typing import Any

import jax
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stackjax.abstract_model import AbstractModel
from stackjax.parameter import Declared, is_spec
from stackjax.sublayer import Params

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]
"""(name of an axis of parameters or batches, axes of the mesh, of which those count that it has), in order of
precedence; a mesh axis serves each array once."""

RULES: Rules = (
    ("batch", ("replica", "data")),
    ("experts", "model"),
    ("vocab", "model"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("hidden", "model"),
    ("width", ("data", "sequence")),
)

_INSIDE = {
    "query": ("width", "heads"),
    "key": ("width", "kv_heads"),
    "value": ("width", "kv_heads"),
    "out": ("heads", "width"),
}

AXES: dict[str, tuple[str, ...]] = {
    **_INSIDE,
    **{f"cross_{role}": names for role, names in _INSIDE.items()},
    "up": ("width", "hidden"),
    "gate": ("width", "hidden"),
    "down": ("hidden", "width"),
    "embed": ("vocab", "width"),
    "unembed": ("width", "vocab"),
}
"""Names of the last axes of each role; roles that are not here (norms, biases, gates) are small and kept whole."""


def mesh(**sizes: int) -> Mesh:
    """A mesh of the devices at hand, e.g. `mesh(data=4, model=2)`, in which jit propagates shardings by itself.

    Warns of devices that it leaves idle.

    Raises:
        ValueError: more devices than there are.
    """
    needed, available = math.prod(sizes.values()), jax.device_count()
    if needed > available:
        raise ValueError(f"a mesh {sizes} needs {needed} devices; there are {available}")
    if needed < available:
        warnings.warn(f"a mesh {sizes} leaves {available - needed} of {available} devices idle", stacklevel=2)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def check(on: Mesh, rules: Rules) -> None:
    """Refuse a mesh and rules that do not speak of the same things.

    Raises:
        ValueError: an axis that jit does not propagate shardings along by itself; a rule for an axis that no parameter
            and no batch has; an axis of several devices that no rule uses, so that all of them would compute the same.
    """
    kinds = dict(zip(on.axis_names, on.axis_types, strict=True))
    if other := sorted(f"{name} {kind.name}" for name, kind in kinds.items() if kind != AxisType.Auto):
        raise ValueError(
            f"the axes of a mesh must be of type Auto, as `stackjax.shard.mesh` makes them; got {', '.join(other)}"
        )
    known = {"batch", "layers", "experts", *(name for axes in AXES.values() for name in axes)}
    if unknown := sorted({name for name, _ in rules} - known):
        raise ValueError(f"rules are for the axes {', '.join(sorted(known))}; got {', '.join(unknown)}")
    used = {axis for _, axes in rules for axis in _tuple(axes)}
    if idle := sorted(name for name, size in on.shape.items() if size > 1 and name not in used):
        raise ValueError(
            f"no rule uses the axis {', '.join(idle)} of the mesh, whose devices would all compute the same; "
            f"the rules know {', '.join(sorted(used))}"
        )


def names(declared: Declared) -> tuple[str | None, ...]:
    """Names of the axes of a stored parameter; an axis before a matrix's own two counts experts."""
    axes: tuple[str | None, ...] = AXES.get(declared.spec.role, ())
    rank = len(declared.spec.shape)
    if len(axes) > rank:
        axes = ()
    before = "experts" if len(axes) == 2 and rank == 3 else None
    axes = (*(before,) * (rank - len(axes)), *axes)
    return ("layers", *axes) if declared.stacked else axes


def parameters(model: AbstractModel, on: Mesh, rules: Rules = RULES) -> Params:
    """The tree of parameters, each leaf its `NamedSharding`.

    Args:
        model: a stack, a model or an encoder-decoder.
        on: the mesh.
        rules: from names of axes to axes of the mesh. An axis that does not divide by the devices is kept whole.

    Raises:
        ValueError: see `check`.
    """
    check(on, rules)
    return jax.tree.map(
        lambda declared: _sharding(names(declared), declared.shape, on, rules),
        model.declaration(),
        is_leaf=is_spec,
    )


def state(model: AbstractModel, on: Mesh, tree: Any, rules: Rules = RULES) -> Any:
    """Shardings of a tree that holds trees like the parameters: optimiser state, averages, whole training states.

    A leaf whose path ends in a parameter's path and that has the parameter's shape lies where the parameter lies; all
    others are replicated.

    Args:
        model: a stack, a model or an encoder-decoder.
        on: the mesh.
        tree: of arrays or of their shapes (`jax.eval_shape(tx.init, params)`).
        rules: as for `parameters`.
    """
    declared = jax.tree_util.tree_leaves_with_path(model.declaration(), is_leaf=is_spec)
    known = {path: (d.shape, _sharding(names(d), d.shape, on, rules)) for path, d in declared}
    whole = NamedSharding(on, PartitionSpec())

    def place(path: tuple, leaf: Any) -> NamedSharding:
        tails = (known[path[i:]] for i in range(len(path)) if path[i:] in known)
        return next((sharding for shape, sharding in tails if shape == leaf.shape), whole)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch(on: Mesh, rules: Rules = RULES) -> NamedSharding:
    """The sharding of a batch: its first axis split, the others whole (a stack splits the tokens of its stream).

    Raises:
        ValueError: see `check`.
    """
    check(on, rules)
    return NamedSharding(on, logical_to_mesh_axes(("batch",), _present(on, rules)) or PartitionSpec())


def _present(on: Mesh, rules: Rules) -> Rules:
    """The rules with those of their axes that the mesh has."""
    present = ((name, tuple(axis for axis in _tuple(axes) if axis in on.axis_names)) for name, axes in rules)
    return tuple((name, axes[0] if len(axes) == 1 else axes) for name, axes in present if axes)


def _tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _sharding(named: tuple[str | None, ...], shape: tuple[int, ...], on: Mesh, rules: Rules) -> NamedSharding:
    fitting = tuple(
        (name, axes)
        for name, axes in _present(on, rules)
        if name in named and shape[named.index(name)] % math.prod(on.shape[axis] for axis in _tuple(axes)) == 0
    )
    return NamedSharding(on, logical_to_mesh_axes(named, fitting) or PartitionSpec())
