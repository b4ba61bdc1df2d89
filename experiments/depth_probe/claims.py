"""Two published contrasts at initialisation, drawn again from arrays of ours, with thresholds stated beforehand.

Gradients of post-norm and pre-norm: Xiong et al. 2020, figure 3, arXiv:2002.04745. Rank collapse without skips: Dong
et al. 2021, figure 2, arXiv:2103.03404.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax import probe

from ..lab import chart
from ..lab.finding import Estimate, Prediction
from ..lab.store import Json

Arrays = dict[str, np.ndarray]
"""Arrays by measure, (seeds, L) or (seeds, L + 1)."""

COLLAPSE_DEPTH, COLLAPSE_TOKENS = 48, 32


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Measures of one recipe at one depth.

    Args:
        random: at initialisation, on random bytes, each as likely as any other.
        text: at initialisation, on text.
        trained: on text after the steps, of the first seed; None without any.
    """

    random: Arrays
    text: Arrays
    trained: Arrays | None


def collapse(*, seeds: int, d_model: int, n_heads: int) -> Arrays:
    """Distance of the tokens from all alike after each layer, in float64: (seeds, L) by kind of stack."""
    attention, forward = sj.Attention(n_heads=n_heads), sj.FeedForward()
    kinds = {
        "attention alone": ((attention,), sj.recipe.WithoutResidual()),
        "attention and feed-forward, no skip": ((attention, forward), sj.recipe.WithoutResidual()),
        "pre-norm": ((attention, forward), sj.recipe.PreNorm()),
        "post-norm": ((attention, forward), sj.recipe.PostNorm()),
    }
    distances = {}
    with jax.enable_x64(True):
        for kind, (sublayers, rule) in kinds.items():
            stack = sj.Stack.of(sj.Layer(sublayers=sublayers), depth=COLLAPSE_DEPTH, d_model=d_model, recipe=rule)

            def one(seed: jax.Array, stack: sj.Stack = stack) -> jax.Array:
                init, tokens = jax.random.split(jax.random.key(seed))
                x = jax.random.normal(tokens, (2, COLLAPSE_TOKENS, d_model), jnp.float64)
                params = stack.init(init, jnp.float64)
                return stack.apply(params, x, measure=lambda t: {"r": probe.rank_residual(t.after)})[1].measure["r"]

            distances[kind] = np.asarray(jax.jit(lambda each, one=one: jax.lax.map(one, each))(jnp.arange(seeds)))
    return distances


def predictions(looked: Mapping[tuple[str, int], Looked], collapsed: Arrays) -> list[Prediction]:
    """Stated beforehand: the theory's slopes, and thresholds from a pilot of the same size."""
    stated: list[Prediction] = []

    def predict(claim: str, values: Any, relation: Any, threshold: float) -> None:
        stated.append(Prediction(claim=claim, found=Estimate.of(values), relation=relation, threshold=threshold))

    depths = sorted({depth for _, depth in looked})
    recipes = {name for name, _ in looked}
    down = {key: seen.random["grad_norm/down"] for key, seen in looked.items()}

    def slope(name: str) -> np.ndarray:
        last = np.log([down[name, depth][:, -1] for depth in depths])
        return np.polyfit(np.log(depths), last, 1)[0]

    deepest = depths[-1]
    for name, low, high in (
        ("post_norm", -0.1, 0.4),
        ("pre_norm", -0.6, -0.2),
        ("deepnorm", -0.55, -0.45),
        ("keel", -1.05, -0.95),
    ):
        if name in recipes and len(depths) > 1:
            claim = f"{name}: slope of the last layer's gradient in log depth"
            predict(claim, slope(name), "above", low)
            predict(claim, slope(name), "below", high)
    if {"post_norm", "pre_norm"} <= recipes:
        ratio = down["post_norm", deepest][:, -1] / down["pre_norm", deepest][:, -1]
        predict(f"last layer's gradient, post-norm over pre-norm, {deepest} layers", ratio, "above", 4.0)
    if "deepnorm" in recipes:
        ratio = np.abs(down["deepnorm", deepest][:, 0] / down["deepnorm", deepest][:, -1] - 1)
        predict(
            f"deepnorm: first layer's gradient over the last's, away from 1, {deepest} layers", ratio, "below", 0.05
        )
    ranks = {kind: np.log10(np.maximum(values, 1e-30)) for kind, values in collapsed.items()}
    middle = COLLAPSE_DEPTH // 2 - 1
    for kind in ("attention alone", "attention and feed-forward, no skip"):
        predict(f"{kind}: log10 of the rank half-way", ranks[kind][:, middle], "below", -5.0)
    predict("pre-norm: log10 of the rank at the end", ranks["pre-norm"][:, -1], "above", round(float(np.log10(0.3)), 3))
    predict("post-norm: log10 of the rank at the end", ranks["post-norm"][:, -1], "below", -3.0)
    return stated


def gradients(looked: Mapping[tuple[str, int], Looked]) -> alt.TopLevelMixin:
    """Gradient of the feed-forward's second matrix: by layer at the greatest depth, and the last one against depth."""
    deepest = max(depth for _, depth in looked)
    names = list(dict.fromkeys(name for name, _ in looked))
    layers, last = [], []
    for (name, depth), seen in looked.items():
        norms = seen.random["grad_norm/down"].mean(0)
        if depth == deepest:
            layers += [{"recipe": name, "x": i + 1, "y": float(y)} for i, y in enumerate(norms) if y > 0]
        last += [{"recipe": name, "x": depth, "y": float(norms[-1])}] if norms[-1] > 0 else []
    colors = [chart.PALETTE[i % len(chart.PALETTE)] for i in range(len(names))]
    color = alt.Color("recipe:N", title=None, scale=alt.Scale(domain=names, range=colors))

    def panel(rows: list[Json], x: alt.X, title: str) -> Any:
        shown = alt.Axis(format=".0e", values=chart.decades(row["y"] for row in rows))
        y = alt.Y("y:Q", title="gradient norm of W_2", scale=alt.Scale(type="log", nice=False), axis=shown)
        line = (
            alt.Chart(alt.Data(values=rows)).mark_line(point=alt.OverlayMarkDef(size=18)).encode(x=x, y=y, color=color)
        )
        return line.properties(width=340, height=260, title=title)

    ticks = sorted({depth for _, depth in looked})
    log = alt.X("x:Q", title="depth (layers)", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(values=ticks))
    return alt.hconcat(
        panel(layers, alt.X("x:Q", title="layer"), f"At initialisation, {deepest} layers"),
        panel(last, log, "The last layer, against depth"),
    )


def ranks(collapsed: Arrays) -> alt.TopLevelMixin:
    """Chart of the tokens' distance from all alike, against the layer."""
    rows = [
        {"kind": kind, "layer": i + 1, "value": float(y)}
        for kind, values in collapsed.items()
        for i, y in enumerate(np.exp(np.log(np.maximum(values, 1e-30)).mean(0)))
    ]
    y = alt.Y("value:Q", title="|X - mean of tokens| / |X|", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e"))
    color = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=list(collapsed), range=list(chart.PALETTE[: len(collapsed)])),
        legend=alt.Legend(labelLimit=300),
    )
    line = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=2)
    return line.encode(x=alt.X("layer:Q"), y=y, color=color).properties(width=520, height=280)
