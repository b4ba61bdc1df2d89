"""Encoder and decoder: one stack reads the source, the other writes the target and looks at what the first has read."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.ends import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.layer import Layer
from stackjax.model import Model, split_position
from stackjax.parameter import count, declare, realise
from stackjax.period import Measure
from stackjax.position.base import NoPosition, Position
from stackjax.position.sinusoidal import Sinusoidal
from stackjax.recipe.base import Recipe, Schedule
from stackjax.recipe.placement import PreNorm
from stackjax.stack import Result, Stack, multipliers
from stackjax.sublayer import Given, Params, Positions, Sublayer, add_losses


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """memory = encoder(source); logits = decoder(tokens, memory). Make one with `encoder_decoder`, or from parts.

    Args:
        encoder: the stack that reads.
        decoder: the model that writes, with cross-attention in its layers.
        source: embedding of the source; None shares the decoder's.

    Raises:
        ValueError: stacks of different widths.
    """

    encoder: Stack
    decoder: Model
    source: Embedding | None = None

    def __post_init__(self):
        widths = self.encoder.d_model, self.decoder.stack.d_model
        if widths[0] != widths[1]:
            raise ValueError(f"encoder and decoder must have the same d_model; got {widths[0]} and {widths[1]}")

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`: {source, encoder, decoder: {embedding, stack, head}}."""
        return {
            "source": self._declare_source(),
            "encoder": self.encoder.declaration(),
            "decoder": self.decoder.declaration(),
        }

    def _declare_source(self) -> Params:
        return {} if self.source is None else declare(self.source.spec(self.encoder.d_model), prefix="source/")

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Draw the parameters; an embedding that both sides share is the encoder's in this."""
        source_key, encoder_key, decoder_key = jax.random.split(key, 3)
        law, gain = self.encoder.recipe.law, self.encoder.gain
        decoder = self.decoder.init(decoder_key, dtype)
        if self.source is None:
            declared = self.decoder.declaration()["embedding"]
            decoder["embedding"] = realise(decoder_key, declared, law=law, gain=gain, dtype=dtype)
        drawn = {
            "source": realise(source_key, self._declare_source(), law=law, gain=gain, dtype=dtype),
            "encoder": self.encoder.init(encoder_key, dtype),
            "decoder": decoder,
        }
        return self.constrain(drawn)

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier` for its side."""
        return {
            "source": multipliers(self._declare_source(), self.encoder.recipe, self.encoder.geometry),
            "encoder": self.encoder.multipliers(),
            "decoder": self.decoder.multipliers(),
        }

    def constrain(self, params: Params) -> Params:
        """The parameters where each side's recipe wants them after each step, see `Recipe.constrain`."""
        read = {name: params[name] for name in ("source", "encoder")}
        declared = {"source": self._declare_source(), "encoder": self.encoder.declaration()}
        read = self.encoder.recipe.constrain(read, declared)
        return {**read, "decoder": self.decoder.constrain(params["decoder"])}

    def calibrate(
        self,
        params: Params,
        source: jax.Array,
        tokens: jax.Array,
        *,
        source_position: Positions | None = None,
        position: Positions | None = None,
        **options: Any,
    ) -> Params:
        """Parameters before the first step, which some recipes set from one batch: the encoder's, then the decoder's,
        which reads what the encoder now makes of the source.

        Args:
            params: as drawn by `init`.
            source: (..., S) integers.
            tokens: (..., T) integers, the target shifted right.
            source_position: of the source's tokens; None means 0 .. S-1 without padding.
            position: of the target's tokens; None means 0 .. T-1 without padding.
            **options: of both stacks: dtype, remat, loop, unroll.
        """

        def observe(own: Params, measure: Measure) -> dict[str, jax.Array]:
            here = {**params, "encoder": own}
            return self.encode(here, source, source_position, measure=measure, **options)[1].measure

        encoder = self.encoder.recipe.calibrate(params["encoder"], self.encoder.declaration(), observe)
        params = {**params, "encoder": encoder}
        memory, _ = self.encode(params, source, source_position, **options)
        given = Given(position=position, memory=memory, memory_position=source_position)
        return {**params, "decoder": self.decoder.calibrate(params["decoder"], tokens, given, **options)}

    def absorb(self, params: Params, state: Params) -> Params:
        """Parameters after a step, with the statistics that `apply` returned as `Result.state`."""
        encoder = self.encoder.absorb(params["encoder"], state["encoder"])
        return {**params, "encoder": encoder, "decoder": self.decoder.absorb(params["decoder"], state["decoder"])}

    @property
    def n_params(self) -> int:
        """Number of trained parameters."""
        return count(self.declaration())

    def encode(
        self,
        params: Params,
        source: jax.Array,
        position: Positions | None = None,
        *,
        schedule: Schedule | None = None,
        key: jax.Array | None = None,
        dtype: Any = jnp.float32,
        **options: Any,
    ) -> tuple[jax.Array, Result]:
        """Read the source.

        Args:
            params: as drawn by `init`.
            source: (..., S) integers.
            position: of the source's tokens; None means 0 .. S-1 without padding.
            schedule: the recipe's numbers for the encoder; None takes them from its depth.
            key: PRNG key for dropout; None means evaluation.
            dtype: of the stream.
            **options: of `Stack.apply`.

        Returns:
            The memory (..., S, D), and the encoder's `Result`.
        """
        reader = Model(embedding=self.source or self.decoder.embedding, stack=self.encoder)
        embedding = params["decoder"]["embedding"] if self.source is None else params["source"]
        own = {"embedding": embedding, "stack": params["encoder"]}
        return reader.hidden(own, source, Given(position=position), schedule=schedule, key=key, dtype=dtype, **options)

    def apply(
        self,
        params: Params,
        source: jax.Array,
        tokens: jax.Array,
        *,
        source_position: Positions | None = None,
        position: Positions | None = None,
        schedule: dict[str, Schedule] | None = None,
        key: jax.Array | None = None,
        taps: dict[str, jax.Array] | None = None,
        probes: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[jax.Array, Result]:
        """Logits of the target, given the source.

        Args:
            params: as drawn by `init`.
            source: (..., S) integers.
            tokens: (..., T) integers, the target shifted right.
            source_position: of the source's tokens; None means 0 .. S-1 without padding.
            position: of the target's tokens; None means 0 .. T-1 without padding.
            schedule: {encoder, decoder}: the recipe's numbers; None takes them from the depths.
            key: PRNG key for dropout; None means evaluation.
            taps: {encoder, decoder}, see `Stack.apply`.
            probes: {encoder, decoder}, see `Stack.apply`.
            **options: of both stacks: dtype, measure, remat, loop, unroll.

        Returns:
            (..., T, V), at least float32, and a `Result` with the losses of both stacks summed, and state and measures
            as {encoder, decoder}.
        """
        keys = (None, None) if key is None else jax.random.split(key)

        def own(side: str) -> dict[str, Any]:
            of_stacks = {"schedule": schedule, "taps": taps, "probes": probes}
            return {name: None if both is None else both[side] for name, both in of_stacks.items()}

        memory, read = self.encode(params, source, source_position, key=keys[0], **own("encoder"), **options)
        given = Given(position=position, memory=memory, memory_position=source_position)
        logits, written = self.decoder.apply(params["decoder"], tokens, given, key=keys[1], **own("decoder"), **options)
        result = Result(
            loss=add_losses(read.loss, written.loss),
            state={"encoder": read.state, "decoder": written.state},
            measure={"encoder": read.measure, "decoder": written.measure},
        )
        return logits, result


def encoder_decoder(
    *,
    vocab: int = 256,
    source_vocab: int | None = None,
    d_model: int = 256,
    depth: int = 6,
    encoder_depth: int | None = None,
    n_heads: int = 4,
    recipe: Recipe = PreNorm(),
    position: Position = Sinusoidal(),
    attention: Attention | None = None,
    feed_forward: Sublayer = FeedForward(),
    tied: bool = False,
    dropout: float = 0.0,
) -> EncoderDecoder:
    """Describe an encoder-decoder; a decoder layer is self-attention, cross-attention, feed-forward.

    Args:
        vocab: V, of the target.
        source_vocab: of the source, which then has an embedding of its own; None shares the target's.
        d_model: D.
        depth: layers of the decoder.
        encoder_depth: layers of the encoder; None means as many.
        n_heads: H.
        recipe: the depth treatment of both; its constants know both depths.
        position: put where it acts, on both streams or inside both self-attentions.
        attention: for what the other arguments do not say; n_heads, position, causality and dropout are set here.
        feed_forward: the feed-forward sublayer.
        tied: whether the output uses the target embedding's matrix.
        dropout: rate after the embeddings and in every sublayer, while training.

    Source: Vaswani et al. 2017, section 3.1, arXiv:1706.03762.
    """
    on_stream, inside = split_position(position)
    attention = replace(attention or Attention(n_heads=n_heads), n_heads=n_heads, dropout=dropout)
    attention.spec(d_model)
    own = replace(attention, position=inside)
    forward = replace(feed_forward, dropout=dropout)
    across = replace(attention, name="cross_attention", cross=True, window=None, chunk=None, position=NoPosition())
    n_read = depth if encoder_depth is None else encoder_depth
    reader = Layer(subs=(replace(own, causal=False), forward))
    writer = Layer(subs=(replace(own, causal=True), across, forward))
    sizes = {"d_model": d_model, "recipe": recipe}
    decoder = Stack.of(writer, depth=depth, side="decoder", other_depth=n_read, **sizes)
    embedding = Embedding(vocab=vocab, position=on_stream, dropout=dropout)
    return EncoderDecoder(
        encoder=Stack.of(reader, depth=n_read, side="encoder", other_depth=depth, **sizes),
        decoder=Model(embedding=embedding, stack=decoder, head=Head(tied=tied)),
        source=None if source_vocab is None else replace(embedding, vocab=source_vocab),
    )
