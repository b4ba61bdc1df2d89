"""The sublayer protocol: what a sublayer declares, what it may read, what it returns.

A sublayer maps the (..., T, D) input of its branch to an output of the same shape. Everything it reads that is not a
parameter comes through `SideInputs`; everything it returns beside the output goes through `Aux`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from stackjax.display import Description

Params = dict[str, Any]
Positions = dict[str, jax.Array]
"""Places of tokens, as data: index (..., T) integers; optionally segment (..., T), path (..., T, P).

An index of -1 marks an empty cache entry or a padded token; masks follow from the index alone. Tokens attend only
within their segment (packed documents). A path is the way from the root of a tree to the token's node, one child
index (0, 1, ..) a step, padded with -1 behind its end."""

CachedPositions = dict[int, Positions]
"""Positions of the tokens in the decoding cache, -1 where an entry is empty: {capacity: positions (B, capacity)}."""


@struct.dataclass
class SideInputs:
    """The inputs that a sublayer reads beside x and its parameters.

    Set by the caller, the same for all layers:
        position: of the tokens; None means 0 .. T-1 without padding.
        memory: (..., S, D) encoder output for cross-attention.
        memory_position: of the memory's tokens; None means no padding.

    Filled in by the stack for each sublayer:
        prepared: what this sublayer's `prepare` returned.
        cache: this sublayer's slice of the decoding cache, read-only; None outside decoding.
        key: PRNG key of this sublayer; None means evaluation (no dropout).

    Filled in by a residual form:
        hints: what the form tells its sublayer, by names that the two agree on.
    """

    position: Positions | None = None
    memory: jax.Array | None = None
    memory_position: Positions | None = None
    prepared: Any = None
    cache: Any = None
    key: jax.Array | None = None
    hints: dict[str, Any] = struct.field(default_factory=dict)


@struct.dataclass
class Aux:
    """The values that a sublayer returns beside its output, as `has_aux` has it in JAX.

    Args:
        loss: {name: scalar}, summed over the layers (a router's balance loss).
        state: what the next call needs. `cache`: new cache entries; `statistic`: new values of parameters of that role.
        intermediates: what a form or an observer may look at; dead code otherwise.
    """

    loss: dict[str, jax.Array] = struct.field(default_factory=dict)
    state: dict[str, Any] = struct.field(default_factory=dict)
    intermediates: dict[str, Any] = struct.field(default_factory=dict)


@struct.dataclass
class Cache:
    """The memory of a decoder: what every layer keeps of earlier tokens, see `stackjax.decode`.

    Sublayers of equal capacity hold the same tokens, so their positions are kept once.

    Args:
        position: of the tokens that are held.
        segments: {segment: {layer of the pattern: {sublayer: tree}}}; leaves (n, B, ..., capacity, width), or what the
            sublayer remembers of the memory.
        memory_position: of the memory's tokens; None without a memory.
    """

    position: CachedPositions
    segments: Params
    memory_position: Positions | None = None


@dataclass(frozen=True, kw_only=True)
class Sublayer(Description):
    """Base of every sublayer: a frozen description with do-nothing defaults.

    A sublayer of your own is a subclass that overrides `spec` and `apply`.

    Args:
        name: of its parameters within a layer; unique there.
        dropout: rate on the branch output while training (Vaswani et al. 2017, section 5.4).
    """

    name: str = "sublayer"
    dropout: float = 0.0

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout}")

    def spec(self, d_model: int) -> dict[str, Any]:
        """Parameters of one layer's copy."""
        raise NotImplementedError(f"{type(self).__name__} must override spec")

    @property
    def attends(self) -> bool:
        """True where tokens see each other; recipes may treat attention apart from other sublayers."""
        return False

    @property
    def reads_memory(self) -> bool:
        """True for cross-attention, over `side_inputs.memory`."""
        return False

    def map(self, change: Callable[["Sublayer"], "Sublayer"]) -> "Sublayer":
        """This sublayer with `change` applied to it and, before that, to every sublayer inside it.

        A mere container of others is left as it is.
        """
        return change(self)

    def shared(self, d_model: int) -> dict[str, Any]:
        """{name: specs} of parameters that exist once for the whole stack; the same name means the same parameters."""
        return {}

    def prepare(
        self,
        shared: Params,
        side_inputs: SideInputs,
        n_tokens: int,
        d_model: int,
        cached: CachedPositions | None = None,
    ) -> Any:
        """Compute once, outside the scan, all that does not depend on the layer: masks, rotary tables, biases.

        Args:
            shared: the stack's shared parameters.
            side_inputs: the caller's.
            n_tokens: T of this call.
            d_model: D.
            cached: in decoding, the positions held by the cache.
        """
        return None

    def apply(self, params: Params, x: Any, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        """Map x (..., T, D) to (y (..., T, D), Aux)."""
        raise NotImplementedError(f"{type(self).__name__} must override apply")

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        """One layer's empty decoding cache, leaves (B, ..., S, width); None if the sublayer needs none.

        Args:
            batch: B.
            capacity: tokens to be held; a sublayer that sees fewer keeps fewer (S <= capacity).
            d_model: D.
            dtype: of the entries.
        """
        return None

    def remember(self, params: Params, memory: jax.Array) -> Any:
        """The keys and values of the memory, computed once per layer for decoding; None outside cross-attention."""
        return None


def add_losses(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Add losses by name."""
    return {**a, **{name: a[name] + x if name in a else x for name, x in b.items()}}


def dropout(key: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
    """Zero entries with probability `rate` and scale the rest by 1 / (1 - rate); the identity if key is None."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
