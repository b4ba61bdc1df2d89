"""Shapes without computing, and the place where a NaN is born."""

import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax.testing import normal, perturbed
from stackjax.testing.inputs import arguments, drawn
from tests.cases import KINDS, POSITIONS, RECIPES
from tests.helpers import daily

D, T, L = 16, 5, 4
TOKENS = jnp.arange(2 * T).reshape(2, T)


def small(**options):
    model = sj.decoder(vocab=11, d_model=D, depth=L, n_heads=2, feed_forward=sj.FeedForward(d_hidden=24), **options)
    return model, perturbed(model.init(jax.random.key(0)))


@pytest.mark.thorough
def test_shapes_of_every_site():
    model, _ = small()
    table = sj.debug.shapes(model, jax.ShapeDtypeStruct((3, T), jnp.int32), dtype=jnp.bfloat16)
    assert table.header == ("layers", "site", "shape", "dtype")
    assert {row[0] for row in table.rows} == {"0 .. 3"}
    assert [row[1] for row in table.rows] == list(model.stack.sites)
    by_site = {row[1]: row[2:] for row in table.rows}
    assert by_site["attention/heads"] == ("3 x 5 x 2 x 8", "bfloat16")
    assert by_site["attention/weights"] == ("3 x 2 x 5 x 5", "float32")
    assert by_site["feed_forward/stream"] == ("3 x 5 x 16", "bfloat16")


def test_shapes_of_layers_that_differ_and_of_two_stacks():
    layers = [
        sj.Layer(sublayers=(sj.Attention(n_heads=n, causal=False), sj.FeedForward(d_hidden=8))) for n in (2, 4, 4)
    ]
    stack = sj.Stack.of(*layers, depth=3, d_model=8, recipe=sj.recipe.ResiDual())
    heads = [row for row in sj.debug.shapes(stack, normal(2, T, 8)).rows if row[1] == "attention/heads"]
    assert [(row[0], row[2]) for row in heads] == [("0", "2 x 5 x 2 x 4"), ("1 .. 2", "2 x 5 x 4 x 2")]
    both = KINDS["encoder_decoder"](RECIPES["pre_norm"], POSITIONS["rotary"], 2)
    rows = sj.debug.shapes(both, TOKENS[:, :4], TOKENS).rows
    assert {row[0] for row in rows} == {"encoder", "decoder"}
    assert ("decoder", "0 .. 1", "cross_attention/weights", "2 x 2 x 5 x 4", "float32") in rows


@pytest.mark.parametrize(
    "site",
    daily(
        ["attention/stream", "attention/weights", "attention/heads", "feed_forward/output"],
        "attention/weights",
        "feed_forward/output",
    ),
)
def test_the_site_where_a_value_is_born(site):
    model, params = small()
    assert sj.debug.first_not_finite(model, params, TOKENS) is None

    def spoil(layer, value):
        return jnp.where(layer >= 2, value.at[1, 0].set(jnp.inf), value)

    found = sj.debug.first_not_finite(model, params, TOKENS, edit={site: spoil})
    assert (found.layer, found.site, found.nan) == (2, site, 0) and found.inf > 0
    assert str(found) == f"layer 2, {site}: 0 NaN, {found.inf} infinite"


def test_the_parameter_that_is_not_finite():
    model, params = small()
    params["stack"]["segments"]["0"]["0"]["feed_forward"]["down"] = (
        params["stack"]["segments"]["0"]["0"]["feed_forward"]["down"].at[1, 3].set(jnp.nan)
    )
    found = sj.debug.first_not_finite(model, params, TOKENS)
    assert (found.site, found.layer, found.nan) == ("stack/segments/0/0/feed_forward/down", 1, D)


@pytest.mark.thorough
def test_the_end_and_the_backward_pass():
    model, params = small()
    sick = {**params, "head": jax.tree.map(lambda a: a * 3e38, params["head"])}
    found = sj.debug.first_not_finite(model, sick, TOKENS)
    assert (found.site, found.layer) == ("output", None) and found.inf > 0

    def root(layer, value):
        """Finite, and its slope is not, at 0."""
        return value + jnp.sqrt((layer != 1) + value - jax.lax.stop_gradient(value))

    options = {"edit": {"feed_forward/input": root}, "loss": lambda logits: sj.loss.next_token(logits, TOKENS)}
    assert sj.debug.first_not_finite(model, params, TOKENS, loss=options["loss"]) is None
    assert sj.debug.first_not_finite(model, params, TOKENS, edit=options["edit"]) is None
    found = sj.debug.first_not_finite(model, params, TOKENS, **options)
    assert (found.site, found.layer) == ("gradient", 1)


def test_both_stacks_of_an_encoder_decoder():
    model = KINDS["encoder_decoder"](RECIPES["deepnorm"], POSITIONS["rotary"], 2)
    params, inputs = drawn(model, jnp.float32), arguments(model, None, jnp.float32)
    assert sj.debug.first_not_finite(model, params, *inputs) is None
    spoil = {"cross_attention/input": lambda layer, value: jnp.where(layer == 1, jnp.nan, value)}
    found = sj.debug.first_not_finite(model, params, *inputs, edit={"encoder": None, "decoder": spoil})
    assert (found.stack, found.layer, found.site) == ("decoder", 1, "cross_attention/input")
    assert str(found).startswith("decoder, layer 1, cross_attention/input: ")
