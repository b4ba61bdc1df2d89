"""The sublayer protocol: what a sublayer declares, what it may read, what it returns.

A sublayer maps the (..., T, D) input of its branch to an output of the same shape. Everything it reads that is not a
parameter comes through `SideInputs`; everything it returns beside the output goes through `Aux`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from stackjax.check import checked_positions, rate, shown
from stackjax.description import Description
from stackjax.edit import Edits
from stackjax.tensor_parallel import scatter_tokens

Params = dict[str, Any]
Positions = dict[str, jax.Array]
"""Places of tokens, as data: index (..., T) integers; optionally segment (..., T), path (..., T, P).

An index of -1 marks an empty cache entry or a padded token; masks follow from the index alone, so padding that is not
marked is read like any token. Tokens attend only within their segment: packed documents whose indices begin anew need
one, or causal attention would look into the document behind. A path is the way from the root of a tree to the token's
node, one child index (0, 1, ..) a step, padded with -1 behind its end."""

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
        edits: what is to be replaced inside this sublayer; None for nothing.
        borrowed: intermediates of earlier layers, by sublayer and name, that sublayers of the stack borrow.
        numbers: this layer's, of this sublayer, where the layers of a scan differ in them (`stackjax.by_layer`).

    Filled in by a residual form:
        hints: what the form tells its sublayer, by names that the two agree on.
    """

    position: Positions | None = None
    memory: jax.Array | None = None
    memory_position: Positions | None = None
    prepared: Any = None
    cache: Any = None
    key: jax.Array | None = None
    edits: Edits | None = struct.field(pytree_node=False, default=None)
    borrowed: dict[tuple[str, str], Any] = struct.field(default_factory=dict)
    numbers: dict[str, Any] = struct.field(default_factory=dict)
    hints: dict[str, Any] = struct.field(default_factory=dict)

    def edited(self, site: str, value: Any) -> Any:
        """The value at a site of this sublayer, as the caller's edit has it; the value itself if there is none."""
        return value if self.edits is None else self.edits.apply(site, value)

    def within(self, name: str) -> "SideInputs":
        """The side inputs of one of the `sublayers` inside this one, with the edits and the numbers that are for it."""
        edits = None if self.edits is None else self.edits.within(name)
        return replace(self, edits=edits, numbers=self.numbers.get("sublayers", {}).get(name, {}))

    def edits_at(self, site: str) -> bool:
        """True if the value at a site of this sublayer is to be edited."""
        return self.edits is not None and site in self.edits


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
        limit: how far apart the indices of held tokens may be before a sublayer that sees all of them loses one; None
            if none would.
    """

    position: CachedPositions
    segments: Params
    memory_position: Positions | None = None
    limit: int | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Result:
    """The values that a stack returns beside its output.

    Args:
        loss: {name: scalar}, summed over the layers.
        state: what the next call needs, nested like the segments: {segment: {layer of the pattern: {sublayer: state}}};
            and the statistics of the norms at both ends, if there are any, under `enter` and `leave`.
        measure: {name: (L, ...)} from the `measure` asked for; rows of NaN for layers that do not have the name.
    """

    loss: dict[str, jax.Array]
    state: dict[str, Any]
    measure: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sublayer(Description):
    """Base of every sublayer: a frozen description with do-nothing defaults.

    A sublayer of your own is a subclass that overrides `spec` and `apply`; and, to be decoded with, either `cache` or,
    where each token's output depends on that token alone, `mixes_tokens`.

    Args:
        name: of its parameters within a layer; unique there.
        dropout: rate on the branch output while training (Vaswani et al. 2017, section 5.4).
    """

    name: str = "sublayer"
    dropout: float = 0.0

    sites: ClassVar[tuple[str, ...]] = ()
    """Names of the values inside `apply` that an edit may replace (`stackjax.edit`).

    Each goes through `side_inputs.edited(name, value)`, and is then returned among the intermediates."""

    def __post_init__(self):
        rate(self, "dropout")

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

    @property
    def borrows(self) -> tuple[tuple[str, str], ...]:
        """The intermediates of earlier layers that this one reads as `SideInputs.borrowed`: (sublayer, name) of each.

        They are those of the last earlier layer whose sublayer of that name has them.
        """
        return ()

    @property
    def mixes_tokens(self) -> bool:
        """True if a token's output depends on other tokens of x (attention, convolution, recurrence).

        True until a subclass says otherwise. What mixes tokens needs a `cache` to be decoded with; of a recurrence
        that is a capacity of 1, the state behind the newest token.
        """
        return True

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

    def dropped(self, y: jax.Array, side_inputs: SideInputs) -> jax.Array:
        """The branch's output (..., T, D) with dropout; on a mesh each device draws for its own tokens."""
        return dropout(side_inputs.key, scatter_tokens(y), self.dropout) if self.dropout else y

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        """One layer's empty decoding cache, leaves (B, ..., S, width); None if the sublayer needs none.

        `apply` then reads it as `side_inputs.cache` and returns its new entries, of the same leaves with T in place of
        S, as `Aux.state["cache"]`; a recurrence (`stackjax.delta_rule`), whose S is never more than 1, may return the
        entries of the newest token alone, with 1 in place of T.

        Args:
            batch: B.
            capacity: tokens to be held; a sublayer that sees fewer keeps fewer (S <= capacity).
            d_model: D.
            dtype: of the entries.

        Raises:
            ValueError: a sublayer that mixes tokens and does not say what of them it keeps.
        """
        if self.mixes_tokens:
            raise ValueError(
                f"decoding goes token by token, and {type(self).__name__} ({self.name!r}) does not say what it keeps "
                "of earlier ones: override `cache` and return the new entries as Aux(state={'cache': ...}); or, if "
                "each token's output depends on that token alone, override `mixes_tokens` to be False"
            )
        return None

    def remember(self, params: Params, memory: jax.Array) -> Any:
        """The keys and values of the memory, computed once per layer for decoding; None outside cross-attention."""
        return None


def call(
    sublayer: Sublayer, params: Params, x: jax.Array, side_inputs: SideInputs, hints: dict[str, Any] | None = None
) -> tuple[jax.Array, Aux]:
    """The sublayer on x, with its `input` and `output` edited and among its intermediates.

    Args:
        sublayer: what is called.
        params: its parameters.
        x: (..., T, D)
        side_inputs: what it reads beside x.
        hints: what its form tells it; None leaves those of `side_inputs`.

    Raises:
        ValueError: it returns something else than y in the shape of x, and an `Aux`.
    """
    if hints is not None:
        side_inputs = replace(side_inputs, hints=hints)
    x = side_inputs.edited("input", x)
    returned = sublayer.apply(params, x, side_inputs)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Aux)):
        raise ValueError(f"{type(sublayer).__name__}.apply must return (y, Aux()); it returned {shown(returned)}")
    y, aux = returned
    if jnp.shape(y) != jnp.shape(x):
        raise ValueError(
            f"{type(sublayer).__name__}.apply must return y in the shape of x, {jnp.shape(x)}; it returned {shown(y)}"
        )
    y = side_inputs.edited("output", y)
    return y, replace(aux, intermediates={**aux.intermediates, "input": x, "output": y})


def checked(side_inputs: SideInputs | None, shape: tuple[int, ...], d_model: int) -> SideInputs:
    """The caller's side inputs, with positions as `checked_positions` returns them; None means none.

    Args:
        side_inputs: what was given.
        shape: of the tokens, (..., T).
        d_model: D, the width of the stream and of a memory.

    Raises:
        ValueError: something else than `SideInputs`; positions that are not those of such tokens, or of the memory's; a
            memory of other axes or another width.
    """
    if side_inputs is None:
        return SideInputs()
    if not isinstance(side_inputs, SideInputs):
        raise ValueError(
            "side_inputs must be a SideInputs, as in SideInputs(position={'index': index}), or None; "
            f"got {shown(side_inputs)}"
        )
    memory = side_inputs.memory
    if memory is not None and (memory.shape[:-2] != tuple(shape[:-1]) or memory.shape[-1] != d_model):
        raise ValueError(
            f"side_inputs.memory must be (..., S, D) with the leading axes of the tokens, {tuple(shape)}, and "
            f"D={d_model}; got {memory.shape}"
        )
    position, memory_position = side_inputs.position, side_inputs.memory_position
    if position is not None:
        position = checked_positions("position", position, shape)
    if memory_position is not None and memory is not None:
        memory_position = checked_positions("memory_position", memory_position, memory.shape[:-1])
    return replace(side_inputs, position=position, memory_position=memory_position)


def refuse_unread(memory: jax.Array | None, sublayers: Iterable[Sublayer]) -> None:
    """Refuse a memory that none of the sublayers reads.

    Raises:
        ValueError: as said.
    """
    if memory is not None and not any(sublayer.reads_memory for sublayer in sublayers):
        raise ValueError(
            "side_inputs.memory was given, and no sublayer reads it: that takes cross-attention, Attention(cross=True)"
        )


def add_losses(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Add losses by name."""
    return {**a, **{name: a[name] + x if name in a else x for name, x in b.items()}}


def dropout(key: jax.Array | None, x: jax.Array, share: float) -> jax.Array:
    """Zero entries with probability `share` and scale the rest by 1 / (1 - share); the identity if key is None."""
    if key is None or share == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - share, x.shape)
    return jnp.where(keep, x / (1.0 - share), 0).astype(x.dtype)
