"""The page of an X-ray: sentences, charts and a table."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np

from ..lab import chart, environment, page
from ..lab.profile_chart import LOGARITHMIC, TITLES
from ..lab.store import Json
from .reading import Reading
from .subject import Subject

KINDS = {
    "stream_rms": TITLES["stream_rms"] + " behind the layer",
    "branch_ratio": "branch / stream, RMS",
    "cosine": TITLES["cosine"],
    "token_similarity": TITLES["token_similarity"],
    "attention_entropy": TITLES["attention_entropy"],
    "max_logit": TITLES["max_logit"],
    "router_entropy": "router entropy (nats)",
    "max_load": "largest expert's load, 1 if even",
}
"""Measures that are drawn."""
COLUMNS, WIDTH, HEIGHT = 3, 258, 140
MOST_TOKENS, MOST_ROWS = 14, 26
NARROW = 5
"""Largest over smallest value that a linear axis still shows."""


def html(subject: Subject, reading: Reading, command: str) -> str:
    """The whole page."""
    specs: dict[str, Json] = {}
    sides = list(subject.stacks)
    body = (
        "<h2>What each layer does</h2>"
        + page.figure({side: (f"layers_{side}", layers(reading, side)) for side in sides}, LAYERS, specs)
        + "<h2>What each layer is worth</h2>"
        + page.figure({side: (f"without_{side}", worth(reading, side)) for side in sides}, WORTH, specs)
        + "<h2>What the stream says already</h2>"
        + page.figure({"": ("lens", lens(reading))}, LENS, specs)
        + page.figure({"": ("guesses", guesses(subject, reading))}, GUESSES, specs)
        + "<h2>All numbers</h2>"
        + "".join(_table(reading, side) for side in sides)
        + "<h2>Environment</h2>"
        + page.environment({"device": environment.device(), **environment.versions()}, [command])
    )
    head = headline(subject, reading)
    title = f"X-ray of {subject.name}"
    return page.document(title=title, under=_under(subject), headline=head, body=body, specs=specs)


LAYERS = (
    "Means over all tokens. The stream is what goes from layer to layer; a branch is what attention or feed-forward "
    "adds to it. A cosine near 1 says that the layer hardly turns the stream; cosines between tokens that go to 1 say "
    "that the tokens become alike; entropy near 0 says that attention looks at single tokens."
)
WORTH = (
    "How much the loss rises when one layer is left out and all others stay as they are. A layer at zero could go; one "
    "below zero does harm on this text."
)
LENS = (
    "The model's own end (final norm and head) reads the stream after each layer: the logit lens. Left: the loss of "
    "that reading; right: the share of places whose likeliest token is the final one already."
)
GUESSES = (
    "The likeliest token by that reading, on the last places of the first window: dark where the model is sure of it, "
    "framed where it is right. The bottom row reads the embedding alone."
)


def _under(subject: Subject) -> str:
    stack = list(subject.stacks.values())[-1]
    depth = " + ".join(str(each.depth) for each in subject.stacks.values())
    n, t = len(subject.targets), sum(tokens.shape[1] for tokens in subject.inputs)
    return (
        f"{subject.model.n_params:,} parameters, L = {depth}, D = {stack.d_model} · {n} windows of {t} "
        f"{subject.vocabulary.name} of {subject.text} · {subject.task}"
    )


def headline(subject: Subject, reading: Reading) -> list[str]:
    """Headline of the page, in sentences."""
    vocab = subject.decoder.embedding.vocab
    lines = [
        f"The loss is {reading.whole.loss:.3f} nats per token; a blind guess among {vocab:,} costs {np.log(vocab):.3f}."
    ]
    for side, without in reading.without.items():
        change, where = without - reading.whole.loss, f" in the {side}" if side else ""
        change = np.where(np.isfinite(change), change, np.inf)
        most, least = int(np.argmax(change)), int(np.argmin(change))
        lines.append(
            f"Layer {most} is worth most{where}: without it the loss {_moved(change[most])}. Layer {least} is worth "
            f"least: without it the loss {_moved(change[least])}."
        )
        rms = reading.measure[side]["stream_rms"]
        lines.append(
            f"The stream's RMS{where} is {rms[0]:.3g} behind the first layer and {rms[-1]:.3g} behind the last."
        )
    settled = int(np.argmax(reading.settled > 0.5))
    depth = len(reading.lens) - 1
    return [
        *lines,
        f"After {settled} of {depth} layers, more than half of the places have their final likeliest token.",
    ]


def _moved(change: float) -> str:
    if not np.isfinite(change):
        return "is no number"
    return f"rises by {change:.3f}" if change >= 0 else f"falls by {-change:.3f}"


def layers(reading: Reading, side: str) -> alt.TopLevelMixin:
    """A panel for each measure against the layer, a line for each sublayer."""
    rows = _rows(reading.measure[side])
    sublayers = list(dict.fromkeys(row["sublayer"] for row in rows if row["sublayer"]))
    domain = ["", *sublayers]
    color = alt.Color(
        "sublayer:N",
        title=None,
        scale=alt.Scale(domain=domain, range=[chart.PALETTE[i % len(chart.PALETTE)] for i in range(len(domain))]),
        legend=alt.Legend(values=sublayers),
    )
    panels = []
    for kind, title in KINDS.items():
        values = [row["value"] for row in rows if row["kind"] == kind]
        if not values:
            continue
        scale, axis = alt.Scale(zero=False), alt.Axis(tickCount=4, format="~g")
        if kind in LOGARITHMIC and min(values) > 0 and max(values) / min(values) > NARROW:
            scale = alt.Scale(type="log", nice=False, padding=10)
            axis = alt.Axis(values=chart.decades(values), format="~g", labelOverlap=True)
        panel_rows = [row for row in rows if row["kind"] == kind]
        panels.append(
            alt.Chart(alt.Data(values=panel_rows), title=alt.Title(title, fontWeight=500, fontSize=12))
            .mark_line(point=alt.OverlayMarkDef(size=22), strokeWidth=1.8)
            .encode(
                x=alt.X("layer:Q", title="layer", axis=_ticks(panel_rows)),
                y=alt.Y("value:Q", title=None, scale=scale, axis=axis),
                color=color,
                tooltip=["layer:Q", "sublayer:N", alt.Tooltip("value:Q", format=".4g")],
            )
            .properties(width=WIDTH, height=HEIGHT)
        )
    return alt.concat(*panels, columns=COLUMNS, spacing=24)


def worth(reading: Reading, side: str) -> alt.TopLevelMixin:
    """Chart of how much the loss rises without each layer."""
    change = reading.without[side] - reading.whole.loss
    rows = [
        {"layer": i, "change": _number(rise), "loss": _number(loss)}
        for i, (rise, loss) in enumerate(zip(change, reading.without[side], strict=True))
    ]
    base = alt.Chart(alt.Data(values=rows))
    bars = base.mark_bar(color=chart.PALETTE[0], width={"band": 0.7}).encode(
        x=alt.X("layer:O", title="layer left out", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("change:Q", title="rise of the loss (nats)"),
        tooltip=["layer:O", alt.Tooltip("change:Q", format="+.4f"), alt.Tooltip("loss:Q", format=".4f")],
    )
    return bars.properties(width=880, height=220)


def lens(reading: Reading) -> alt.TopLevelMixin:
    """Loss of the logit lens, and how many tokens are settled, after each layer."""
    rows = [
        {"layers": i, "loss": _number(guess.loss), "settled": float(settled)}
        for i, (guess, settled) in enumerate(zip(reading.lens, reading.settled, strict=True))
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("layers:Q", title="layers run", axis=_ticks(rows, "layers")))
    line = {"point": alt.OverlayMarkDef(size=26), "strokeWidth": 2}
    tip = ["layers:Q", alt.Tooltip("loss:Q", format=".4f"), alt.Tooltip("settled:Q", format=".1%")]
    left = base.mark_line(color=chart.PALETTE[0], **line).encode(
        y=alt.Y("loss:Q", title="loss (nats per token)", scale=alt.Scale(zero=False)), tooltip=tip
    )
    right = base.mark_line(color=chart.PALETTE[1], **line).encode(
        y=alt.Y("settled:Q", title="places with their final guess", axis=alt.Axis(format="%")), tooltip=tip
    )
    return alt.hconcat(*(each.properties(width=400, height=220) for each in (left, right)), spacing=36)


def guesses(subject: Subject, reading: Reading) -> alt.TopLevelMixin:
    """The likeliest token on the last tokens of the first window after each layer, coloured by its probability."""
    asked = np.flatnonzero(subject.targets[0] >= 0)[-MOST_TOKENS:]
    spell, read = subject.vocabulary.spell, subject.inputs[-1][0]
    rows = []
    for layers in _spread(len(reading.lens), MOST_ROWS):
        lens = reading.lens[layers]
        for i, place in enumerate(asked):
            guess, target = int(lens.top[0, place]), int(subject.targets[0, place])
            rows.append(
                {
                    "layers": layers,
                    "place": i,
                    "read": spell(int(read[place])),
                    "guess": _short(spell(guess)),
                    "target": spell(target),
                    "probability": _number(lens.probability[0, place]),
                    "right": guess == target,
                }
            )
    words = {i: _short(spell(int(read[place]))) for i, place in enumerate(asked)}
    label = f"{json.dumps([words[i] for i in range(len(asked))])}[datum.value]"
    x = alt.X("place:O", title="token read", axis=alt.Axis(labelAngle=0, labelExpr=label))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=x,
        y=alt.Y("layers:O", title="layers run", sort="descending"),
        tooltip=["layers:O", "read:N", "guess:N", "target:N", alt.Tooltip("probability:Q", format=".3f")],
    )
    scale = alt.Scale(scheme="blues", domain=[0, 1])
    cells = base.mark_rect(strokeWidth=1.5).encode(
        color=alt.Color("probability:Q", title="probability of the guess", scale=scale),
        stroke=alt.condition("datum.right", alt.value(chart.PALETTE[1]), alt.value(None)),
    )
    text = base.mark_text(fontSize=11).encode(
        text="guess:N",
        color=alt.condition("datum.probability > 0.5", alt.value("white"), alt.value("#22221f")),
    )
    return (cells + text).properties(width=alt.Step(60), height=alt.Step(20))


def _rows(measure: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row for each layer of each measure that is a number there."""
    rows = []
    for name, values in measure.items():
        kind, _, sublayer = name.partition("/")
        for layer, value in enumerate(values.tolist()):
            if np.isfinite(value):
                rows.append({"kind": kind, "sublayer": sublayer.replace("_", "-"), "layer": layer, "value": value})
    return rows


def _table(reading: Reading, side: str) -> str:
    """All numbers of one side, a row for each layer."""
    measure = {"loss without": reading.without[side], **reading.measure[side]}
    rows = [
        {"layer": i, **{name: _number(values[i]) for name, values in measure.items()}}
        for i in range(len(reading.without[side]))
    ]
    heads = {name: (name.replace("_", " ").replace("/", ", "), ".4g", 1.0) for name in measure}
    return page.table(rows, {"layer": (f"{side} layer".strip(), "d", 1), **heads})


def _number(value: float) -> float | None:
    """A number that JSON knows, or none."""
    return float(value) if np.isfinite(value) else None


def _ticks(rows: Sequence[dict[str, Any]], field: str = "layer") -> alt.Axis:
    """Ticks at whole layers, about eight of them."""
    n = 1 + max(row[field] for row in rows)
    return alt.Axis(values=list(range(0, n, -(-n // 8))), format="d", grid=False)


def _spread(n: int, most: int) -> list[int]:
    """Choose at most `most` of 0 .. n-1, evenly, the ends among them."""
    places: Iterable[float] = np.linspace(0, n - 1, min(n, most)).round().tolist()
    return [int(place) for place in places]


def _short(word: str) -> str:
    return word if len(word) <= 8 else word[:7] + "…"
