"""A sublayer around another one whose parameters it changes: reparametrised matrices, low-rank adapters."""

from dataclasses import dataclass, replace
from typing import Any

import jax

from stackjax.sublayer import Aux, CachedPositions, Params, SideInputs, Sublayer


@dataclass(frozen=True, kw_only=True)
class Wrapped(Sublayer):
    """Another sublayer with parameters that are functions of those declared here; all else is the other's.

    A subclass overrides `spec` and `effective`.

    Args:
        name: that of the inner sublayer.
        inner: the sublayer.
    """

    inner: Sublayer
    numbers = ("inner",)

    def effective(self, params: Params) -> Params:
        """The inner sublayer's parameters, from those declared here."""
        raise NotImplementedError(f"{type(self).__name__} must override effective")

    def inner_inputs(self, side_inputs: SideInputs) -> SideInputs:
        """The side inputs of the inner sublayer."""
        return replace(side_inputs, numbers=side_inputs.numbers.get("inner", {}))

    @property
    def attends(self) -> bool:
        return self.inner.attends

    @property
    def reads_memory(self) -> bool:
        return self.inner.reads_memory

    @property
    def mixes_tokens(self) -> bool:
        return self.inner.mixes_tokens

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the values inside `apply` that an edit may replace (`stackjax.edit`)."""
        return self.inner.sites

    def apply(self, params: Params, x: Any, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        return self.inner.apply(self.effective(params), x, self.inner_inputs(side_inputs))

    def shared(self, d_model: int) -> dict[str, Any]:
        return self.inner.shared(d_model)

    def prepare(
        self,
        shared: Params,
        side_inputs: SideInputs,
        n_tokens: int,
        d_model: int,
        cached: CachedPositions | None = None,
    ) -> Any:
        return self.inner.prepare(shared, self.inner_inputs(side_inputs), n_tokens, d_model, cached)

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        return self.inner.cache(batch, capacity, d_model, dtype)

    def remember(self, params: Params, memory: jax.Array) -> Any:
        return self.inner.remember(self.effective(params), memory)
