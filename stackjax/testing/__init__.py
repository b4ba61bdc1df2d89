"""Checks for recipes, position encodings and sublayers of your own: the promises that those of the library keep.

    from stackjax import testing

    testing.check_recipe(MyRecipe())
    testing.check_position(MyPosition())
    testing.check_sublayer(MySublayer())

Each takes seconds, and raises an `AssertionError` that says what does not hold, for what, and by how much:

    scan = loop            logits, losses, measures and gradients, with every rematerialisation
    parameters             each has a finite gradient and an effect
    causality              no token depends on a later one or on another example (by the Jacobian)
    decoding               a token at a time equals the full forward pass
    dtype                  a bfloat16 stream stays one behind the position and every sublayer
    statistics             running statistics come back, also where the norms are replaced by batch norm
    coefficients           are data under `vmap`
    depth                  a shallow stack is a prefix of a deep one, up to the recipe's gains
    factors                gains and multipliers are finite, () or (L,), and no multiplier is negative
    projection             applying it twice changes nothing
    positions              caches, padding and packing change nothing
    documents              packed in one row they do not see each other, where a sublayer attends
    losses                 do not count what stands at padding

The parts can be run by themselves, on any model. The library's own recipes, positions and sublayers are held to the
same functions.
"""

from stackjax.testing import (
    attention_position,
    causality,
    compare,
    decoding,
    dtype,
    equivalence,
    inputs,
    packing,
    prefix,
    statistic,
    suite,
    training,
)
from stackjax.testing.attention_position import check_cached_attention, check_packing, check_shift
from stackjax.testing.causality import check_causality
from stackjax.testing.compare import differences, largest_difference, perturbed
from stackjax.testing.decoding import check_decoding
from stackjax.testing.dtype import check_dtype
from stackjax.testing.equivalence import check_scan, check_vmap
from stackjax.testing.inputs import normal
from stackjax.testing.packing import check_documents, check_losses
from stackjax.testing.prefix import check_prefix
from stackjax.testing.statistic import check_statistics
from stackjax.testing.suite import check_position, check_recipe, check_sublayer
from stackjax.testing.training import check_factors, check_project

__all__ = [
    "attention_position",
    "causality",
    "check_cached_attention",
    "check_causality",
    "check_decoding",
    "check_documents",
    "check_dtype",
    "check_factors",
    "check_losses",
    "check_packing",
    "check_position",
    "check_prefix",
    "check_project",
    "check_recipe",
    "check_scan",
    "check_shift",
    "check_statistics",
    "check_sublayer",
    "check_vmap",
    "compare",
    "decoding",
    "differences",
    "dtype",
    "equivalence",
    "inputs",
    "largest_difference",
    "normal",
    "packing",
    "perturbed",
    "prefix",
    "statistic",
    "suite",
    "training",
]
