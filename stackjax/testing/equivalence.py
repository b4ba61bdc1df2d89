"""One function, however it is run: as a loop, as a scan, rematerialised, or vectorised over its coefficients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax import probe
from stackjax.abstract_model import AbstractModel
from stackjax.parameter import is_spec, path_name
from stackjax.sublayer import SideInputs
from stackjax.testing.compare import check_equal, differences, promise
from stackjax.testing.inputs import arguments, drawn, named, normal

KEY = 3
"""Seed of dropout and stochastic depth, which must not depend on how a stack is run either."""

UNFELT = ("key_bias", "fire/down_bias")
"""Parameters without an effect: a softmax does not feel what is added to all of its logits."""


def check_scan(model: AbstractModel, side_inputs: SideInputs | None = None, *, subject: str | None = None) -> None:
    """A scan equals the plain loop over the layers, and so does every rematerialisation; every parameter matters.

    Compared in float64 are logits, losses, measures, state, the gradient of each parameter and each layer's taps.

    Args:
        model: any model; its parameters are drawn and perturbed here.
        side_inputs: positions of `N_TOKENS` tokens and the like; None for none.
        subject: what messages call it.

    Raises:
        AssertionError: values or gradients that differ or are not finite, or a parameter without an effect.
    """
    subject = subject or named(model)
    with jax.enable_x64(True):
        params, inputs = drawn(model), arguments(model, side_inputs, jnp.float64)
        taps = model.per_stack(lambda path, stack: jnp.zeros(stack.depth + 1))

        def loss(params: Any, taps: Any, **options: Any) -> tuple[jax.Array, Any]:
            options = {**options, "dtype": jnp.float64, "key": jax.random.key(KEY), "measure": probe.standard}
            logits, result = model.apply(params, *inputs, taps=taps, **options)
            total = jnp.sum(logits * normal(*logits.shape, key=2)) + sum(result.loss.values())
            return total, {"logits": logits, "measure": result.measure, "state": result.state}

        def run(params: Any, **options: Any) -> dict[str, Any]:
            (value, seen), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, taps, **options)
            return {"loss": value, **seen, "gradient": slopes[0], "taps": slopes[1]}

        def compiled(*ways: dict[str, Any]) -> list[dict[str, Any]]:
            with promise(subject, "runs in a scan as it does in a loop"):
                return jax.jit(lambda params: [run(params, **options) for options in ways])(params)

        (loop,) = compiled({"loop": True})
        with promise(subject, "values and gradients are finite"):
            differences(loop, loop)
        ways = {
            "scan": {},
            'scan with remat="layer"': {"remat": "layer"},
            'scan with remat="nested"': {"remat": "nested"},
        }
        others = compiled(*ways.values())
        for way, other in zip(ways, others, strict=True):
            with promise(subject, f"{way} equals the loop"):
                check_equal(_by_what_is_felt(other), _by_what_is_felt(loop), 1e-9)
    with promise(subject, "every parameter has an effect"):
        _check_effects(model, loop["gradient"])


def _by_what_is_felt(outcome: dict[str, Any]) -> dict[str, Any]:
    """The outcome with the gradients of `UNFELT` parameters, which are rounding errors, divided by the largest."""
    largest = max(float(jnp.max(jnp.abs(slope))) for slope in jax.tree.leaves(outcome["gradient"]) if slope.size)

    def leaf(path: Any, slope: jax.Array) -> jax.Array:
        return slope / largest if path_name(path).endswith(UNFELT) else slope

    return {**outcome, "gradient": jax.tree_util.tree_map_with_path(leaf, outcome["gradient"])}


def _check_effects(model: AbstractModel, gradient: Any) -> None:
    declared = jax.tree.leaves(model.declaration(), is_leaf=is_spec)
    for (path, slope), one in zip(jax.tree_util.tree_leaves_with_path(gradient), declared, strict=True):
        name = path_name(path)
        if slope.shape != one.shape:
            raise AssertionError(f"the gradient of {name} has the shape {slope.shape}; declared is {one.shape}")
        if one.spec.role != "statistic" and slope.size and not name.endswith(UNFELT) and not np.any(slope):
            raise AssertionError(f"the gradient of {name} is zero")


def check_vmap(model: AbstractModel, side_inputs: SideInputs | None = None, *, subject: str | None = None) -> None:
    """Coefficients are data: a `vmap` over several sets of them equals one run after another.

    Args:
        model: any model.
        side_inputs: positions of `N_TOKENS` tokens and the like; None for none.
        subject: what messages call it.

    Raises:
        AssertionError: outputs that differ, or that cannot be had.
    """
    subject = subject or named(model)
    with jax.enable_x64(True):
        params, inputs = drawn(model), arguments(model, side_inputs, jnp.float64)

        def lanes(path: Any, stack: Any) -> Any:
            numbers = stack.coefficients()
            factors = {"alpha": (1.0, 0.9), "beta": (1.0, 0.8), "gamma": (1.0, 0.7)}
            both = jax.tree.map(lambda x: jnp.stack([x, x]), numbers)
            for name, factor in factors.items():
                both["sublayer"][name] *= jnp.asarray(factor)[:, None, None]
            return both

        def run(coefficients: Any) -> jax.Array:
            options = {"dtype": jnp.float64, "key": jax.random.key(KEY)}
            return model.apply(params, *inputs, coefficients=coefficients, **options)[0]

        with promise(subject, "coefficients are data under vmap"):
            both = jax.jit(lambda lanes: (jax.vmap(run)(lanes), jax.lax.map(run, lanes)))
            at_once, one_by_one = both(model.per_stack(lanes))
            check_equal({"logits": at_once}, {"logits": one_by_one}, 1e-9)
