"""A stackjax stack or model as a Flax NNX module.

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.body = Wrapped(stack, rngs=rngs)
            self.head = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x):
            y, result = self.body(x, measure=sj.probe.standard)
            return self.head(y)

Any optax transform trains it through `nnx.Optimizer`; `transform` makes those of `stackjax.optim` fit.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stackjax.abstract_model import AbstractModel
from stackjax.parameter import Declared, is_spec
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


def transform(described: AbstractModel, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Make a transform from `stackjax.optim` fit `nnx.Optimizer(Wrapped(described), ..., wrt=nnx.Param)`.

    Those follow the declaration, empty branches and running statistics included; `nnx.State` leaves both out.
    """
    declaration = described.declaration()
    trained = [d.spec.role != "statistic" for d in jax.tree.leaves(declaration, is_leaf=is_spec)]

    def whole(state: Any) -> Params:
        leaves: Iterator[jax.Array] = iter(jax.tree.leaves(state))
        return jax.tree.map(
            lambda d: next(leaves) if d.spec.role != "statistic" else jnp.zeros(d.shape),
            declaration,
            is_leaf=is_spec,
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, state = inner.update(whole(updates), state, None if params is None else whole(params))
        leaves = [leaf for leaf, keep in zip(jax.tree.leaves(new), trained, strict=True) if keep]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(lambda params: inner.init(whole(params)), update)


def _variable(declared: Declared, value: jax.Array) -> nnx.Variable:
    return nnx.BatchStat(value) if declared.spec.role == "statistic" else nnx.Param(value)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
