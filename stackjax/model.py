"""The model: embed, stack, unembed.

A decoder language model and a bidirectional encoder are the same parts; they differ in whether attention is causal.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from stackjax.attend import first_positions
from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward
from stackjax.layer import Layer
from stackjax.norm import NoNorm, Norm, wide
from stackjax.parameter import Constant, Normal, Spec, count, declare, realise, zeros
from stackjax.position.base import ATTENTION_HOOKS, STREAM_HOOKS, NoPosition, Position
from stackjax.position.rotary import Rotary
from stackjax.recipe.base import Recipe, Schedule
from stackjax.recipe.placement import PreNorm
from stackjax.stack import Result, Stack, multipliers
from stackjax.sublayer import Given, Params, Positions, dropout


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Tokens to vectors: dropout(norm(scale E[token] + types + position)).

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
        if self.vocab < 1:
            raise ValueError(f"vocab must be positive; got {self.vocab}")
        if not self.position.acts_on(STREAM_HOOKS) and type(self.position) is not NoPosition:
            raise ValueError(f"{type(self.position).__name__} does not act on the stream; give it to the attention")

    def spec(self, d_model: int) -> dict[str, Any]:
        """Parameters."""
        std = d_model**-0.5 if self.std is None else self.std
        specs: dict[str, Any] = {
            "token": Spec(shape=(self.vocab, d_model), role="embed", init=Normal(std)),
            "position": self.position.stream_spec(d_model),
            "norm": jax.tree.map(lambda s: replace(s, role="end_norm"), self.norm.spec(d_model)),
        }
        if self.n_types:
            specs["type"] = Spec(shape=(self.n_types, d_model), role="embed", init=Normal(std))
        return specs

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
        """Embed.

        Args:
            params: as declared by `spec`.
            tokens: (..., T) integers.
            position: of the tokens; None means 0 .. T-1.
            types: (..., T) integers, for models with token types; None means type 0.
            multiplier: the recipe's number for the embedding.
            key: PRNG key for dropout; None means evaluation.
            dtype: of the stream.

        Returns:
            (..., T, D)

        Raises:
            ValueError: a sequence longer than a learned position table.
        """
        n_tokens, limit = tokens.shape[-1], self.position.limit
        if position is None and limit is not None and n_tokens > limit:
            raise ValueError(f"{n_tokens} tokens, but the position table has {limit} rows")
        scale = params["token"].shape[-1] ** 0.5 if self.scale is None else self.scale
        x = (multiplier * scale * wide(params["token"][tokens])).astype(dtype)
        if self.n_types:
            x = x + params["type"][jnp.zeros_like(tokens) if types is None else types].astype(dtype)
        where = first_positions(n_tokens) if position is None else position
        if position is None and tokens.ndim == 1:
            where = {"index": where["index"][0]}
        x = self.position.embed(params["position"], where, x)
        return dropout(key, self.norm.apply(params["norm"], x), self.dropout)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Vectors to logits.

    Args:
        tied: whether the embedding's matrix is used again.
        bias: whether logits have a bias.
        scale: whether each logit has a learned factor, 1 at first; it is stored as 1/sqrt(D) of its value, so that
            Adam moves it sqrt(D) times as far (nGPT's s_z, eq. 3, arXiv:2410.01131).
        soft_cap: c in c tanh(logits / c); None for none.
    """

    tied: bool = False
    bias: bool = False
    scale: bool = False
    soft_cap: float | None = None

    def spec(self, d_model: int, vocab: int) -> dict[str, Any]:
        """Parameters."""
        specs: dict[str, Any] = {}
        if not self.tied:
            specs["unembed"] = Spec(shape=(d_model, vocab), role="unembed")
        if self.bias:
            specs["bias"] = Spec(shape=(vocab,), role="bias", init=zeros)
        if self.scale:
            specs["scale"] = Spec(shape=(vocab,), role="end_norm", init=Constant(d_model**-0.5))
        return specs

    def apply(self, params: Params, table: jax.Array, x: jax.Array, *, multiplier: Any = 1.0) -> jax.Array:
        """Unembed.

        Args:
            params: as declared by `spec`.
            table: the embedding's matrix (V, D).
            x: (..., D)
            multiplier: the recipe's number for the logits.

        Returns:
            (..., V), at least float32.
        """
        weight = table.T if self.tied else params["unembed"]
        accumulate = jnp.promote_types(x.dtype, jnp.float32)
        logits = multiplier * jnp.matmul(x, weight.astype(x.dtype), preferred_element_type=accumulate)
        if self.scale:
            logits = logits * (x.shape[-1] ** 0.5 * params["scale"])
        if self.bias:
            logits = logits + params["bias"]
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)


@dataclass(frozen=True, kw_only=True)
class Model:
    """embed, stack, unembed. Make one with `decoder` or `encoder`, or from parts.

    Args:
        embedding: tokens to vectors.
        stack: the layers.
        head: vectors to logits, as changed by the recipe.
    """

    embedding: Embedding
    stack: Stack
    head: Head = Head()

    def __post_init__(self):
        recipe, geometry = self.stack.recipe, self.stack.geometry
        object.__setattr__(self, "head", recipe.adapt_head(self.head, geometry))
        ends = [(recipe.gain(role, geometry), recipe.multiplier(role, geometry)) for role in ("embed", "unembed")]
        if self.head.tied and ends[0] != ends[1]:
            raise ValueError(
                f"{type(recipe).__name__} treats embedding and output differently, so they cannot be tied; use "
                "Head(tied=False)"
            )

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`: {embedding, stack, head}."""
        d_model = self.stack.d_model
        return {
            "embedding": declare(self.embedding.spec(d_model), prefix="embedding/"),
            "stack": self.stack.declaration(),
            "head": declare(self.head.spec(d_model, self.embedding.vocab), prefix="head/"),
        }

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Draw the parameters."""
        drawn = realise(key, self.declaration(), law=self.stack.recipe.law, gain=self.stack.gain, dtype=dtype)
        return self.constrain(drawn)

    def constrain(self, params: Params) -> Params:
        """The parameters where the recipe wants them after each step, see `Recipe.constrain`."""
        return self.stack.recipe.constrain(params, self.declaration())

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier`."""
        return multipliers(self.declaration(), self.stack.recipe, self.stack.geometry)

    @property
    def n_params(self) -> int:
        """Number of trained parameters."""
        return count(self.declaration())

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        given: Given | None = None,
        *,
        types: jax.Array | None = None,
        schedule: Schedule | None = None,
        key: jax.Array | None = None,
        dtype: Any = jnp.float32,
        **options: Any,
    ) -> tuple[jax.Array, Result]:
        """Logits.

        Args:
            params: as drawn by `init`.
            tokens: (..., T) integers.
            given: positions and whatever else travels beside the stream.
            types: (..., T) token types, for models that have them.
            schedule: the recipe's numbers; None takes them from the stack's depth.
            key: PRNG key for dropout and stochastic depth; None means evaluation.
            dtype: of the stream.
            **options: of `Stack.apply`: cache, taps, probes, measure, remat, loop, unroll.

        Returns:
            (..., T, V), at least float32, and the stack's `Result`.
        """
        chex.assert_type(tokens, int)
        given = Given() if given is None else given
        schedule = self.stack.schedule() if schedule is None else schedule
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = self.embedding.apply(
            params["embedding"],
            tokens,
            given.position,
            types=types,
            multiplier=schedule["embed"],
            key=embed_key,
            dtype=dtype,
        )
        x, result = self.stack.apply(params["stack"], x, given, schedule=schedule, key=stack_key, **options)
        logits = self.head.apply(params["head"], params["embedding"]["token"], x, multiplier=schedule["unembed"])
        return logits, result


def decoder(
    *,
    vocab: int = 256,
    d_model: int = 256,
    depth: int = 12,
    n_heads: int = 4,
    recipe: Recipe = PreNorm(),
    position: Position = Rotary(),
    attention: Attention | None = None,
    feed_forward: FeedForward = FeedForward(),
    tied: bool = False,
    dropout: float = 0.0,
    side: Literal["encoder", "decoder"] = "decoder",
) -> Model:
    """Describe a decoder language model.

    Args:
        vocab: V.
        d_model: D.
        depth: L.
        n_heads: H.
        recipe: the depth treatment.
        position: put where it acts, on the stream or inside attention.
        attention: for what the other arguments do not say; n_heads, position, causality and dropout are set here.
        feed_forward: the feed-forward sublayer.
        tied: whether the output uses the embedding's matrix.
        dropout: rate after the embedding and in every sublayer, while training.
        side: "encoder" makes attention bidirectional.

    Raises:
        ValueError: sizes or choices that do not fit together.
    """
    inside = position if position.acts_on(ATTENTION_HOOKS) else NoPosition()
    on_stream = position if position.acts_on(STREAM_HOOKS) else NoPosition()
    attention = replace(
        attention or Attention(n_heads=n_heads),
        n_heads=n_heads,
        position=inside,
        causal=side == "decoder",
        dropout=dropout,
    )
    attention.head_width(d_model)
    layer = Layer(subs=(attention, replace(feed_forward, dropout=dropout)))
    return Model(
        embedding=Embedding(vocab=vocab, position=on_stream, dropout=dropout),
        stack=Stack.of(layer, depth=depth, d_model=d_model, recipe=recipe, side=side),
        head=Head(tied=tied),
    )


def encoder(**options: Any) -> Model:
    """Describe a bidirectional encoder; the arguments are those of `decoder`."""
    return decoder(**options, side="encoder")
