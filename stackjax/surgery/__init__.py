"""Growing and cutting stacks: a list of layers says what the new stack is made of.

    model, params, _ = sj.surgery.select(model, params, [0, 1, 1, 2], coefficients="new")
    model, params, _ = sj.surgery.select(model, params, sj.surgery.stacked(6, times=2), coefficients="new")
    model, params, state = sj.surgery.select(model, params, range(4), coefficients="original", state=state)
    model, params, state = sj.surgery.insert_identity(model, params, after=[5], coefficients="original", state=state)

An optimiser's state follows, whatever the optimiser: in each tree of it that is nested like the parameters, masked ones
included, layers move as theirs do. A recipe's numbers depend on a layer's index and on the depth, so whoever changes
the depth says which: those of the new depth, or those that each layer had in the original stack.

Twice as deep by copies, deeper with the same function, half of the layers, and a slice of them:

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=4, n_heads=2)
    >>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
    >>> deep, _, _ = sj.surgery.select(model, params, sj.surgery.stacked(4, times=2), coefficients="new")
    >>> same, grown, _ = sj.surgery.insert_identity(model, params, after=[3], coefficients="original")
    >>> half, _, _ = sj.surgery.select(model, params, sj.surgery.pruned(4, [1, 3]), coefficients="new")
    >>> slice, _, _ = sj.surgery.select(model, params, range(3), coefficients="original")
    >>> [each.stack.depth for each in (deep, same, half, slice)]
    [8, 5, 2, 3]
    >>> bool(jnp.allclose(jax.jit(same.apply)(grown, tokens)[0], jax.jit(model.apply)(params, tokens)[0], atol=1e-4))
    True
"""

from stackjax.surgery.identity import insert_identity
from stackjax.surgery.mean import average, interpolate
from stackjax.surgery.selection import duplicated, interleaved, pruned, select, stacked

__all__ = [
    "average",
    "duplicated",
    "insert_identity",
    "interleaved",
    "interpolate",
    "pruned",
    "select",
    "stacked",
]
