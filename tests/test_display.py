"""What descriptions print."""

import dataclasses
import html.parser

import jax
import numpy as np
import pytest

import stackjax as sj
from stackjax import display

FULL = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.FeedForward()))
LOCAL = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=8), sj.FeedForward(activation=sj.feed_forward.silu)))


def stack(*layers, depth, **options):
    return sj.Stack.of(*layers, depth=depth, d_model=8, recipe=sj.recipe.PreNorm(), **options)


@pytest.mark.parametrize(
    ("description", "text"),
    [
        (sj.LayerNorm(), "LayerNorm()"),
        (sj.NoNorm(), "NoNorm()"),
        (sj.position.NoPosition(), "NoPosition()"),
        (sj.FeedForward(activation=sj.feed_forward.relu), "FeedForward(activation=relu)"),
        (
            sj.Attention(n_heads=4, position=sj.position.Rotary(base=500.0), qk_norm=sj.RMSNorm()),
            "Attention(n_heads=4, position=Rotary(base=500.0), qk_norm=RMSNorm())",
        ),
        (sj.recipe.PreNorm(default_init=sj.parameter.Normal(0.02)), "PreNorm(default_init=Normal(std=0.02))"),
        (sj.recipe.PostNorm(residual=sj.residual.Post(norm=sj.RMSNorm())), "PostNorm(residual=Post(norm=RMSNorm()))"),
        (sj.Embedding(vocab=7), "Embedding(vocab=7)"),
    ],
)
def test_descriptions_show_what_is_not_at_its_default(description, text):
    assert repr(description) == text


def test_descriptions_of_your_own_do_too():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(sj.RMSNorm):
        power: float = 2.0

    assert repr(Mine(power=3.0)) == "Mine(power=3.0)"

    class Loud(sj.RMSNorm):
        def __repr__(self):
            return "LOUD"

    assert repr(sj.residual.Pre(norm=Loud())) == "Pre(norm=LOUD)"


def test_a_stack_prints_a_line_for_each_run_of_equal_layers():
    assert repr(stack(LOCAL, LOCAL, FULL, depth=8)).splitlines() == [
        "Stack: 8 layers of width 8, 6,416 parameters, PreNorm()",
        "  2 x",
        "    2 x Attention(n_heads=2, window=8) -> FeedForward(activation=silu)",
        "    1 x Attention(n_heads=2) -> FeedForward()",
        "  2 x Attention(n_heads=2, window=8) -> FeedForward(activation=silu)",
    ]
    looped = stack(FULL, depth=4, looped=True)
    assert repr(looped.segments[0]) == "4 x Attention(n_heads=2) -> FeedForward() sharing one copy of the parameters"
    assert "0 x Attention" in repr(stack(FULL, depth=0))


def test_a_model_prints_its_parts():
    lines = repr(sj.decoder(vocab=7, d_model=8, depth=100, n_heads=2)).splitlines()
    assert lines[0].startswith("Model: ") and lines[0].endswith(" parameters")
    assert lines[1] == "  Embedding(vocab=7)"
    assert lines[2].startswith("  Stack: 100 layers of width 8") and lines[3].startswith("    100 x Attention(")
    assert lines[4:] == ["  Head()"]


@pytest.mark.thorough
def test_thousands_of_layers_do_not_print_thousands_of_lines():
    different = [sj.Layer(sublayers=(sj.FeedForward(d_hidden=width),)) for width in range(1, 1001)]
    for deep in (stack(*different, depth=1000), stack(*different, depth=2000), stack(FULL, depth=5000)):
        assert len(repr(deep).splitlines()) < 15
        assert len(deep._repr_html_()) < 20_000


def test_the_table_of_parameters():
    model = sj.decoder(vocab=7, d_model=8, depth=3, n_heads=2, recipe=sj.recipe.CompleteP(base_width=4))
    params = model.init(jax.random.key(0))
    table = display.table(model, params)
    rows = {(row[0], row[3]): dict(zip(table.header, row, strict=True)) for row in table.rows}
    total = sum(int(row["parameters"].replace(",", "")) for row in rows.values())
    assert total == model.n_params
    query = rows["query", "xavier"]
    assert (query["shapes"], query["learning rate x"], query["weight decay x"]) == ("3x8x8", "0.5", "2")
    assert query["std"] == f"{np.std(params['stack']['segments']['0']['0']['attention']['query']):.3g}"
    assert rows["embed", "1.414 Normal(std=0.3536)"]["epsilon x"] == "0.5"
    assert "std" not in display.table(model.stack).header


def test_factors_by_layer_show_their_range():
    assert display.number(np.array([0.25, 1.0, 0.5])) == "0.25 .. 1"
    assert display.number(2.0) == "2" and display.number(np.ones(3)) == "1" and display.number(np.ones(0)) == ""


def test_html_is_well_formed_and_needs_no_network():
    class Tags(html.parser.HTMLParser):
        depth = 0

        def handle_starttag(self, tag, attrs):
            assert not attrs
            self.depth += 1

        def handle_endtag(self, tag):
            self.depth -= 1

    text = sj.decoder(vocab=7, d_model=8, depth=3, n_heads=2)._repr_html_()
    parser = Tags()
    parser.feed(text)
    assert parser.depth == 0 and "-&gt;" in text and "http" not in text


def test_every_parameter_beside_the_description():
    layers = (LOCAL, LOCAL, FULL)
    model = dataclasses.replace(sj.decoder(vocab=7, d_model=8, depth=1, n_heads=2), stack=stack(*layers, depth=7))
    params = model.init(jax.random.key(0))
    stored = params["stack"]["segments"]["0"]["0"]["attention"]
    stored["query"] = stored["query"].at[1].multiply(3.0)
    shown = display.parameters(model, params)
    assert shown.title == repr(model) and repr(shown).startswith(repr(model))
    rows = {row[0]: dict(zip(shown.header, row, strict=True)) for row in shown.rows}
    assert sum(int(row["size"].replace(",", "")) for row in rows.values()) == model.n_params
    query = rows["stack/segments/0/0/attention/query"]
    low, high = (f"{np.std(stored['query'][layer]):.4g}" for layer in (0, 1))
    assert (query["role"], query["layers"], query["shape"], query["size"]) == ("query", "0, 3", "8 x 8", "128")
    assert query["std"] == f"{low} .. {high}" and query["std by layer"] == "▃█"
    assert rows["head/unembed"]["layers"] == rows["head/unembed"]["std by layer"] == ""
    assert "PreNorm()" in shown._repr_html_() and "-&gt;" in shown._repr_html_() and "Array" not in repr(shown)


def test_spread_of_many_layers_fits_in_a_line():
    many = display.bars(np.linspace(0, 1, 1000))
    assert len(many) == display.MOST_BARS and list(many) == sorted(many) and set(many) == set(display.BARS)
    assert display.bars(np.zeros(3)) == "▁▁▁" and display.bars(np.zeros(0)) == ""
    assert display.bars(np.array([1.0, np.nan, 0.5])) == "█?▅"
    assert display.shown_layers((0, 1, 2, 3)) == "0 .. 3" and display.shown_layers((1, 4, 7)) == "1 .. 7 by 3"
    assert display.shown_layers((0, 1, 3)) == "0, 1, 3" and display.shown_layers(()) == ""
    half = stack(FULL, depth=3)
    drawn = half.init(jax.random.key(0), np.float16)
    assert all("?" not in row[-1] for row in display.parameters(half, drawn).rows)
