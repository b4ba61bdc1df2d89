"""Training: the recipe's factors are numbers that an optimiser can use, and its projection ends where it says."""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.model import Model
from stackjax.parameter import is_spec
from stackjax.recipe.base import checked_gain
from stackjax.testing.compare import check_equal, promise
from stackjax.testing.inputs import drawn, named


def check_factors(model: Model) -> None:
    """Gains are finite; multipliers are finite and not negative, and those of Adam's epsilon, a divisor, not zero.

    Args:
        model: any; its declaration says which roles the recipe is asked for.

    Raises:
        AssertionError: another number, or a shape that is neither () nor (L,).
    """
    stack, name = model.stack, type(model.stack.recipe).__name__
    with promise(named(model), "gains and multipliers are usable numbers, () or (L,)"):
        declared = jax.tree.leaves(model.declaration(), is_leaf=is_spec)
        model.multipliers()
        for role in dict.fromkeys(one.spec.role for one in declared):
            gain = checked_gain(stack.recipe, role, stack.geometry)
            multiplier = stack.recipe.multiplier(role, stack.geometry)
            if not np.isfinite(gain).all():
                raise AssertionError(f"{name}.gain for the role {role!r} is {gain}; it must be finite")
            for field in fields(multiplier):
                factor = np.asarray(getattr(multiplier, field.name))
                if not np.isfinite(factor).all() or (factor < 0).any() or (field.name == "eps" and not factor.all()):
                    least = "more than 0" if field.name == "eps" else "0 or more"
                    raise AssertionError(
                        f"{name}.multiplier of {field.name} for the role {role!r} is {factor}; it must be finite and "
                        f"{least}"
                    )


def check_project(model: Model) -> None:
    """Projecting parameters twice is projecting them once, in float64.

    Args:
        model: any; its parameters are drawn and perturbed here.

    Raises:
        AssertionError: parameters that the second projection moves.
    """
    with jax.enable_x64(True), promise(named(model), "applying project twice changes nothing"):
        once = model.project(drawn(model, jnp.float64))
        check_equal(model.project(once), once, 1e-9)
