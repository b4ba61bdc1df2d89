"""Depth: a shallow stack is the beginning of a deep one."""

from typing import Any

import jax

from stackjax.attention import Attention
from stackjax.convert import unstack
from stackjax.feed_forward import FeedForward
from stackjax.layer import Layer
from stackjax.parameter import is_spec
from stackjax.recipe.base import Recipe
from stackjax.stack import Stack
from stackjax.testing.compare import check_equal, promise


def check_prefix(recipe: Recipe, *, depth: int = 6) -> None:
    """The matrices of a stack's layers are, up to the recipe's gains, those of the first layers of a deeper one.

    Args:
        recipe: any.
        depth: of the deeper stack; the shallow one has half as many layers, rounded down.

    Raises:
        AssertionError: matrices that differ.
    """
    layer = Layer(sublayers=(Attention(n_heads=2), FeedForward(d_hidden=24)))

    def matrices(depth: int) -> list[Any]:
        """The matrices of each layer, divided by their gains."""
        stack = Stack.of(layer, depth=depth, d_model=16, recipe=recipe)

        def plain(declared: Any, value: jax.Array) -> jax.Array:
            return value / declared.spread(stack.gain(declared.spec.role)) if declared.spec.is_matrix else value

        params = jax.tree.map(plain, stack.declaration(), stack.init(jax.random.key(0)), is_leaf=is_spec)
        layers = [one for segment in stack.segments for one in segment.each]
        specs = [jax.tree.leaves(one.spec(stack.d_model, depth), is_leaf=is_spec) for one in layers]
        return [
            [leaf for leaf, spec in zip(jax.tree.leaves(tree), of_layer, strict=True) if spec.is_matrix]
            for tree, of_layer in zip(unstack(stack, params), specs, strict=True)
        ]

    half = depth // 2
    with (
        jax.enable_x64(True),
        promise(f"{recipe!r}", f"the first {half} of {depth} layers begin as a stack of {half} does"),
    ):
        check_equal(matrices(depth)[:half], matrices(half), 1e-6)
