"""All checks that apply to a recipe, to a position encoding and to a sublayer."""

from typing import Any

from stackjax.attention import Attention
from stackjax.embedding import Embedding
from stackjax.feed_forward import FeedForward
from stackjax.layer import Layer
from stackjax.model import Model, decoder
from stackjax.position.base import ATTENTION_HOOKS, Position
from stackjax.recipe.base import Recipe, innermost
from stackjax.recipe.placement import PreNorm
from stackjax.stack import Stack
from stackjax.sublayer import SideInputs, Sublayer
from stackjax.testing.attention_position import check_cached_attention, check_packing
from stackjax.testing.causality import check_causality
from stackjax.testing.decoding import check_decoding
from stackjax.testing.dtype import check_dtype
from stackjax.testing.equivalence import check_scan, check_vmap
from stackjax.testing.inputs import N_BATCH, in_order, normal
from stackjax.testing.packing import check_documents, check_losses
from stackjax.testing.prefix import check_prefix
from stackjax.testing.statistic import check_statistics, in_evaluation, with_batch_norm
from stackjax.testing.training import check_factors, check_project

VOCAB = 11


def small_decoder(**options: Any) -> Model:
    """A decoder in which recipes and positions are tried; options are those of `stackjax.decoder`."""
    sizes = {"vocab": VOCAB, "d_model": 16, "depth": 2, "n_heads": 2, "feed_forward": FeedForward(d_hidden=24)}
    return decoder(**{**sizes, **options})


def model_around(sublayer: Sublayer, *, d_model: int = 16, recipe: Recipe = PreNorm()) -> Model:
    """A model in which a sublayer is tried, beside attention or, if it attends itself, a feed-forward network.

    Args:
        sublayer: what is tried.
        d_model: D.
        recipe: the depth treatment.
    """
    beside = FeedForward(name="beside", d_hidden=24) if sublayer.attends else Attention(name="beside", n_heads=2)
    stack = Stack.of(Layer(sublayers=(beside, sublayer)), depth=2, d_model=d_model, recipe=recipe)
    return Model(embedding=Embedding(vocab=VOCAB), stack=stack)


def check_recipe(recipe: Recipe, *, depth: int = 6) -> None:
    """Check a recipe in a small decoder with rotary positions.

    Args:
        recipe: yours. Batch norms in its forms train where their statistics are checked; all else is checked with the
            running ones.
        depth: L, 2 or more; enough for all that changes with depth to be there.

    Raises:
        AssertionError: what does not hold, for what, by how much; see `stackjax.testing`.
        ValueError: what the library refuses.
    """
    model = small_decoder(recipe=recipe, depth=depth)
    evaluated = in_evaluation(model)
    check_factors(evaluated)
    check_project(evaluated)
    check_scan(evaluated)
    check_dtype(evaluated)
    check_vmap(evaluated)
    check_prefix(recipe, depth=depth)
    for normed in (model, with_batch_norm(model)):
        check_statistics(normed)
    check_causality(evaluated)
    check_decoding(evaluated)


def check_position(position: Position) -> None:
    """Check a position encoding in a small pre-norm decoder, and by itself inside attention where it acts there.

    Args:
        position: yours. The tokens have an index and a path from the root of a tree.

    Raises:
        AssertionError: what does not hold, for what, by how much; see `stackjax.testing`.
        ValueError: what the library refuses.
    """
    subject = repr(position)
    model = small_decoder(position=position)
    check_scan(model, in_order(), subject=subject)
    check_dtype(model, subject=subject)
    check_causality(model, subject=subject)
    check_decoding(model, paths=True, left=False, subject=subject)
    if position.acts_on(ATTENTION_HOOKS):
        check_cached_attention(position)
        check_packing(position)


def check_sublayer(sublayer: Sublayer, *, causal: bool = True, d_model: int = 16, recipe: Recipe = PreNorm()) -> None:
    """Check a sublayer in small layers: beside attention or, if it attends itself, beside a feed-forward network.

    Args:
        sublayer: yours. One that reads a memory is given one of 4 tokens.
        causal: whether it belongs in a decoder; False leaves out causality and decoding.
        d_model: D.
        recipe: the depth treatment.

    Raises:
        AssertionError: what does not hold, for what, by how much; see `stackjax.testing`.
        ValueError: what the library refuses.
    """
    model, subject = model_around(sublayer, d_model=d_model, recipe=recipe), repr(sublayer)
    side_inputs = SideInputs(memory=normal(N_BATCH, 4, d_model, key=5) if sublayer.reads_memory else None)
    check_scan(model, side_inputs, subject=subject)
    check_dtype(model, side_inputs, subject=subject)
    check_losses(model, side_inputs, subject=subject)
    check_statistics(model, side_inputs, subject=subject)
    if any(one.attends for one in innermost(sublayer)):
        check_documents(model, subject=subject)
    if causal:
        check_causality(model, side_inputs, sees_all=False, subject=subject)
        check_decoding(model, side_inputs, subject=subject)
