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
from stackjax.display import Description, Whole
from stackjax.feed_forward import Activation, FeedForward
from stackjax.latent_attention import LatentAttention
from stackjax.layer import Layer
from stackjax.norm import NoNorm, Norm, wide, without_statistics
from stackjax.parameter import Constant, Normal, Spec, declare, linear, matrix, realise, zeros
from stackjax.position.base import ATTENTION_HOOKS, STREAM_HOOKS, NoPosition, Position
from stackjax.position.rotary import Rotary
from stackjax.recipe.base import Recipe, Schedule, multipliers
from stackjax.recipe.placement import PreNorm
from stackjax.stack import Measure, Result, Stack
from stackjax.sublayer import Given, Params, Positions, Sublayer, dropout


def end_norm(norm: Norm, d_model: int) -> dict[str, Spec]:
    """Parameters of a norm at an end of the model, where their role is end_norm."""
    return {name: replace(spec, role="end_norm") for name, spec in norm.spec(d_model).items()}


@dataclass(frozen=True, kw_only=True)
class Embedding(Description):
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout}")
        without_statistics(norm=self.norm)
        if not self.position.acts_on(STREAM_HOOKS) and type(self.position) is not NoPosition:
            raise ValueError(f"{type(self.position).__name__} does not act on the stream; give it to the attention")

    def spec(self, d_model: int) -> dict[str, Any]:
        """Parameters."""
        std = d_model**-0.5 if self.std is None else self.std
        specs: dict[str, Any] = {
            "token": Spec(shape=(self.vocab, d_model), role="embed", init=Normal(std)),
            "position": self.position.stream_spec(d_model),
            "norm": end_norm(self.norm, d_model),
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
class Head(Description):
    """Vectors to logits: cap(scale E x + bias), where x may first pass norm(activation(x W + b)).

    Args:
        tied: whether the embedding's matrix is used again.
        std: of the initial entries; None means 1/sqrt(D), logits of unit variance for a stream of unit RMS.
        bias: whether logits have a bias.
        scale: on the logits; T5 divides by sqrt(D) where it ties.
        learned_scale: whether each logit has a learned factor, 1 at first; it is stored as 1/sqrt(D) of its value, so
            that Adam moves it sqrt(D) times as far (nGPT's s_z, eq. 3, arXiv:2410.01131).
        soft_cap: c in c tanh(logits / c); None for none.
        transform: activation of a dense layer (D, D) in front, as BERT has one; None for no such layer.
        norm: behind the dense layer.
    """

    tied: bool = False
    std: float | None = None
    bias: bool = False
    scale: float = 1.0
    learned_scale: bool = False
    soft_cap: float | None = None
    transform: Activation | None = None
    norm: Norm = NoNorm()

    def spec(self, d_model: int, vocab: int) -> dict[str, Any]:
        """Parameters."""
        specs: dict[str, Any] = {"norm": end_norm(self.norm, d_model)}
        if self.transform is not None:
            specs |= matrix(d_model, d_model, "unembed", name="transform", bias=True)
        if not self.tied:
            std = d_model**-0.5 if self.std is None else self.std
            specs["unembed"] = Spec(shape=(d_model, vocab), role="unembed", init=Normal(std))
        if self.bias:
            specs["bias"] = Spec(shape=(vocab,), role="bias", init=zeros)
        if self.learned_scale:
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
        if self.transform is not None:
            x = self.transform(linear(params, "transform", x))
        x = self.norm.apply(params["norm"], x)
        weight = table.T if self.tied else params["unembed"]
        accumulate = jnp.promote_types(x.dtype, jnp.float32)
        logits = self.scale * multiplier * jnp.matmul(x, weight.astype(x.dtype), preferred_element_type=accumulate)
        if self.learned_scale:
            logits = logits * (x.shape[-1] ** 0.5 * params["scale"])
        if self.bias:
            logits = logits + params["bias"]
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)


@dataclass(frozen=True, kw_only=True)
class Model(Whole):
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

    def calibrate(self, params: Params, tokens: jax.Array, given: Given | None = None, **options: Any) -> Params:
        """Parameters before the first step, which some recipes set from one batch; arguments are those of `apply`."""

        def observe(own: Params, measure: Measure) -> dict[str, jax.Array]:
            return self.apply({**params, "stack": own}, tokens, given, measure=measure, **options)[1].measure

        stack = self.stack
        return {**params, "stack": stack.recipe.calibrate(params["stack"], stack.declaration(), observe)}

    def absorb(self, params: Params, state: Params) -> Params:
        """Parameters after a step, with the statistics that `apply` returned as `Result.state`."""
        return {**params, "stack": self.stack.absorb(params["stack"], state)}

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        given: Given | None = None,
        *,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> tuple[jax.Array, Result]:
        """Logits of every token.

        Args:
            params: as drawn by `init`.
            tokens: (..., T) integers.
            given: positions and whatever else travels beside the stream.
            schedule: the recipe's numbers; None takes them from the stack's depth.
            **options: of `hidden`.

        Returns:
            (..., T, V), at least float32, and the stack's `Result`.
        """
        schedule = self.stack.schedule() if schedule is None else schedule
        x, result = self.hidden(params, tokens, given, schedule=schedule, **options)
        return self.logits(params, x, schedule=schedule), result

    def hidden(
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
        """What the stack makes of the tokens, before the head.

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
            (..., T, D), and the stack's `Result`.
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
        return self.stack.apply(params["stack"], x, given, schedule=schedule, key=stack_key, **options)

    def logits(self, params: Params, x: jax.Array, *, schedule: Schedule | None = None) -> jax.Array:
        """The head: (..., D) as `hidden` returns it to (..., V), at least float32."""
        schedule = self.stack.schedule() if schedule is None else schedule
        return self.head.apply(params["head"], params["embedding"]["token"], x, multiplier=schedule["unembed"])


def split_position(position: Position) -> tuple[Position, Position]:
    """The encoding as the stream's and as attention's part, each `NoPosition` where it does not act."""
    on_stream = position if position.acts_on(STREAM_HOOKS) else NoPosition()
    inside = position if position.acts_on(ATTENTION_HOOKS) else NoPosition()
    return on_stream, inside


def decoder(
    *,
    vocab: int = 256,
    d_model: int = 256,
    depth: int = 12,
    n_heads: int | None = None,
    recipe: Recipe = PreNorm(),
    position: Position | None = None,
    attention: Attention | LatentAttention | None = None,
    feed_forward: Sublayer = FeedForward(),
    tied: bool = False,
    dropout: float | None = None,
    side: Literal["encoder", "decoder"] = "decoder",
) -> Model:
    """Describe a decoder language model.

    Args:
        vocab: V.
        d_model: D.
        depth: L.
        n_heads: H; None takes the attention's, or 4.
        recipe: the depth treatment.
        position: put where it acts, on the stream or inside attention; None takes the attention's, or rotary.
        attention: for what the other arguments do not say.
        feed_forward: the feed-forward sublayer, or a mixture of experts.
        tied: whether the output uses the embedding's matrix.
        dropout: rate after the embedding and in every sublayer, while training; None keeps the sublayers' own.
        side: "encoder" makes attention bidirectional.

    Raises:
        ValueError: sizes or choices that do not fit together.
    """
    own = attention or Attention(n_heads=n_heads or 4)
    if (isinstance(own, Attention) and own.cross) or (side == "decoder" and not own.causal):
        raise ValueError(f"a {side} made here attends to itself, a decoder causally; got {own}")
    if n_heads not in (None, own.n_heads):
        raise ValueError(f"n_heads={n_heads}, but attention has n_heads={own.n_heads}; give it once")
    if position is None:
        position = Rotary() if own.position == NoPosition() else own.position
    on_stream, inside = split_position(position)
    if on_stream == position and inside == NoPosition():
        inside = own.position
    if own.position not in (NoPosition(), inside):
        raise ValueError(f"position={position}, but attention has position={own.position}; give it once")
    subs = (replace(own, position=inside, causal=side == "decoder"), feed_forward)
    subs[0].spec(d_model)
    if dropout is not None:
        subs = tuple(replace(sub, dropout=dropout) for sub in subs)
    return Model(
        embedding=Embedding(vocab=vocab, position=on_stream, dropout=dropout or 0.0),
        stack=Stack.of(Layer(subs=subs), depth=depth, d_model=d_model, recipe=recipe, side=side),
        head=Head(tied=tied),
    )


def encoder(**options: Any) -> Model:
    """Describe a bidirectional encoder; the arguments are those of `decoder`."""
    return decoder(**options, side="encoder")
