"""Latent attention: keys and values are projections of one small latent, and the latent is all that decoding keeps."""

from dataclasses import dataclass
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from stackjax import blockwise
from stackjax.check import positive
from stackjax.dot_product import (
    Parts,
    attention_weights,
    behind,
    flat_positions,
    joined,
    refuse_repeats,
    visible,
    weighted_sum,
    with_cached,
)
from stackjax.norm import NoNorm, Norm, RMSNorm
from stackjax.parameter import linear, matrix
from stackjax.position.base import Position
from stackjax.position.rotary import Rotary
from stackjax.sublayer import Aux, CachedPositions, Params, SideInputs, Sublayer


@dataclass(frozen=True, kw_only=True)
class LatentAttention(Sublayer):
    """Multi-head latent attention (MLA): per head, q·k = q_plain·(W_key c) + q_rotary·k_rotary, and v = W_value c.

    The latent c = norm(W_latent x) and one rotary key for all heads are everything that attention reads of a token,
    so the decoding cache holds C + R numbers a token. Where few queries meet many keys, W_key is moved to the query's
    side and W_value behind the weighted sum (the absorbed form): attention then runs on the latents themselves, as
    multi-query attention, and keys and values are never made. The form with fewer multiplications is taken.

    Args:
        n_heads: H.
        d_head: K, width of the part of queries and keys that knows no position.
        d_rotary: R, width of the part that does.
        d_latent: C, width of the latent behind keys and values.
        d_query_latent: width of the latent behind queries; None projects them directly.
        d_value: width of a head's values; None means K.
        causal: whether a token sees only itself and earlier ones.
        position: turns the rotary part, and may add a bias.
        scale: of the dot products; None means 1/sqrt(K + R).
        norm: of the latents.
        inner_norm: over the heads' outputs, before the output projection (sub-LN).
        backend: "plain" is written out and keeps all weights; "blockwise" keeps none (`stackjax.blockwise`), so that
            observers see no weights. None takes "blockwise" from `blockwise.LARGE` on, else "plain".
        dropout: rate on the output while training.

    Raises:
        ValueError: a size below 1; a position that needs keys or values of its own.

    Source: DeepSeek-AI 2024, eq. (9) to (19) and appendix C, arXiv:2405.04434; norms of the latents: section 2.1.
    """

    name: str = "attention"
    n_heads: int
    d_head: int
    d_rotary: int
    d_latent: int
    d_query_latent: int | None = None
    d_value: int | None = None
    causal: bool = True
    position: Position = Rotary(interleaved=True)
    scale: float | None = None
    norm: Norm = RMSNorm()
    inner_norm: Norm = NoNorm()
    backend: Literal["plain", "blockwise"] | None = None
    sites = ("weights", "heads")
    numbers = ("position",)

    def __post_init__(self):
        super().__post_init__()
        positive(self, "n_heads", "d_head", "d_rotary", "d_latent", "d_query_latent", "d_value")
        if self.position.acts_on(("score", "value")):
            raise ValueError(
                f"{type(self.position).__name__} reads keys or adds values, which latent attention does not keep; "
                "use a rotary encoding or a bias"
            )

    @property
    def attends(self) -> bool:
        return True

    @property
    def value_width(self) -> int:
        """Width of a head's values."""
        return self.d_head if self.d_value is None else self.d_value

    def spec(self, d_model: int) -> dict[str, Any]:
        query_width = self.d_head + self.d_rotary
        specs: dict[str, Any] = {}
        n_in = d_model
        if self.d_query_latent is not None:
            n_in = self.d_query_latent
            specs |= matrix(d_model, n_in, "query", name="query_latent")
            specs["query_norm"] = self.norm.spec(n_in)
        return {
            **specs,
            **matrix(n_in, self.n_heads * query_width, "query"),
            **matrix(d_model, self.d_latent, "key", name="latent"),
            "latent_norm": self.norm.spec(self.d_latent),
            **matrix(d_model, self.d_rotary, "key", name="rotary"),
            **matrix(self.d_latent, self.n_heads * self.d_head, "key"),
            **matrix(self.d_latent, self.n_heads * self.value_width, "value"),
            "position": self.position.spec(self.n_heads, self.d_rotary),
            "inner_norm": self.inner_norm.spec(self.n_heads * self.value_width),
            **matrix(self.n_heads * self.value_width, d_model, "out"),
        }

    def shared(self, d_model: int) -> dict[str, Any]:
        return self.position.shared(self.n_heads, self.d_rotary)

    def prepare(
        self,
        shared: Params,
        side_inputs: SideInputs,
        n_tokens: int,
        d_model: int,
        cached: CachedPositions | None = None,
    ) -> Any:
        new = flat_positions(side_inputs.position, n_tokens)
        key = new if cached is None else with_cached(cached[max(cached)], new)
        if self.causal:
            refuse_repeats(key)
        sizes = {"n_heads": self.n_heads, "d_head": self.d_rotary, **side_inputs.numbers.get("position", {})}
        position = self.position.for_attention(causal=self.causal)
        in_blocks = self._blockwise(n_tokens, key["index"].shape[-1], side_inputs.edits_at("weights"))
        return {
            "mask": None if in_blocks else visible(new, key, causal=self.causal),
            "position": position.prepare(shared, query=new, key=key, new_key=new, **sizes),
            "where": (new, key),
            "shared": shared,
        }

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        if not self.causal:
            raise ValueError(f"decoding needs causal attention; {self.name!r} has causal=False, an encoder's")
        return {"latent": jnp.zeros((batch, capacity, self.d_latent + self.d_rotary), dtype)}

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        """Attend: softmax(query · key) value, projected back to the width of the stream.

        Args:
            params: as declared by `spec`.
            x: (..., T, D)
            side_inputs: what travels beside x.

        Returns:
            (..., T, D). State while decoding: the new `cache` entries. Intermediates: `weights` and `logits`
            (B, H, T, S), unless the backend is blockwise; `heads` (..., T, H, K).

        Raises:
            ValueError: an edit of weights that the backend never makes.
        """
        chex.assert_shape(x, (..., params["latent"].shape[0]))
        lead, n_tokens = x.shape[:-2], x.shape[-2]
        x = x.reshape(-1, *x.shape[-2:])
        table = side_inputs.prepared["position"]

        query_input = x
        if self.d_query_latent is not None:
            query_input = self.norm.apply(params["query_norm"], linear(params, "query_latent", x))
        query = linear(params, "query", query_input).reshape(*x.shape[:2], self.n_heads, -1)
        query_plain, query_rotary = query[..., : self.d_head], query[..., self.d_head :]
        query_rotary = self.position.rotate(table, "query", query_rotary)

        latent = self.norm.apply(params["latent_norm"], linear(params, "latent", x))
        rotary = self.position.rotate(table, "key", linear(params, "rotary", x)[:, :, None])[:, :, 0]
        latents = jnp.concatenate((latent, rotary), -1)
        state = {}
        if side_inputs.cache is not None:
            state = {"cache": {"latent": latents}}
            latents = behind(side_inputs.cache["latent"], latents)

        n_keys = side_inputs.prepared["where"][1]["index"].shape[-1]
        run = self._absorbed if self._absorbing(n_tokens, n_keys) else self._expanded
        y, intermediates = run(params, query_plain, query_rotary, latents, side_inputs)
        y = checkpoint_name(y.reshape(*lead, n_tokens, -1), "attention_heads")
        y = self.inner_norm.apply(params["inner_norm"], y)
        heads = side_inputs.edited("heads", y.reshape(*y.shape[:-1], self.n_heads, -1))
        y = self.dropped(linear(params, "out", heads.reshape(y.shape)), side_inputs)
        return y, Aux(state=state, intermediates={**intermediates, "heads": heads})

    def _blockwise(self, n_queries: int, n_keys: int, edited: bool) -> bool:
        if edited and self.backend == "blockwise":
            raise ValueError("backend='blockwise' makes no weights to edit; use backend='plain', or None")
        large = blockwise.large(n_queries, n_keys) and not edited
        return self.backend == "blockwise" or (self.backend is None and large)

    def _absorbing(self, n_queries: int, n_keys: int) -> bool:
        """True if the absorbed form takes fewer multiplications (per head) than the expanded one."""
        project = self.d_latent * (self.d_head + self.value_width)
        absorbed = n_queries * (project + n_keys * (2 * self.d_latent + self.d_rotary))
        expanded = n_keys * (project + n_queries * (self.d_head + self.d_rotary + self.value_width))
        return absorbed < expanded

    def _mix(
        self, params: Params, query: jax.Array, key: Parts, value: Parts, side_inputs: SideInputs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """softmax(query · key) value; and the weights and logits for observers."""
        prepared = side_inputs.prepared
        scale = (self.d_head + self.d_rotary) ** -0.5 if self.scale is None else self.scale
        query_at, key_at = where = prepared["where"]
        n_queries, n_keys = query_at["index"].shape[-1], key_at["index"].shape[-1]
        if self._blockwise(n_queries, n_keys, side_inputs.edits_at("weights")):
            key, value = joined(key), joined(value)
            position = self.position.for_attention(causal=self.causal)
            scores = blockwise.Scores(scale=scale, position=position, causal=self.causal, d_position=self.d_rotary)
            within = {"position": params["position"], "shared": prepared["shared"]}
            return blockwise.blockwise_attention(scores, within, query, key, value, where), {}
        bias = self.position.bias(params["position"], prepared["position"])
        weights, logits = attention_weights(query, key, scale=scale, mask=prepared["mask"], bias=bias)
        weights = side_inputs.edited("weights", weights)
        return weighted_sum(weights, value), {"weights": weights, "logits": logits}

    def _expanded(self, params: Params, plain: jax.Array, rotary: jax.Array, latents: Parts, side_inputs: SideInputs):
        latents = joined(latents)
        batch, n_keys = latents.shape[:2]
        latent, key_rotary = latents[..., : self.d_latent], latents[..., self.d_latent :]
        key = linear(params, "key", latent).reshape(batch, n_keys, self.n_heads, -1)
        value = linear(params, "value", latent).reshape(batch, n_keys, self.n_heads, -1)
        for_all = jnp.broadcast_to(key_rotary[:, :, None], (*key.shape[:3], self.d_rotary))
        query, key = jnp.concatenate((plain, rotary), -1), jnp.concatenate((key, for_all), -1)
        return self._mix(params, query, key, value, side_inputs)

    def _absorbed(self, params: Params, plain: jax.Array, rotary: jax.Array, latents: Parts, side_inputs: SideInputs):
        by_head = (self.d_latent, self.n_heads, -1)
        to_latent = params["key"].astype(plain.dtype).reshape(by_head)
        to_value = params["value"].astype(plain.dtype).reshape(by_head)
        query = jnp.concatenate((jnp.einsum("bthk,chk->bthc", plain, to_latent), rotary), -1)
        # The rotary part is summed as well and dropped behind the sum: a slice would be a copy of all latents.
        of_one_head = jax.tree.map(lambda part: part[:, :, None], latents)
        mixed, intermediates = self._mix(params, query, of_one_head, of_one_head, side_inputs)
        return jnp.einsum("bthc,chk->bthk", mixed[..., : self.d_latent], to_value), intermediates
