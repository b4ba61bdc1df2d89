"""Growing and cutting stacks: a list of layers says what the new stack is made of.

    model, params, _ = sj.surgery.select(model, params, [0, 1, 1, 2], coefficients="new")
    model, params, _ = sj.surgery.select(model, params, sj.surgery.stacked(6, times=2), coefficients="new")
    model, params, state = sj.surgery.select(model, params, range(4), coefficients="original", state=state)
    model, params, state = sj.surgery.insert_identity(model, params, after=[5], coefficients="original", state=state)

An optimiser's state follows, whatever the optimiser: in each tree of it that is nested like the parameters, masked ones
included, layers move as theirs do. A recipe's numbers depend on a layer's index and on the depth, so whoever changes
the depth says which: those of the new depth, or those that each layer had in the original stack.
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
