"""A stackjax stack or model as a Flax Linen module.

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y, result = Wrapped(described=stack, name="body")(x, measure=sj.probe.standard)
            return nn.Dense(10)(y)

The module's parameters are the tree that the description itself draws, name for name, so they pass freely between the
pure functions, `TrainState` and stackjax's optimisers.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Wrapped(nn.Module):
    """A stack or a model whose parameters Linen holds.

    Args:
        described: a `Stack`, a `Model` or anything with their `declaration`, `init` and `apply`.
        param_dtype: of the parameters that `init` draws.
    """

    described: Any
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """`described.apply(params, *inputs, **options)`, with the key for dropout from the RNG named dropout, if given.

        Returns:
            Output and `Result`. Running statistics are parameters here; after the optimiser's step
            `described.update_statistics(params, result.state)` gives the parameters with new ones.
        """
        names = list(self.described.declaration())
        if self.is_initializing() and not any(self.has_variable("params", name) for name in names):
            for name, value in self.described.init(self.make_rng("params"), self.param_dtype).items():
                self.put_variable("params", name, value)
        params = {name: self.get_variable("params", name) for name in names if self.has_variable("params", name)}
        if self.has_rng("dropout"):
            options = {"key": self.make_rng("dropout"), **options}
        return self.described.apply(params, *inputs, **options)
