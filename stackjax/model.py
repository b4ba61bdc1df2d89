"""The model: embed, stack, unembed.

A decoder language model and a bidirectional encoder are the same parts; they differ in whether attention is causal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp

from stackjax.abstract_model import AbstractModel, Path
from stackjax.attention import Attention
from stackjax.check import instance, prng_key
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.layer import Layer
from stackjax.option import HiddenOptions, RunOptions
from stackjax.parameter import declare, realise, restrict
from stackjax.position.base import ATTENTION_HOOKS, STREAM_HOOKS, NoPosition, Position
from stackjax.position.rotary import Rotary
from stackjax.recipe.base import Coefficients, Recipe, multipliers
from stackjax.recipe.placement import PreNorm
from stackjax.segment import Measure
from stackjax.stack import Stack
from stackjax.sublayer import Params, Result, SideInputs, Sublayer, checked
from stackjax.tensor_parallel import on_all_tokens


@dataclass(frozen=True, kw_only=True)
class Model(AbstractModel):
    """embed, stack, unembed. Make one with `decoder` or `encoder`, or from parts.

    Args:
        embedding: tokens to vectors.
        stack: the layers.
        head: vectors to logits; `output` is the same with the recipe's changes.
    """

    embedding: Embedding
    stack: Stack
    head: Head = Head()

    def __post_init__(self):
        recipe, geometry = self.stack.recipe, self.stack.geometry
        embed, unembed = (
            (recipe.gain(role, geometry), recipe.multiplier(role, geometry)) for role in ("embed", "unembed")
        )
        if self.output.tied and embed != unembed:
            raise ValueError(
                f"{type(recipe).__name__} treats embedding and output differently, so they cannot be tied; use "
                "Head(tied=False)"
            )

    @property
    def output(self) -> Head:
        """The head with the recipe's changes to it."""
        return self.stack.recipe.adapt_head(self.head, self.stack.geometry)

    def stacks(self) -> dict[Path, Stack]:
        return {("stack",): self.stack}

    def with_stacks(self, stacks: Mapping[Path, Stack]) -> "Model":
        return replace(self, stack=stacks[("stack",)])

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`: {embedding, stack, head}."""
        d_model = self.stack.d_model
        return {
            "embedding": declare(self.embedding.spec(d_model), prefix="embedding/"),
            "stack": self.stack.declaration(),
            "head": declare(self.output.spec(d_model, self.embedding.vocab), prefix="head/"),
        }

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Draw the parameters."""
        init = self.stack.recipe.default_init
        drawn = realise(key, self.declaration(), default_init=init, gain=self.stack.gain, dtype=dtype)
        return self.project(drawn)

    def project(self, params: Params) -> Params:
        """The parameters where the recipe wants them after each step, see `Recipe.project`."""
        return self.stack.recipe.project(params, restrict(self.declaration(), params))

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier`."""
        return multipliers(self.declaration(), self.stack.recipe, self.stack.geometry)

    def calibrate(
        self,
        params: Params,
        tokens: jax.Array,
        side_inputs: SideInputs | None = None,
        **options: Unpack[HiddenOptions],
    ) -> Params:
        """Parameters before the first step, which some recipes set from one batch; arguments are those of `apply`."""

        params = self.checked(params)

        def observe(trial: Params, measure: Measure) -> dict[str, jax.Array]:
            trial = {**params, "stack": trial}
            return self.apply(trial, tokens, side_inputs, **{**options, "measure": measure})[1].measure

        stack = self.stack
        return {**params, "stack": stack.recipe.calibrate(params["stack"], stack.declaration(), observe)}

    def update_statistics(self, params: Params, state: Params) -> Params:
        """Parameters after a step, with the statistics that `apply` returned as `Result.state`."""
        return {**params, "stack": self.stack.update_statistics(params["stack"], state)}

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        side_inputs: SideInputs | None = None,
        *,
        coefficients: Coefficients | None = None,
        key: jax.Array | None = None,
        **options: Unpack[HiddenOptions],
    ) -> tuple[jax.Array, Result]:
        """Logits of every token.

        Args:
            params: as drawn by `init`.
            tokens: (..., T) integers, or vectors (..., T, D) in their place, see `Embedding.vectors`.
            side_inputs: positions and whatever else travels beside the stream.
            coefficients: the recipe's numbers; None takes them from the stack's depth.
            key: PRNG key for dropout and stochastic depth; None means evaluation.
            **options: of `hidden`.

        Returns:
            (..., T, V), at least float32, and the stack's `Result`.
        """
        params = self.checked(params)
        coefficients = self.stack.checked_coefficients(coefficients)
        x, result = self.hidden(params, tokens, side_inputs, coefficients=coefficients, key=key, **options)
        head = partial(self.logits, params, coefficients=coefficients)
        return on_all_tokens(head, x), result

    def hidden(
        self,
        params: Params,
        tokens: jax.Array,
        side_inputs: SideInputs | None = None,
        *,
        types: jax.Array | None = None,
        coefficients: Coefficients | None = None,
        key: jax.Array | None = None,
        dtype: Any = jnp.float32,
        **options: Unpack[RunOptions],
    ) -> tuple[jax.Array, Result]:
        """The stream that leaves the stack, before the head.

        Args:
            params: as drawn by `init`.
            tokens: (..., T) integers, or vectors (..., T, D) in their place, see `Embedding.vectors`.
            side_inputs: positions and whatever else travels beside the stream.
            types: (..., T) token types, for models that have them.
            coefficients: the recipe's numbers; None takes them from the stack's depth.
            key: PRNG key for dropout and stochastic depth; None means evaluation.
            dtype: of the stream.
            **options: of `Stack.apply`: cache, taps, perturbations, measure, remat, loop, unroll.

        Returns:
            (..., T, D), and the stack's `Result`.
        """
        params = self.checked(params, "embedding", "stack")
        coefficients = self.stack.checked_coefficients(coefficients)
        embed_key, stack_key = (None, None) if key is None else jax.random.split(prng_key(key))
        x = self.embed(params, tokens, side_inputs, types=types, coefficients=coefficients, key=embed_key, dtype=dtype)
        return self.stack.apply(params["stack"], x, side_inputs, coefficients=coefficients, key=stack_key, **options)

    def embed(
        self,
        params: Params,
        tokens: jax.Array,
        side_inputs: SideInputs | None = None,
        *,
        types: jax.Array | None = None,
        coefficients: Coefficients | None = None,
        key: jax.Array | None = None,
        dtype: Any = jnp.float32,
    ) -> jax.Array:
        """The embedding: tokens to what enters the stack, (..., T, D).

        Args:
            params: as drawn by `init`.
            tokens: (..., T) integers, or vectors (..., T, D) in their place, see `Embedding.vectors`.
            side_inputs: positions of the tokens.
            types: (..., T) token types, for models that have them.
            coefficients: the recipe's numbers; None takes them from the stack's depth.
            key: PRNG key for dropout; None means evaluation.
            dtype: of the stream.
        """
        params = self.checked(params, "embedding")
        d_model = self.stack.d_model
        side_inputs = checked(side_inputs, self.embedding.shape(tokens, d_model), d_model)
        return self.embedding.apply(
            params["embedding"],
            tokens,
            side_inputs.position,
            types=types,
            multiplier=self.stack.checked_coefficients(coefficients)["embed"],
            key=key,
            dtype=dtype,
        )

    def logits(self, params: Params, x: jax.Array, *, coefficients: Coefficients | None = None) -> jax.Array:
        """The head: (..., D) as `hidden` returns it to (..., V), at least float32."""
        params = self.checked(params, "embedding", "head")
        coefficients = self.stack.checked_coefficients(coefficients)
        return self.output.apply(params["head"], params["embedding"]["token"], x, multiplier=coefficients["unembed"])


def split_position(position: Position) -> tuple[Position, Position]:
    """The encoding as the stream's and as attention's part, each `NoPosition` where it does not act.

    Raises:
        ValueError: something else than an encoding.
    """
    instance("position", position, Position)
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
    attention: Sublayer | None = None,
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
        attention: for what the other arguments do not say: `Attention`, `LatentAttention`, or a sublayer of your own
            that attends and has the fields n_heads, position and causal.
        feed_forward: the feed-forward sublayer, or a mixture of experts.
        tied: whether the output uses the embedding's matrix.
        dropout: rate after the embedding and in every sublayer, while training; None keeps the sublayers' own.
        side: "encoder" makes attention bidirectional.

    Raises:
        ValueError: sizes or choices that do not fit together.
    """
    instance("recipe", recipe, Recipe)
    instance("feed_forward", feed_forward, Sublayer)
    self_attention = (
        Attention(n_heads=4 if n_heads is None else n_heads) if attention is None else _attending(attention)
    )
    if self_attention.reads_memory or (side == "decoder" and not self_attention.causal):
        raise ValueError(f"a {side} made here attends to itself, a decoder causally; got {self_attention}")
    if n_heads not in (None, self_attention.n_heads):
        raise ValueError(f"n_heads={n_heads}, but attention has n_heads={self_attention.n_heads}; give it once")
    usual = Rotary() if self_attention.position == NoPosition() else self_attention.position
    on_stream, inside = split_position(usual if position is None else position)
    if on_stream != NoPosition() and inside == NoPosition():
        inside = self_attention.position
    if self_attention.position not in (NoPosition(), inside):
        raise ValueError(f"position={position}, but attention has position={self_attention.position}; give it once")
    causal = side == "decoder"
    inside = inside.for_attention(causal=causal)
    sublayers = (replace(self_attention, position=inside, causal=causal), feed_forward)
    sublayers[0].spec(d_model)
    if dropout is not None:
        sublayers = tuple(replace(sublayer, dropout=dropout) for sublayer in sublayers)
    return Model(
        embedding=Embedding(vocab=vocab, position=on_stream, dropout=dropout or 0.0),
        stack=Stack.of(Layer(sublayers=sublayers), depth=depth, d_model=d_model, recipe=recipe, side=side),
        head=Head(tied=tied),
    )


def _attending(attention: Sublayer) -> Any:
    """The attention that was given.

    Raises:
        ValueError: it does not attend, or has no fields for what is set here.
    """
    instance("attention", attention, Sublayer)
    missing = [name for name in ("n_heads", "position", "causal") if not hasattr(attention, name)]
    if missing or not attention.attends:
        lacks = f"no {', '.join(missing)}" if missing else "attends=False"
        raise ValueError(
            "attention must be a sublayer that attends, with the fields n_heads, position and causal, which are set "
            f"here; {type(attention).__name__} has {lacks}. Other sublayers go into a Layer, and that into Stack.of"
        )
    return attention


def encoder(**options: Any) -> Model:
    """Describe a bidirectional encoder; the arguments are those of `decoder`."""
    return decoder(**options, side="encoder")
