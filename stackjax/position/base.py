"""The position protocol."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from stackjax.description import Description
from stackjax.sublayer import Params, Positions

STREAM_HOOKS = ("embed",)
ATTENTION_HOOKS = ("rotate", "score", "bias", "value")


@dataclass(frozen=True, kw_only=True)
class Position(Description):
    """A position encoding, with do-nothing defaults. An encoding of your own overrides the hooks it needs.

    In the order in which they act: `embed` on the stream, then inside attention `prepare` (once, outside the scan),
    `rotate`, `score`, `bias`, `value`. One that declares `numbers` acts in `rotate` alone.

    Raises:
        ValueError: a class that declares numbers and acts elsewhere.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        acts = [hook for hook in ("score", "bias", "value") if getattr(cls, hook) is not getattr(Position, hook)]
        if "numbers" in vars(cls) and acts:
            raise ValueError(
                f"{cls.__name__} declares numbers that may differ by layer, which {acts[0]} would not get; only an "
                "encoding that acts in `rotate` alone may"
            )

    @property
    def limit(self) -> int | None:
        """Number of indices that the encoding is defined for; None for no limit."""
        return None

    def for_attention(self, *, causal: bool) -> "Position":
        """The encoding, with its undecided fields chosen for attention that looks back alone, or both ways."""
        return self

    def stream_spec(self, d_model: int) -> dict[str, Any]:
        """Parameters that `embed` reads."""
        return {}

    def shared(self, n_heads: int, d_head: int) -> dict[str, Any]:
        """{name: specs} of attention parameters that exist once for the whole stack (T5's table)."""
        return {}

    def spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        """Attention parameters of one layer (Shaw's tables, Transformer-XL's projections)."""
        return {}

    def embed(self, params: Params, position: Positions, x: jax.Array) -> jax.Array:
        """Tell the stream: (..., T, D) to (..., T, D), before the first layer."""
        return x

    def prepare(
        self,
        shared: Params,
        *,
        query: Positions,
        key: Positions,
        new_key: Positions,
        n_heads: int,
        d_head: int,
    ) -> Any:
        """A table for the hooks below, computed once for all layers, outside the scan.

        Where layers differ in the `numbers` that the encoding declares, it is computed in each of them, and the numbers
        are further keywords, arrays ().

        Args:
            shared: the stack's shared parameters.
            query: positions of the queries, (B or 1, T).
            key: positions of all keys, those already in the cache first, (B or 1, S).
            new_key: positions of the keys that `rotate` will get; without a cache the same as `key`.
            n_heads: H.
            d_head: K.
        """
        return None

    def rotate(self, table: Any, side: str, x: jax.Array) -> jax.Array:
        """Transform queries (side "query") or keys (side "key"), (..., T, H, K)."""
        return x

    def score(self, params: Params, table: Any, query: jax.Array, key: jax.Array) -> jax.Array | None:
        """Logits (..., H, T, S) that depend on content, added before the 1/sqrt(K) scale; None for none."""
        return None

    def bias(self, params: Params, table: Any) -> jax.Array | None:
        """Logits (..., H, T, S) that do not depend on content, added after the scale; None for none."""
        return None

    def value(self, params: Params, table: Any, weights: jax.Array) -> jax.Array | None:
        """Values (..., T, H, K) added to the weighted sum, from the attention weights (..., H, T, S); None for none."""
        return None

    def acts_on(self, hooks: tuple[str, ...]) -> bool:
        """True if this encoding overrides any of the named hooks."""
        return any(getattr(type(self), hook) is not getattr(Position, hook) for hook in hooks)


@dataclass(frozen=True, kw_only=True)
class NoPosition(Position):
    """score(i, j) = q_i·k_j: no positions at all (NoPE).

    A causal mask alone still tells a decoder what came before.

    Source: Haviv et al. 2022, arXiv:2203.16634; Kazemnejad et al. 2023, arXiv:2305.19466.
    """


def total(terms: list[Float[Array, "..."] | None]) -> Float[Array, "..."] | None:
    """Sum of the terms that are there; None if none is."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


@dataclass(frozen=True, kw_only=True)
class Both(Position):
    """Two encodings at once, for instance a rotary index and a tree bias; nest it for more.

    Args:
        first: acts first wherever order matters (embed, rotate).
        second: acts second.
    """

    first: Position
    second: Position

    def _each(self) -> tuple[tuple[str, Position], tuple[str, Position]]:
        return (("first", self.first), ("second", self.second))

    @property
    def limit(self) -> int | None:
        return min((p.limit for _, p in self._each() if p.limit is not None), default=None)

    def for_attention(self, *, causal: bool) -> Position:
        return Both(**{name: position.for_attention(causal=causal) for name, position in self._each()})

    def stream_spec(self, d_model: int) -> dict[str, Any]:
        return {name: position.stream_spec(d_model) for name, position in self._each()}

    def shared(self, n_heads: int, d_head: int) -> dict[str, Any]:
        return self.first.shared(n_heads, d_head) | self.second.shared(n_heads, d_head)

    def spec(self, n_heads: int, d_head: int) -> dict[str, Any]:
        return {name: position.spec(n_heads, d_head) for name, position in self._each()}

    def embed(self, params: Params, position: Positions, x: jax.Array) -> jax.Array:
        for name, encoding in self._each():
            x = encoding.embed(params[name], position, x)
        return x

    def prepare(self, shared: Params, **side_inputs: Any) -> Any:
        return {name: position.prepare(shared, **side_inputs) for name, position in self._each()}

    def rotate(self, table: Any, side: str, x: jax.Array) -> jax.Array:
        for name, position in self._each():
            x = position.rotate(table[name], side, x)
        return x

    def score(self, params: Params, table: Any, query: jax.Array, key: jax.Array) -> jax.Array | None:
        return total([position.score(params[name], table[name], query, key) for name, position in self._each()])

    def bias(self, params: Params, table: Any) -> jax.Array | None:
        return total([position.bias(params[name], table[name]) for name, position in self._each()])

    def value(self, params: Params, table: Any, weights: jax.Array) -> jax.Array | None:
        return total([position.value(params[name], table[name], weights) for name, position in self._each()])

    def acts_on(self, hooks: tuple[str, ...]) -> bool:
        return self.first.acts_on(hooks) or self.second.acts_on(hooks)
