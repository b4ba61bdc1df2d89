"""A stackjax stack or model as a Flax NNX module.

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.body = Wrapped(stack, rngs=rngs)
            self.head = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x):
            y, result = self.body(x, measure=sj.probe.standard)
            return self.head(y)

Any optax transform trains it through `nnx.Optimizer`; `transform` makes those of `stackjax.optim` fit the body, and the
rest has one of its own:

    def part(path, _):
        return "body" if path[0].key == "body" else "rest"

    transforms = {"body": transform(stack, sj.optim.adamw(stack, learning_rate=0.01)), "rest": optax.adamw(0.01)}
    tx = optax.partition(transforms, functools.partial(jax.tree_util.tree_map_with_path, part))
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.tree_util import GetAttrKey

from stackjax.abstract_model import AbstractModel
from stackjax.parameter import Declared, is_spec, path_name
from stackjax.sublayer import Params


class Wrapped(nnx.Module):
    """A stack or a model whose parameters NNX holds: an `nnx.Param` each, or `nnx.BatchStat` for running statistics.

    Args:
        described: a `Stack`, a `Model` or anything with their `declaration`, `init` and `apply`.
        rngs: the stream `params` gives the key of the draw.
        param_dtype: of the parameters.
    """

    def __init__(self, described: Any, *, rngs: nnx.Rngs, param_dtype: Any = jnp.float32):
        self.described = described
        drawn = described.init(rngs.params(), param_dtype)
        self.params = nnx.data(jax.tree.map(_variable, described.declaration(), drawn, is_leaf=is_spec))

    def pure(self) -> Params:
        """The parameters as the tree of arrays that `described.apply` takes."""
        return jax.tree.map(lambda variable: variable[...], self.params, is_leaf=_is_variable)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """`described.apply(params, *inputs, **options)`: output and `Result`.

        While training, give `key=rngs.dropout()`; without a key there is no dropout. Running statistics stay as they
        are until `update_statistics`.
        """
        return self.described.apply(self.pure(), *inputs, **options)

    def update_statistics(self, state: Params) -> None:
        """Set each `nnx.BatchStat`, after the optimiser's step, to what a forward pass returned as `Result.state`."""
        new = self.described.update_statistics(self.pure(), state)
        variables = jax.tree.leaves(self.params, is_leaf=_is_variable)
        for variable, value in zip(variables, jax.tree.leaves(new), strict=True):
            if isinstance(variable, nnx.BatchStat):
                variable[...] = value


def transform(described: AbstractModel, inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Make a transform from `stackjax.optim` fit the parameters of a `Wrapped`, as `nnx.Optimizer` gives them.

    Those follow the declaration, empty branches and running statistics included; `nnx.State` leaves both out.

    Args:
        described: what the `Wrapped` was made of.
        inner: the transform.

    Raises:
        ValueError: by `init` and `update`, other parameters, or others beside them.
    """
    declaration = described.declaration()
    declared = {path_name(path): d.spec.role for path, d in jax.tree_util.tree_leaves_with_path(declaration)}
    trained = [name for name, role in declared.items() if role != "statistic"]
    wanted = [f"/params/{name}" for name in trained]
    extended = optax.with_extra_args_support(inner)

    def whole(state: Any) -> Params:
        leaves = jax.tree_util.tree_leaves_with_path(state)
        names = [f"/{path_name(path[:-1] if isinstance(path[-1], GetAttrKey) else path)}" for path, _ in leaves]
        if len(names) != len(wanted) or not all(map(str.endswith, names, wanted)):
            others = [name for name in names if not name.endswith(tuple(wanted))]
            raise ValueError(
                f"this transform is for the {len(wanted)} parameters of a Wrapped, and for no others; got {len(names)}"
                + (f", among them {others[0][1:]}" if others else "")
                + ": give the rest of a module a transform of its own with optax.partition"
            )
        given = iter([leaf for _, leaf in leaves])
        return jax.tree.map(lambda d: jnp.zeros(d.shape) if d.spec.role == "statistic" else next(given), declaration)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        new, state = extended.update(whole(updates), state, None if params is None else whole(params), **extra)
        leaves = [leaf for leaf, name in zip(jax.tree.leaves(new), declared, strict=True) if name in trained]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(whole(params)), update)


def _variable(declared: Declared, value: jax.Array) -> nnx.Variable:
    return nnx.BatchStat(value) if declared.spec.role == "statistic" else nnx.Param(value)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
