"""Sigma-reparametrisation: every matrix divided by its spectral norm and given a learned one."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.parameter import Constant, Init, Normal, Spec, is_spec
from stackjax.recipe.base import Geometry, Observe, Recipe
from stackjax.recipe.form import Form
from stackjax.recipe.residual import Plain
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer
from stackjax.wrapped import Wrapped

EPS = 1e-12


def unit_vector(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """A random direction along the last axis."""
    return _unit(jax.random.normal(key, shape, jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + EPS)


def spectral_norm(weight: jax.Array, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of power iteration: u'ᵀ W v with v = Wᵀu / |Wᵀu| and u' = W v / |W v|.

    The gradient flows through W alone.

    Args:
        weight: W (..., I, O).
        vector: u (..., I), an estimate of the left singular vector.

    Returns:
        The estimate of the largest singular value (...), and u' (..., I).

    Source: Miyato et al. 2018, algorithm 1, arXiv:1802.05957.
    """
    fixed = jax.lax.stop_gradient(weight)
    right = _unit(jnp.einsum("...io,...i->...o", fixed, jax.lax.stop_gradient(vector)))
    left = _unit(jnp.einsum("...io,...o->...i", fixed, right))
    return jnp.einsum("...i,...io,...o->...", left, weight, right), left


@dataclass(frozen=True, kw_only=True)
class Reparametrised(Wrapped):
    """A sublayer whose hidden matrices W act as (g / sigma(W)) W, g a learned number, sigma the spectral norm.

    sigma comes from one step of power iteration at each call; the new vectors are returned as state, for
    `statistic.update_statistics` to write back.

    Args:
        name: that of the inner sublayer, whose parameters keep their names.
        inner: the sublayer.
        first: g at first.

    Raises:
        ValueError: an inner sublayer with matrices below others.
    """

    first: float = 1.0
    numbers = Wrapped.numbers

    def spec(self, d_model: int) -> dict[str, Any]:
        specs = self.inner.spec(d_model)

        def beside(spec: Spec) -> dict[str, Spec]:
            gain = Spec(shape=spec.shape[:-2], role="norm", init=Constant(self.first))
            return {"gain": gain, "vector": Spec(shape=spec.shape[:-1], role="statistic", init=unit_vector)}

        matrices = {name: spec for name, spec in specs.items() if is_spec(spec) and spec.is_matrix}
        if len(matrices) < sum(spec.is_matrix for spec in jax.tree.leaves(specs, is_leaf=is_spec)):
            raise ValueError(
                f"{type(self.inner).__name__} ({self.name!r}) declares matrices in groups of their own; only "
                "those that it declares by name can be reparametrised"
            )
        return {**specs, "spectral": {name: beside(spec) for name, spec in matrices.items()}}

    def effective(self, params: Params) -> Params:
        return self._reparametrised(params)[0]

    def _reparametrised(self, params: Params) -> tuple[Params, Params]:
        """The inner sublayer's parameters, and the new vectors."""
        matrices, vectors = {}, {}
        for name, beside in params["spectral"].items():
            sigma, left = spectral_norm(params[name], beside["vector"])
            matrices[name] = params[name] * (beside["gain"] / jnp.maximum(sigma, EPS))[..., None, None]
            vectors[name] = {"vector": left}
        inner = {name: value for name, value in params.items() if name != "spectral"}
        return {**inner, **matrices}, vectors

    def apply(self, params: Params, x: Any, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        inner, vectors = self._reparametrised(params)
        y, out = self.inner.apply(inner, x, self.inner_inputs(side_inputs))
        statistic = {**out.state.get("statistic", {}), "spectral": vectors}
        return y, replace(out, state={**out.state, "statistic": statistic})


@dataclass(frozen=True, kw_only=True)
class SigmaReparam(Recipe):
    """x + f(x) with every matrix of a branch reparametrised as (g / sigma(W)) W, no norm.

    What a branch can do to the stream is bounded by g, so attention's entropy cannot collapse; the stream still grows,
    by a few percent a layer at birth. `calibrate` sets the vectors of the power iteration to the singular vectors
    themselves; without it the first steps underestimate sigma.

    Args:
        first: g at first.

    Source: Zhai et al. 2023, section 3, arXiv:2303.06296, in its form without norms. g starts at 1 as in the paper and
    the authors' speech code; their vision code starts it at sigma(W). Embedding and output stay as they are.
    """

    residual: Form = Plain()
    default_init: Init = Normal(0.02)
    first: float = 1.0

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        if isinstance(sublayer, Reparametrised):
            return sublayer
        return Reparametrised(name=sublayer.name, inner=sublayer, first=self.first)

    def calibrate(self, params: Params, declaration: Params, observe: Observe) -> Params:
        return {**params, "segments": _singular(params["segments"])}


def _singular(params: Params) -> Params:
    """`params` with each vector of a power iteration at its fixed point."""
    if "spectral" not in params:
        return {name: _singular(value) if isinstance(value, dict) else value for name, value in params.items()}
    vectors = {
        name: {**beside, "vector": jnp.linalg.svd(params[name], full_matrices=False)[0][..., 0]}
        for name, beside in params["spectral"].items()
    }
    return {**params, "spectral": vectors}
