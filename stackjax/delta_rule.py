"""The gated delta rule: a recurrent state in the place of attention, of one size however many tokens came before.

    S' = exp(g_t) S_{t-1}
    S_t = S' + k_t (beta_t (v_t - S'ᵀ k_t))ᵀ
    o_t = S_tᵀ q_t

The state S (K, V) of a head is a linear map from keys to values. Each token lets it decay, and then replaces a share
beta_t of what it holds under the key k_t. `gated_delta_rule` computes this with matrix products, a chunk of tokens at a
time, in values and gradients the same as one by one; `GatedDeltaNet` is the sublayer around it.

Source: Yang et al. 2024, eq. (10) and section 3.3, arXiv:2412.06464.
"""

from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from stackjax.block import from_blocks, to_blocks
from stackjax.check import known, positive
from stackjax.dot_product import flat_positions
from stackjax.feed_forward import Activation, silu
from stackjax.norm import Norm, RMSNorm, upcast, without_statistics
from stackjax.parameter import FanIn, Spec, linear, matrix, ones
from stackjax.sequence import gathered
from stackjax.sublayer import Aux, CachedPositions, Params, Positions, SideInputs, Sublayer


def gated_delta_rule(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    decay: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    state: Float[Array, "B H K V"],
    begins: Bool[Array, "B T"],
    *,
    chunk: int,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """S_t = exp(g_t) S_{t-1} + k_t u_tᵀ and o_t = S_tᵀ q_t, a chunk of tokens at a time.

    Within a chunk the corrections u_t = beta_t (v_t - S'ᵀ k_t) are the solution of one triangular system: each reads,
    beside the state before the chunk, the corrections of earlier tokens, as far as their keys are alike.

    Args:
        query: (B, T, H, K)
        key: (B, T, H, K), each of length 1 or less.
        value: (B, T, H, V)
        decay: (B, T, H) g, the logarithm of what is left of the state, 0 or less.
        beta: (B, T, H) between 0 and 1; 0 with a decay of 0 leaves the state as it is.
        state: (B, H, K, V) before the first token.
        begins: (B, T) where a document begins, whose first token finds a state of zeros.
        chunk: tokens in a chunk; 1 is the rule as it stands above.

    Returns:
        o (B, T, H, V), and the state behind the last token.

    Source: Yang et al. 2024, section 3.3, arXiv:2412.06464.
    """
    n_tokens = query.shape[1]
    chunk = min(chunk, n_tokens)
    earlier = np.tril(np.ones((chunk, chunk), bool))

    def step(state: jax.Array, tokens: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, g, share, first = tokens
        total, document = jnp.cumsum(g, -1), jnp.cumsum(first, -1)
        last = document[..., -1:]
        reaches = earlier & (document[..., :, None] == document[..., None, :])
        between = jnp.exp(jnp.where(reaches, total[..., :, None] - total[..., None, :], -jnp.inf))
        before = jnp.where(document == 0, jnp.exp(total), 0)[..., None]
        behind = jnp.where(document == last, jnp.exp(total[..., -1:] - total), 0)[..., None]

        system = share[..., None] * between * (k @ k.mT)
        wanted = share[..., None] * (v - before * (k @ state))
        correction = jax.scipy.linalg.solve_triangular(system, wanted, lower=True, unit_diagonal=True)
        y = before * (q @ state) + (between * (q @ k.mT)) @ correction
        return before[..., -1:, :] * state + (behind * k).mT @ correction, y

    by_head = jax.tree.map(lambda a: jnp.moveaxis(a, 2, 1), (query, key, value, decay, beta))
    inputs = (*by_head, begins[:, None])
    state, y = jax.lax.scan(step, state, jax.tree.map(lambda a: to_blocks(a, chunk, 2), inputs))
    return jnp.moveaxis(from_blocks(y, n_tokens, 2), 1, 2), state


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(Sublayer):
    """The gated delta rule as a sublayer, in the place of attention.

        q, k, v = activation(convolution(x W_query, x W_key, x W_value)),  q and k of length 1, q over sqrt(K)
        g = -exp(log_rate) softplus(x W_decay + time_step),  beta = sigmoid(x W_beta)
        y = (norm(o) * activation(x W_gate)) W_out

    Decoding keeps the state, in at least float32, and what the convolution reads of the last tokens: a capacity of 1.
    Tokens are read in the order in which they stand. Padding (index -1), wherever it is, changes nothing; a document
    (position `segment`) begins with a state and a convolution that know of no other.

    Args:
        n_heads: H, of values.
        n_key_heads: G, a divisor of H, of queries and keys, each for H / G heads of values; None means H.
        d_head: K, of queries and keys.
        d_value: V; None means K.
        kernel: how many tokens the convolution sees, the token itself included.
        activation: elementwise, behind the convolution and on the gate.
        norm: over V.
        chunk: tokens that are computed at a time.
        dropout: rate on the output while training.

    Raises:
        ValueError: a size below 1; heads that do not divide; a norm with running statistics.

    Source: Yang et al. 2024, section 3.4, arXiv:2412.06464; sizes of heads, log_rate and time_step as in Qwen3-Next.
    """

    name: str = "delta_net"
    n_heads: int
    n_key_heads: int | None = None
    d_head: int
    d_value: int | None = None
    kernel: int = 4
    activation: Activation = silu
    norm: Norm = RMSNorm()
    chunk: int = 64
    sites = ("heads",)

    def __post_init__(self):
        super().__post_init__()
        positive(self, "n_heads", "n_key_heads", "d_head", "d_value", "kernel", "chunk")
        if self.n_heads % self.groups:
            raise ValueError(f"n_key_heads must divide n_heads; got {self.n_key_heads} and {self.n_heads}")
        without_statistics(norm=self.norm)

    @property
    def groups(self) -> int:
        """G, the number of heads of queries and keys."""
        return self.n_heads if self.n_key_heads is None else self.n_key_heads

    @property
    def value_width(self) -> int:
        """V, the width of a head's values."""
        return self.d_head if self.d_value is None else self.d_value

    @property
    def attends(self) -> bool:
        return True

    @property
    def _sizes(self) -> dict[str, int]:
        """Widths of what goes through the convolution."""
        width = self.groups * self.d_head
        return {"query": width, "key": width, "value": self.n_heads * self.value_width}

    def spec(self, d_model: int) -> dict[str, Any]:
        widths = {**self._sizes, "gate": self._sizes["value"], "beta": self.n_heads, "decay": self.n_heads}
        specs: dict[str, Any] = {}
        for name, width in widths.items():
            specs |= matrix(d_model, width, name if name in self._sizes else "query", name=name)
        n_channels = sum(self._sizes.values())
        return {
            **specs,
            "convolution": Spec(shape=(self.kernel, n_channels), role="relative", init=FanIn()),
            "log_rate": Spec(shape=(self.n_heads,), role="bias", init=_log_rate),
            "time_step": Spec(shape=(self.n_heads,), role="bias", init=ones),
            "norm": self.norm.spec(self.value_width),
            **matrix(widths["value"], d_model, "out"),
        }

    def prepare(
        self,
        shared: Params,
        side_inputs: SideInputs,
        n_tokens: int,
        d_model: int,
        cached: CachedPositions | None = None,
    ) -> Any:
        if side_inputs.position is None and cached is None:
            return None
        position = flat_positions(side_inputs.position, n_tokens)
        return _order(position, None if cached is None else cached.get(1), self.kernel - 1)

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        n_channels, n = sum(self._sizes.values()), min(capacity, 1)
        state = (batch, self.n_heads, n, self.d_head * self.value_width)
        return {
            "inputs": jnp.zeros((batch, n, (self.kernel - 1) * n_channels), dtype),
            "state": jnp.zeros(state, jnp.promote_types(dtype, jnp.float32)),
        }

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        """Run the rule over the tokens, from the state in the cache on, or from zeros.

        Args:
            params: as declared by `spec`.
            x: (..., T, D)
            side_inputs: positions, what `prepare` returned, this layer's cache and key.

        Returns:
            (..., T, D). State while decoding: the `cache` behind the newest token. Intermediates: `heads`
            (..., T, H, V), before the output projection.

        Raises:
            ValueError: tokens out of order.
        """
        chex.assert_shape(x, (..., params["query"].shape[0]))
        lead, (n_tokens, d_model) = x.shape[:-2], x.shape[-2:]
        rows, cache = gathered(x, -2).reshape(-1, n_tokens, d_model), side_inputs.cache
        held = None if cache is None or not cache["state"].shape[-2] else cache
        order = side_inputs.prepared
        if order is None and side_inputs.position is not None:
            order = self.prepare({}, side_inputs, n_tokens, d_model)

        new = jnp.concatenate([linear(params, name, rows) for name in self._sizes], -1)
        earlier = jnp.zeros((len(rows), self.kernel - 1, new.shape[-1]), x.dtype)
        if held is not None:
            earlier = held["inputs"].reshape(earlier.shape).astype(x.dtype)
        inputs = jnp.concatenate((earlier, new), 1)
        mixed = self.activation(_convolved(params["convolution"], inputs, order).astype(x.dtype))

        parts = jnp.split(upcast(mixed), np.cumsum(list(self._sizes.values()))[:-1], -1)
        n_each = self.n_heads // self.groups
        query, key = (_unit(part.reshape(*mixed.shape[:2], self.groups, -1)).repeat(n_each, 2) for part in parts[:2])
        value = parts[2].reshape(*mixed.shape[:2], self.n_heads, -1)
        rate, step = jnp.exp(upcast(params["log_rate"])), upcast(linear(params, "decay", rows))
        decay = -rate * jax.nn.softplus(step + params["time_step"])
        beta = jax.nn.sigmoid(upcast(linear(params, "beta", rows)))
        begins = jnp.zeros(mixed.shape[:2], bool)
        if order is not None:
            real, begins = order["real"][..., None], jnp.broadcast_to(order["begins"], begins.shape)
            decay, beta = jnp.where(real, decay, 0), jnp.where(real, beta, 0)
        state = jnp.zeros((len(rows), self.n_heads, self.d_head, self.value_width), value.dtype)
        if held is not None:
            state = held["state"].reshape(state.shape).astype(state.dtype)
        y, state = gated_delta_rule(query * self.d_head**-0.5, key, value, decay, beta, state, begins, chunk=self.chunk)

        kept = {}
        if cache is not None:
            tail = inputs[:, n_tokens:] if order is None else _taken(inputs, order["tail"])
            state = state.reshape(*state.shape[:2], 1, -1)
            kept = {"cache": {"inputs": tail.reshape(len(rows), 1, -1), "state": state}}
        gate = self.activation(upcast(linear(params, "gate", rows))).reshape(y.shape)
        y = self.norm.apply(params["norm"], y) * gate
        y = checkpoint_name(y.astype(x.dtype).reshape(*lead, n_tokens, -1), "attention_heads")
        heads = side_inputs.edited("heads", y.reshape(*y.shape[:-1], self.n_heads, -1))
        y = self.dropped(linear(params, "out", heads.reshape(y.shape)), side_inputs)
        return y, Aux(state=kept, intermediates={"heads": heads})


def _unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; 0 stays 0."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


def _log_rate(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """An initialiser: logarithms of rates drawn evenly up to 16."""
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, 0.01, 16))


def _convolved(kernel: jax.Array, inputs: jax.Array, order: dict[str, jax.Array] | None) -> jax.Array:
    """The causal convolution of each channel, in at least float32.

    Args:
        kernel: (n, C), of which the last row multiplies the token itself.
        inputs: (B, n - 1 + T, C), the last tokens of earlier calls in front.
        order: of the tokens; None means that they follow each other as they stand.

    Returns:
        (B, T, C)
    """
    n_tokens = inputs.shape[1] - len(kernel) + 1
    if order is None:
        taps = [inputs[:, k : k + n_tokens] for k in range(len(kernel))]
    else:
        taps = [_taken(inputs, order["columns"][..., k]) for k in range(len(kernel))]
    terms = [upcast(weight) * upcast(tap) for weight, tap in zip(kernel, taps, strict=True)]
    return sum(terms[1:], terms[0])


def _taken(inputs: jax.Array, columns: jax.Array) -> jax.Array:
    """The inputs (B, S, C) in these columns (B or 1, T); zeros where a column is -1."""
    columns = jnp.broadcast_to(columns, (len(inputs), columns.shape[1]))[..., None]
    return jnp.where(columns >= 0, jnp.take_along_axis(inputs, jnp.maximum(columns, 0), 1), 0)


def _order(position: Positions, cached: Positions | None, n_earlier: int) -> dict[str, jax.Array]:
    """The order of the tokens in a row, padding left out, behind `n_earlier` earlier ones.

    Args:
        position: of the tokens, (B, T).
        cached: of the newest earlier token, (B, 1); None for none.
        n_earlier: number of columns in front of the tokens that hold the last earlier ones of the same document.

    Returns:
        What the rule and the convolution read; a column is -1 where the document has no such token.
            real: (B, T) false for padding.
            begins: (B, T) the first token of a document behind another.
            columns: (B, T, n_earlier + 1) of the last tokens up to each, itself last.
            tail: (B, n_earlier) of the last tokens of the row.
    """
    _refuse_disorder(position)
    real = position["index"] >= 0
    rank = jnp.cumsum(real, 1) - 1
    by_rank = jnp.argsort(~real, 1, stable=True)
    segment = position.get("segment", jnp.zeros_like(position["index"]))
    ranked = jnp.take_along_axis(segment, by_rank, 1)
    before = ranked[:, :1] if cached is None else cached.get("segment", jnp.zeros_like(cached["index"]))
    begins = real & (segment != jnp.take_along_axis(jnp.concatenate((before, ranked), 1), jnp.maximum(rank, 0), 1))
    document = jnp.cumsum(begins, 1)
    front = jnp.broadcast_to(jnp.arange(n_earlier), (len(real), n_earlier))
    column_at = jnp.concatenate((front, n_earlier + by_rank), 1)
    document_at = jnp.concatenate((jnp.zeros_like(front), jnp.take_along_axis(document, by_rank, 1)), 1)

    def columns(ranks: jax.Array, of: jax.Array) -> jax.Array:
        """The columns of the tokens of these ranks (B, .., n), -1 where they are not of the document (B, .., 1)."""
        flat = jnp.maximum(ranks + n_earlier, 0).reshape(len(real), -1)
        column, its = (jnp.take_along_axis(a, flat, 1).reshape(ranks.shape) for a in (column_at, document_at))
        return jnp.where(its == of, column, -1)

    steps = jnp.arange(n_earlier + 1) - n_earlier
    return {
        "real": real,
        "begins": begins,
        "columns": columns(rank[..., None] + steps, document[..., None]),
        "tail": columns(rank[:, -1:] + steps[1:], document[:, -1:]),
    }


def _refuse_disorder(position: Positions) -> None:
    """Raise a ValueError where it is known that tokens do not stand in their order."""
    index = known(position["index"])
    segment = known(position.get("segment", jnp.zeros_like(position["index"])))
    if index is None or segment is None:
        return
    for row in range(len(index)):
        real = index[row] >= 0
        its_index, its_segment = index[row][real], segment[row][real]
        changes = np.flatnonzero(np.diff(its_segment)) + 1
        begun = its_segment[np.concatenate(([0], changes))] if len(its_segment) else its_segment
        rises = np.diff(its_index) > 0
        rises[changes - 1] = True
        if not rises.all() or len(np.unique(begun)) < len(begun):
            raise ValueError(
                "a recurrence reads tokens in the order in which they stand, so within a row each document must be in "
                f"one piece, and the index must rise in it; got the indices {its_index.tolist()} in row {row}"
                + (f" of the segments {its_segment.tolist()}" if "segment" in position else "")
                + ". For documents that are packed, each from index 0, give position['segment']"
            )
