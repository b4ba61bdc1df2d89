"""A skip alone does not let a hundred layers be stacked."""

from collections.abc import Callable
from dataclasses import dataclass

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.parameter import FanIn, Init
from stackjax.recipe.base import Recipe

from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, plain, seeds

GROWTH = 3**0.5
"""Factor of a layer on the stream: attention, whose tokens grow alike, doubles its square, ReLU adds half."""
SMALL = 8.0


@dataclass(frozen=True, kw_only=True)
class LeCunSkip(sj.recipe.PlainResidual):
    """x + f(x), all matrices of variance 1 / fan-in, for which the growth is known."""

    default_init: Init = FanIn()


RECIPES: dict[str, Recipe] = {
    "skip alone": LeCunSkip(),
    "skip and norm (pre-norm)": sj.recipe.PreNorm(),
    "skip and gate (ReZero)": sj.recipe.ReZero(),
    "skip and small init (1/sqrt(2L))": sj.recipe.PlainScaledInit(),
}
BARE, NORMED, GATED, SCALED = RECIPES


def run(*, recipe: str, depth: int, d_model: int, n_heads: int, context: int, batch: int, seeds: list[int]) -> Json:
    """Size of the stream behind each layer over its size at the bottom, and gradients likewise over the top's."""
    sublayers = (sj.Attention(n_heads=n_heads), sj.FeedForward(activation=sj.feed_forward.relu))
    stack = sj.Stack.of(sj.Layer(sublayers=sublayers), depth=depth, d_model=d_model, recipe=RECIPES[recipe])

    @jax.jit
    def look(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        init, data, reading = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(data, (batch, context, d_model))
        params = stack.init(init)

        def read(taps: jax.Array) -> tuple[jax.Array, jax.Array]:
            y, result = stack.apply(
                params, x, taps=taps, measure=lambda trace: {"rms": sj.probe.rms(trace.after)}, remat="layer"
            )
            return jnp.sum(y / sj.probe.rms(y) * jax.random.normal(reading, y.shape)), result.measure["rms"]

        squares, sizes = jax.grad(read, has_aux=True)(jnp.zeros(depth + 1))
        return jnp.concatenate((sj.probe.rms(x)[None], sizes)), jnp.sqrt(squares)

    seen = [jax.device_get(look(jnp.asarray(seed))) for seed in seeds]
    sizes, gradients = (np.array([pair[i] for pair in seen], np.float64) for i in (0, 1))
    return {"size": plain(sizes / sizes[:, :1]), "gradient": plain(gradients / gradients[:, -1:])}


def units(quick: bool) -> list[Unit]:
    """A unit for each recipe."""
    size = {"depth": 48, "d_model": 128, "n_heads": 4, "context": 32, "batch": 2, "seeds": list(seeds(5))}
    if quick:
        size |= {"depth": 4, "d_model": 16, "n_heads": 2, "context": 4, "seeds": list(seeds(2))}
    return [Unit(name=name, run=run, setting={**size, "recipe": name}) for name in RECIPES]


def growth(rows: Rows, unit: str) -> np.ndarray:
    """Factor of the stream a layer, one a seed."""
    size = np.array(rows[unit]["size"])
    return size[:, -1] ** (1 / (size.shape[1] - 1))


def check(about: About, claim: str, unit: str, relation: Relation, threshold: float, values: Callable) -> Check:
    """A check that reads one unit."""
    return Check(
        claim=claim,
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(unit,),
        values=lambda r: values(r, unit),
    )


def end(rows: Rows, unit: str) -> np.ndarray:
    """Size at the top over that at the bottom."""
    return np.array(rows[unit]["size"])[:, -1]


def gradient_log(rows: Rows, unit: str) -> np.ndarray:
    """log10 of the gradient at the bottom over that at the top."""
    return np.log10(np.array(rows[unit]["gradient"], float)[:, 0])


CHECKS = (
    check("correction", "skip alone: factor of the stream a layer", BARE, "above", round(0.95 * GROWTH, 3), growth),
    check("correction", "skip alone: factor of the stream a layer", BARE, "below", round(1.05 * GROWTH, 3), growth),
    check("claim", f"{NORMED}: log10 of gradient, bottom over top", NORMED, "above", -1.5, gradient_log),
    check("claim", f"{NORMED}: log10 of gradient, bottom over top", NORMED, "below", 1.5, gradient_log),
    check("control", f"{GATED}: stream at the top over the bottom", GATED, "below", SMALL, end),
    check("control", f"{SCALED}: stream at the top over the bottom", SCALED, "below", SMALL, end),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Size of the stream at birth behind each layer, a line for each of five seeds.

    Dashed in grey is what theory says of the skip alone. The small init is dashed, as it lies on the gate, at 1.
    """
    points = [
        {"arm": unit, "seed": seed, "layer": layer, "size": value}
        for unit, row in rows.items()
        for seed, lane in enumerate(row["size"])
        for layer, value in enumerate(lane)
    ]
    depth = max(point["layer"] for point in points)
    theory = [{"layer": layer, "size": GROWTH**layer} for layer in range(depth + 1)]
    x = alt.X("layer:Q", title="layer")
    scale = alt.Scale(type="log", domainMin=0.1)
    y = alt.Y("size:Q", title="size of the stream / its size at the bottom", scale=scale, axis=drawing.POWERS)
    lines = alt.Chart(alt.Data(values=points)).mark_line(strokeWidth=1.6, opacity=0.8)
    drawn = lines.encode(
        x=x, y=y, color=drawing.color("arm", list(rows)), detail="seed:N", strokeDash=drawing.dashed(SCALED)
    )
    expected = alt.Chart(alt.Data(values=theory)).mark_line(strokeDash=[5, 4], color="#8a8d91").encode(x=x, y=y)
    label = alt.Chart(alt.Data(values=[{**theory[depth // 2], "words": "theory: √3 a layer"}]))
    words = label.mark_text(align="right", dx=-12, dy=-8).encode(x=x, y=y, text="words:N")
    return (drawn + expected + words).properties(width=520, height=280)


def lesson(rows: Rows) -> str:
    """Growth a layer, and what holds it."""
    depth = len(rows[BARE]["size"][0]) - 1
    return (
        f"A skip adds, and what is added piles up: at birth each layer of a bare x + f(x) makes the stream "
        f"{growth(rows, BARE).mean():.2f} times as large (theory: the square root of three, {GROWTH:.2f}), so after "
        f"{depth} layers it is {np.exp(np.log(end(rows, BARE)).mean()):.0e} times as large as at the start. What lets "
        f"layers be stacked is the skip together with something that keeps its branches small: a norm before the "
        f"branch ({end(rows, NORMED).mean():.1f} times at the top), a gate that starts at zero "
        f"({end(rows, GATED).mean():.1f}) or a smaller init ({end(rows, SCALED).mean():.1f}). The claim leaves "
        f"out that a skip is not enough. It speaks of a hundred layers; measured was the growth over {depth}."
    )


CLAIM = Claim(
    name="skip_alone",
    part="Residual connections",
    title="Residual connections alone let one stack a hundred layers",
    says="With residual connections one can stack a hundred layers and more.",
    refuted_by="A stream that grows by a fixed factor a layer in a stack that has skips and nothing else.",
    protocol="48 layers of attention and ReLU feed-forward at birth, D = 128, T = 32: size of the stream behind each "
    "layer, with the skip alone (matrices of variance 1 / fan-in, for which theory gives the square root of three a "
    "layer), and with the skip and a norm.",
    control="A gate that starts at zero, and a smaller init: they add the smallest thing to the skip, and the stream "
    "must stop growing, or the skip was not to blame.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
