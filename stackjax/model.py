"""The model: embed, stack, unembed.

A decoder language model and a bidirectional encoder are the same parts; they differ in whether attention is causal.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.display import Whole
from stackjax.ends import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.latent_attention import LatentAttention
from stackjax.layer import Layer
from stackjax.parameter import declare, realise
from stackjax.period import Measure
from stackjax.position.base import ATTENTION_HOOKS, STREAM_HOOKS, NoPosition, Position
from stackjax.position.rotary import Rotary
from stackjax.recipe.base import Recipe, Schedule, multipliers
from stackjax.recipe.placement import PreNorm
from stackjax.stack import Result, Stack
from stackjax.sublayer import Given, Params, Sublayer


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
    if on_stream != NoPosition() and inside == NoPosition():
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
