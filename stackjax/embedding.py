"""Embedding and head: tokens to vectors before the stack, and vectors to logits behind it."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import floating, ids, integers, positive, rate, rows, shown
from stackjax.description import Description
from stackjax.dot_product import first_positions
from stackjax.feed_forward import Activation
from stackjax.norm import NoNorm, Norm, upcast, without_statistics
from stackjax.parameter import Normal, Spec, linear, zeros
from stackjax.position.base import STREAM_HOOKS, NoPosition, Position
from stackjax.product import wide_einsum
from stackjax.sublayer import Params, Positions, dropout
from stackjax.tensor_parallel import scatter_tokens


def final_norm(norm: Norm, d_model: int) -> dict[str, Spec]:
    """Parameters of a norm outside the layers, where their role is final_norm."""
    return {name: replace(spec, role="final_norm") for name, spec in norm.spec(d_model).items()}


@dataclass(frozen=True, kw_only=True)
class Embedding(Description):
    """Tokens to vectors: dropout(norm(scale E[token] + types + position)).

    Vectors may come in place of tokens (a learned prompt, what another model saw); they stand for scale E[token].

    Args:
        vocab: V.
        scale: on the token's vector; None means sqrt(D).
        std: of the initial entries; None means 1/sqrt(D), so that scale = sqrt(D) gives a stream of unit RMS.
        position: encoding that acts on the stream.
        n_types: number of token types (BERT's segments); 0 for none.
        norm: of the sum.
        dropout: rate while training.

    Source: Vaswani et al. 2017, section 3.4, arXiv:1706.03762.
    """

    vocab: int
    scale: float | None = None
    std: float | None = None
    position: Position = NoPosition()
    n_types: int = 0
    norm: Norm = NoNorm()
    dropout: float = 0.0

    def __post_init__(self):
        positive(self, "vocab")
        rate(self, "dropout")
        without_statistics(norm=self.norm)
        if not self.position.acts_on(STREAM_HOOKS) and type(self.position) is not NoPosition:
            raise ValueError(f"{type(self.position).__name__} does not act on the stream; give it to the attention")

    def spec(self, d_model: int) -> dict[str, Any]:
        """Declare the parameters."""
        std = d_model**-0.5 if self.std is None else self.std
        specs: dict[str, Any] = {
            "token": Spec(shape=(self.vocab, d_model), role="embed", init=Normal(std)),
            "position": self.position.stream_spec(d_model),
            "norm": final_norm(self.norm, d_model),
        }
        if self.n_types:
            specs["type"] = Spec(shape=(self.n_types, d_model), role="embed", init=Normal(std))
        return specs

    def width(self, d_model: int) -> int:
        """Length of a vector in place of a token."""
        return d_model

    def shape(self, tokens: jax.Array, d_model: int) -> tuple[int, ...]:
        """The shape (..., T) of tokens, or of vectors (..., T, D) in their place.

        Raises:
            ValueError: neither integers nor vectors of the right length.
        """
        if not jnp.issubdtype(getattr(tokens, "dtype", int), jnp.floating):
            integers("tokens", tokens)
            return tokens.shape
        if tokens.ndim < 2 or tokens.shape[-1] != self.width(d_model):
            raise ValueError(
                f"tokens must be an array (..., T) of integers, or vectors (..., T, {self.width(d_model)}) in their "
                f"place; got {shown(tokens)}"
            )
        return tokens.shape[:-1]

    def vectors(self, params: Params, tokens: jax.Array, position: Positions, *, multiplier: Any = 1.0) -> jax.Array:
        """multiplier scale E[token], to which types and positions are added; vectors are taken as they are.

        Args:
            params: as declared by `spec`.
            tokens: (..., T) integers, or vectors (..., T, D).
            position: of the tokens.
            multiplier: the recipe's number for the embedding.

        Returns:
            (..., T, D)
        """
        if jnp.issubdtype(tokens.dtype, jnp.floating):
            return tokens
        ids("tokens", tokens, self.vocab)
        scale = params["token"].shape[-1] ** 0.5 if self.scale is None else self.scale
        return multiplier * scale * upcast(rows(params["token"], tokens))

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        position: Positions | None = None,
        *,
        types: jax.Array | None = None,
        multiplier: Any = 1.0,
        key: jax.Array | None = None,
        dtype: Any = jnp.float32,
    ) -> jax.Array:
        """Embed tokens.

        Args:
            params: as declared by `spec`.
            tokens: (..., T) integers, or vectors (..., T, D).
            position: of the tokens; None means 0 .. T-1.
            types: (..., T) integers, for models with token types; None means type 0.
            multiplier: the recipe's number for the embedding.
            key: PRNG key for dropout; None means evaluation.
            dtype: of the stream.

        Returns:
            (..., T, D)

        Raises:
            ValueError: tokens or types outside of their tables, where they are known, and types without a table; where
                they are traced such rows are NaN. A position beyond a table, which traced is NaN, too.
        """
        floating("the stream", dtype)
        shape = tokens.shape[:-1] if jnp.issubdtype(tokens.dtype, jnp.floating) else tokens.shape
        n_tokens, limit = shape[-1], self.position.limit
        if types is not None:
            if not self.n_types:
                raise ValueError("types are given, but the embedding has none; make it with n_types")
            integers("types", types)
            ids("types", types, self.n_types)
        if limit is not None and position is None and n_tokens > limit:
            raise ValueError(f"{n_tokens} tokens, but the position table has {limit} rows")
        if limit is not None and position is not None:
            ids("position['index']", position["index"], limit, least=-1)
        where = first_positions(n_tokens) if position is None else position
        if position is None and len(shape) == 1:
            where = {"index": where["index"][0]}
        x = scatter_tokens(self.vectors(params, tokens, where, multiplier=multiplier).astype(dtype))
        if self.n_types:
            x = x + rows(params["type"], jnp.zeros(shape, int) if types is None else types).astype(dtype)
        x = self.position.embed(params["position"], where, x).astype(x.dtype)
        return dropout(key, self.norm.apply(params["norm"], x), self.dropout)


@dataclass(frozen=True, kw_only=True)
class Head(Description):
    """Vectors to logits: cap(scale E x + bias), where x may first pass norm(activation(x W + b)).

    Args:
        tied: whether the embedding's matrix is used again.
        n_outputs: number of logits; None means V.
        std: of the initial entries; None means 1/sqrt(D), logits of unit variance for a stream of unit RMS.
        bias: whether logits have a bias.
        scale: on the logits; T5 divides by sqrt(D) where it ties.
        soft_cap: c in c tanh(logits / c); None for none.
        transform: activation of a dense layer (D, D) in front, as BERT has one; None for no such layer.
        norm: behind the dense layer.
    """

    tied: bool = False
    n_outputs: int | None = None
    std: float | None = None
    bias: bool = False
    scale: float = 1.0
    soft_cap: float | None = None
    transform: Activation | None = None
    norm: Norm = NoNorm()

    def __post_init__(self):
        positive(self, "n_outputs")
        if self.tied and self.n_outputs is not None:
            raise ValueError(f"a tied head has the logits of the vocabulary; got n_outputs={self.n_outputs}")

    def spec(self, d_model: int, vocab: int) -> dict[str, Any]:
        """Declare the parameters."""
        n_outputs = vocab if self.n_outputs is None else self.n_outputs
        specs: dict[str, Any] = {"norm": final_norm(self.norm, d_model)}
        if self.transform is not None:
            specs["transform"] = Spec(shape=(d_model, d_model), role="unembed")
            specs["transform_bias"] = Spec(shape=(d_model,), role="head_bias", init=zeros)
        if not self.tied:
            std = d_model**-0.5 if self.std is None else self.std
            specs["unembed"] = Spec(shape=(d_model, n_outputs), role="unembed", init=Normal(std))
        if self.bias:
            specs["bias"] = Spec(shape=(n_outputs,), role="head_bias", init=zeros)
        return specs

    def scaled(self, params: Params, logits: jax.Array, d_model: int) -> jax.Array:
        """A subclass's change to the logits (..., V), before bias and cap."""
        return logits

    def apply(self, params: Params, table: jax.Array, x: jax.Array, *, multiplier: Any = 1.0) -> jax.Array:
        """Logits of the stream that left the stack.

        Args:
            params: as declared by `spec`.
            table: the embedding's matrix (V, D).
            x: (..., D)
            multiplier: the recipe's number for the logits.

        Returns:
            (..., V), at least float32.
        """
        if self.transform is not None:
            x = self.transform(linear(params, "transform", x))
        x = self.norm.apply(params["norm"], x)
        weight = table.T if self.tied else params["unembed"]
        logits = self.scale * multiplier * wide_einsum("...d,dv->...v", x, weight.astype(x.dtype))
        logits = self.scaled(params, logits, x.shape[-1])
        if self.bias:
            logits = logits + params["bias"]
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)
