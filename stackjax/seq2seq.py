"""Encoder and decoder: one stack reads the source, the other writes the target and looks at what the first has read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from stackjax.abstract_model import AbstractModel, Path
from stackjax.attention import Attention
from stackjax.check import checked_positions, instance, prng_key, shown
from stackjax.edit import Edit
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.layer import Layer
from stackjax.model import Model, split_position
from stackjax.option import BothOptions, HiddenOptions
from stackjax.parameter import declare, is_spec, realise, restrict
from stackjax.position.base import NoPosition, Position
from stackjax.position.sinusoidal import Sinusoidal
from stackjax.recipe.base import Coefficients, Recipe, multipliers
from stackjax.recipe.placement import PreNorm
from stackjax.segment import Measure
from stackjax.stack import Stack
from stackjax.sublayer import Params, Result, SideInputs, Sublayer, add_losses, checked
from stackjax.tensor_parallel import gather_tokens


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(AbstractModel):
    """memory = encoder(source); logits = decoder(tokens, memory). Make one with `encoder_decoder`, or from parts.

    Args:
        encoder: the stack that reads.
        decoder: the model that writes, with cross-attention in its layers.
        source: embedding of the source; None shares the decoder's.
        shared_tokens: whether a `source` embedding takes its vectors of tokens from the decoder's, so that the sides
            differ in their positions and norms alone (BART).

    Raises:
        ValueError: stacks of different widths; vectors shared by different vocabularies.
    """

    encoder: Stack
    decoder: Model
    source: Embedding | None = None
    shared_tokens: bool = False

    def __post_init__(self):
        if self.shared_tokens and (self.source is None or self.source.vocab != self.decoder.embedding.vocab):
            raise ValueError(
                f"shared_tokens needs a source of the decoder's vocabulary of {self.decoder.embedding.vocab}; got "
                f"source={self.source}"
            )
        widths = self.encoder.d_model, self.decoder.stack.d_model
        if widths[0] != widths[1]:
            raise ValueError(f"encoder and decoder must have the same d_model; got {widths[0]} and {widths[1]}")

    def stacks(self) -> dict[Path, Stack]:
        return {("encoder",): self.encoder, ("decoder", "stack"): self.decoder.stack}

    def with_stacks(self, stacks: Mapping[Path, Stack]) -> "EncoderDecoder":
        decoder = replace(self.decoder, stack=stacks["decoder", "stack"])
        return replace(self, encoder=stacks[("encoder",)], decoder=decoder)

    def per_stack(self, value: Callable[[Path, Stack], Any]) -> dict[str, Any]:
        return {path[0]: value(path, stack) for path, stack in self.stacks().items()}

    def of_stack(self, values: Any, path: Path) -> Any:
        return values[path[0]]

    def drawn_by(self) -> Params:
        """The tree of parameters, each leaf the stack whose recipe says how it is drawn."""
        declared, decoder = self.declaration(), self.decoder.drawn_by()
        by_encoder = jax.tree.map(lambda _: self.encoder, declared, is_leaf=is_spec)
        if self.source is None:
            decoder = {**decoder, "embedding": by_encoder["decoder"]["embedding"]}
        return {**by_encoder, "decoder": decoder}

    def declaration(self) -> Params:
        """The tree of parameters, each leaf a `Declared`: {source, encoder, decoder: {embedding, stack, head}}."""
        return {
            "source": self._declare_source(),
            "encoder": self.encoder.declaration(),
            "decoder": self.decoder.declaration(),
        }

    def _declare_source(self) -> Params:
        specs = {} if self.source is None else self.source.spec(self.encoder.d_model)
        source = {name: spec for name, spec in specs.items() if not (self.shared_tokens and name == "token")}
        return declare(source, prefix="source/")

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Draw the parameters; an embedding that both sides share is the encoder's in this."""
        source_key, encoder_key, decoder_key = jax.random.split(prng_key(key), 3)
        draw = {"default_init": self.encoder.recipe.default_init, "gain": self.encoder.gain, "dtype": dtype}
        decoder = self.decoder.init(decoder_key, dtype)
        if self.source is None or self.shared_tokens:
            decoder["embedding"] = realise(decoder_key, self.decoder.declaration()["embedding"], **draw)
        drawn = {
            "source": realise(source_key, self._declare_source(), **draw),
            "encoder": self.encoder.init(encoder_key, dtype),
            "decoder": decoder,
        }
        return self.project(drawn)

    def multipliers(self) -> Params:
        """The tree of parameters, each leaf the recipe's `Multiplier` for its side."""
        return {
            "source": multipliers(self._declare_source(), self.encoder.recipe, self.encoder.geometry),
            "encoder": self.encoder.multipliers(),
            "decoder": self.decoder.multipliers(),
        }

    def project(self, params: Params) -> Params:
        """The parameters where each side's recipe wants them after each step, see `Recipe.project`."""
        read = {name: params[name] for name in ("source", "encoder")}
        declared = {"source": self._declare_source(), "encoder": self.encoder.declaration()}
        read = self.encoder.recipe.project(read, restrict(declared, read))
        return {**read, "decoder": self.decoder.project(params["decoder"])}

    def calibrate(
        self,
        params: Params,
        source: jax.Array,
        tokens: jax.Array,
        side_inputs: SideInputs | None = None,
        **options: Unpack[BothOptions],
    ) -> Params:
        """Parameters before the first step, which some recipes set from one batch: the encoder's, then the decoder's,
        which reads what the encoder now makes of the source.

        Args:
            params: as drawn by `init`.
            source: (..., S) integers, or vectors (..., S, D) in their place.
            tokens: (..., T) integers, or vectors (..., T, D), of the target shifted right.
            side_inputs: as for `apply`.
            **options: of both stacks, see `Model.hidden`.
        """
        params = self.checked(params)
        side_inputs, reading = self._read_and_written(source, tokens, side_inputs)

        def observe(trial: Params, measure: Measure) -> dict[str, jax.Array]:
            result = self.encode({**params, "encoder": trial}, source, reading, **{**options, "measure": measure})[1]
            return result.measure

        encoder = self.encoder.recipe.calibrate(params["encoder"], self.encoder.declaration(), observe)
        params = {**params, "encoder": encoder}
        memory, _ = self.encode(params, source, reading, **options)
        writing = replace(side_inputs, memory=memory)
        return {**params, "decoder": self.decoder.calibrate(params["decoder"], tokens, writing, **options)}

    def update_statistics(self, params: Params, state: Params) -> Params:
        """Parameters after a step, with the running statistics that `apply` returned as `Result.state`."""
        encoder = self.encoder.update_statistics(params["encoder"], state["encoder"])
        decoder = self.decoder.update_statistics(params["decoder"], state["decoder"])
        return {**params, "encoder": encoder, "decoder": decoder}

    def encode(
        self,
        params: Params,
        source: jax.Array,
        side_inputs: SideInputs | None = None,
        *,
        coefficients: Coefficients | None = None,
        key: jax.Array | None = None,
        **options: Unpack[HiddenOptions],
    ) -> tuple[jax.Array, Result]:
        """Read the source.

        Args:
            params: as drawn by `init`.
            source: (..., S) integers, or vectors (..., S, D) in their place.
            side_inputs: with the positions of the source's tokens; None means 0 .. S-1 without padding.
            coefficients: the recipe's numbers for the encoder; None takes them from its depth.
            key: PRNG key for dropout; None means evaluation.
            **options: of `Model.hidden`.

        Returns:
            The memory (..., S, D), and the encoder's `Result`.

        Raises:
            ValueError: side inputs for a memory, which is made here.
        """
        params = self.checked(params)
        given = [getattr(side_inputs, name, None) for name in ("memory", "memory_position")]
        if any(x is not None for x in given):
            raise ValueError("encode reads the source, whose padding is side_inputs.position; it takes no memory")
        reader = Model(embedding=self.source or self.decoder.embedding, stack=self.encoder)
        embedding = params["decoder"]["embedding"] if self.source is None else params["source"]
        if self.shared_tokens:
            embedding = {**embedding, "token": params["decoder"]["embedding"]["token"]}
        reading = {"embedding": embedding, "stack": params["encoder"]}
        return reader.hidden(reading, source, side_inputs, coefficients=coefficients, key=key, **options)

    def apply(
        self,
        params: Params,
        source: jax.Array,
        tokens: jax.Array,
        side_inputs: SideInputs | None = None,
        *,
        coefficients: dict[str, Coefficients] | None = None,
        key: jax.Array | None = None,
        taps: dict[str, jax.Array] | None = None,
        perturbations: dict[str, Any] | None = None,
        edit: dict[str, Edit | None] | None = None,
        **options: Unpack[BothOptions],
    ) -> tuple[jax.Array, Result]:
        """Logits of the target, given the source.

        Args:
            params: as drawn by `init`.
            source: (..., S) integers, or vectors (..., S, D) in their place.
            tokens: (..., T) integers, or vectors (..., T, D), of the target shifted right.
            side_inputs: `position` of the target's tokens and `memory_position` of the source's; None means neither is
                padded. The memory is made here; one that is there already goes to `decoder.apply`.
            coefficients: {encoder, decoder}: the recipe's numbers; None takes them from the depths.
            key: PRNG key for dropout; None means evaluation.
            taps: {encoder, decoder}, see `Stack.apply`.
            perturbations: {encoder, decoder}, see `Stack.apply`.
            edit: {encoder, decoder}, see `Stack.apply`.
            **options: of both stacks, see `Model.hidden`.

        Returns:
            (..., T, V), at least float32, and a `Result` with the losses of both stacks summed, and state and measures
            as {encoder, decoder}.

        Raises:
            ValueError: a memory, or positions that are not those of the tokens or of the source.
        """
        params = self.checked(params)
        side_inputs, reading = self._read_and_written(source, tokens, side_inputs)
        both = {"coefficients": coefficients, "taps": taps, "perturbations": perturbations, "edit": edit}
        for name, value in both.items():
            if value is not None and (not isinstance(value, Mapping) or value.keys() != {"encoder", "decoder"}):
                got = sorted(value) if isinstance(value, Mapping) else shown(value)
                raise ValueError(f"{name} must be a dict {{encoder: .., decoder: ..}}; got {got}")
        keys = (None, None) if key is None else jax.random.split(prng_key(key))

        def of(side: str) -> Any:
            return {**options, **{name: value[side] for name, value in both.items() if value is not None}}

        memory, read = self.encode(params, source, reading, key=keys[0], **of("encoder"))
        writing = replace(side_inputs, memory=gather_tokens(memory))
        logits, written = self.decoder.apply(params["decoder"], tokens, writing, key=keys[1], **of("decoder"))
        result = Result(
            loss=add_losses(read.loss, written.loss),
            state={"encoder": read.state, "decoder": written.state},
            measure={"encoder": read.measure, "decoder": written.measure},
        )
        return logits, result

    def _read_and_written(
        self, source: jax.Array, tokens: jax.Array, side_inputs: SideInputs | None
    ) -> tuple[SideInputs, SideInputs]:
        """The side inputs of the target, still without a memory, and those of the source.

        Raises:
            ValueError: as for `apply`.
        """
        d_model = self.encoder.d_model
        side_inputs = checked(side_inputs, self.decoder.embedding.shape(tokens, d_model), d_model)
        if side_inputs.memory is not None:
            raise ValueError(
                "the memory is made of the source here: give one that is there already to "
                "model.decoder.apply(params['decoder'], tokens, side_inputs)"
            )
        position = side_inputs.memory_position
        if position is not None:
            embedding = self.source or self.decoder.embedding
            position = checked_positions("memory_position", position, embedding.shape(source, d_model))
        return side_inputs, SideInputs(position=position)


def encoder_decoder(
    *,
    vocab: int = 256,
    source_vocab: int | None = None,
    d_model: int = 256,
    depth: int = 6,
    encoder_depth: int | None = None,
    n_heads: int | None = None,
    recipe: Recipe = PreNorm(),
    position: Position = Sinusoidal(),
    attention: Attention | None = None,
    feed_forward: Sublayer = FeedForward(),
    tied: bool = False,
    dropout: float | None = None,
) -> EncoderDecoder:
    """Describe an encoder-decoder; a decoder layer is self-attention, cross-attention, feed-forward.

    Args:
        vocab: V, of the target.
        source_vocab: of the source, which then has an embedding of its own; None shares the target's.
        d_model: D.
        depth: layers of the decoder.
        encoder_depth: layers of the encoder; None means as many.
        n_heads: H; None takes the attention's, or 4.
        recipe: the depth treatment of both; its constants know both depths.
        position: put where it acts, on both streams or inside both self-attentions.
        attention: for what the other arguments do not say; position and causality are set here.
        feed_forward: the feed-forward sublayer.
        tied: whether the output uses the target embedding's matrix.
        dropout: rate after the embeddings and in every sublayer, while training; None keeps the sublayers' own.

    Raises:
        ValueError: sizes or choices that do not fit together.

    Source: Vaswani et al. 2017, section 3.1, arXiv:1706.03762.
    """
    on_stream, inside = split_position(position)
    if attention is None:
        attention = Attention(n_heads=4 if n_heads is None else n_heads)
    instance("attention", attention, Attention)
    instance("feed_forward", feed_forward, Sublayer)
    if n_heads not in (None, attention.n_heads):
        raise ValueError(f"n_heads={n_heads}, but attention has n_heads={attention.n_heads}; give it once")
    if dropout is not None:
        attention, feed_forward = replace(attention, dropout=dropout), replace(feed_forward, dropout=dropout)
    attention.spec(d_model)
    reading, writing = (
        replace(attention, position=inside.for_attention(causal=causal), causal=causal) for causal in (False, True)
    )
    across = replace(attention, name="cross_attention", cross=True, window=None, chunk=None, position=NoPosition())
    n_read = depth if encoder_depth is None else encoder_depth
    reader = Layer(sublayers=(reading, feed_forward))
    writer = Layer(sublayers=(writing, across, feed_forward))
    sizes = {"d_model": d_model, "recipe": recipe}
    decoder = Stack.of(writer, depth=depth, side="decoder", other_depth=n_read, **sizes)
    embedding = Embedding(vocab=vocab, position=on_stream, dropout=dropout or 0.0)
    return EncoderDecoder(
        encoder=Stack.of(reader, depth=n_read, side="encoder", other_depth=depth, **sizes),
        decoder=Model(embedding=embedding, stack=decoder, head=Head(tied=tied)),
        source=None if source_vocab is None else replace(embedding, vocab=source_vocab),
    )
