"""A gradient is a product over layers: 0.9^100 and 1.1^100 in a real stack."""

from dataclasses import dataclass
from math import sqrt

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.parameter import FanIn, Init
from stackjax.recipe.base import Geometry

from ..lab.store import Json
from . import drawing
from .claim import Check, Claim, Relation, Rows, Unit, plain, seeds

FACTORS = (0.9, 1.0, 1.1)
CLOSE = 0.03


@dataclass(frozen=True, kw_only=True)
class Chain(sj.recipe.WithoutResidual):
    """f(x) with LeCun's init, on which a ReLU layer multiplies the signal by 1 / sqrt(2), and `factor` sqrt(2) on down.

    Args:
        factor: by which a layer multiplies the signal, and so the gradient.
    """

    default_init: Init = FanIn()
    factor: float = 1.0

    def gain(self, role: str, geometry: Geometry) -> float:
        return self.factor * sqrt(2) if role == "down" else 1.0


def run(
    *,
    factor: float | None,
    normalised: bool,
    depth: int,
    d_model: int,
    n_heads: int,
    context: int,
    batch: int,
    seeds: list[int],
) -> Json:
    """Gradient of a random reading of the output with respect to x_l, over that to x_L: (seeds, L + 1).

    Args:
        factor: of the chain; None is pre-norm.
        normalised: whether queries and keys are, so that attention stays as soft as it is however large the signal.
        depth: L.
        d_model: D.
        n_heads: H.
        context: T.
        batch: B.
        seeds: of weights and data.
    """
    recipe = sj.recipe.PreNorm() if factor is None else Chain(factor=factor)
    qk_norm = sj.RMSNorm(scale=False) if normalised else sj.NoNorm()
    sublayers = (sj.Attention(n_heads=n_heads, qk_norm=qk_norm), sj.FeedForward(activation=sj.feed_forward.relu))
    stack = sj.Stack.of(sj.Layer(sublayers=sublayers), depth=depth, d_model=d_model, recipe=recipe)

    @jax.jit
    def gradients(seed: jax.Array) -> jax.Array:
        init, data, reading = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(data, (batch, context, d_model))
        params = stack.init(init)

        def read(taps: jax.Array) -> jax.Array:
            y, _ = stack.apply(params, x, taps=taps, remat="layer")
            return jnp.sum(y * jax.random.normal(reading, y.shape))

        return sj.probe.stream_gradients(read, depth)

    gradient = np.array([jax.device_get(gradients(jnp.asarray(seed))) for seed in seeds], np.float64)
    return {"gradient": plain(gradient / gradient[:, -1:])}


GROWING = "factor 1.1, logits growing"
SECOND_SEEDS = tuple(range(30, 38))
"""Seeds of the chains with normalised queries and keys, which were run second."""


def units(quick: bool) -> list[Unit]:
    """Three chains, pre-norm, and the chain of the first run in which the signal reaches the logits."""
    size = {"depth": 100, "d_model": 256, "n_heads": 4, "context": 32, "batch": 2}
    first = {"d_model": 128}
    if quick:
        size |= {"depth": 6, "d_model": 16, "n_heads": 2, "context": 4}
        first = {}
    arms = {f"factor {factor:g}": (factor, True, SECOND_SEEDS) for factor in FACTORS}
    arms |= {"pre-norm": (None, True, SECOND_SEEDS), GROWING: (FACTORS[-1], False, seeds(8))}
    return [
        Unit(
            name=name,
            run=run,
            setting={
                **size,
                **(first if name == GROWING else {}),
                "factor": factor,
                "normalised": normalised,
                "seeds": list(some[: 2 if quick else None]),
            },
        )
        for name, (factor, normalised, some) in arms.items()
    ]


def per_layer(rows: Rows, unit: str) -> np.ndarray:
    """Geometric mean of the factors of all layers, one a seed."""
    gradient = np.array(rows[unit]["gradient"])
    return gradient[:, 0] ** (1 / (gradient.shape[1] - 1))


def total(rows: Rows, unit: str) -> np.ndarray:
    """Gradient at the bottom over that at the top, one a seed."""
    return np.array(rows[unit]["gradient"])[:, 0]


def set_to(factor: float, relation: Relation, threshold: float) -> Check:
    """Check that a chain's factor is what it was set to."""
    unit = f"factor {factor:g}"
    return Check(
        claim=f"set to {factor:g} a layer: factor by which the gradient changes in a layer",
        about="claim",
        relation=relation,
        threshold=round(threshold, 3),
        needs=(unit,),
        values=lambda rows: per_layer(rows, unit),
    )


def kept(relation: Relation, threshold: float) -> Check:
    """Check that pre-norm keeps its gradient."""
    return Check(
        claim="pre-norm: log10 of the gradient at the bottom over that at the top",
        about="control",
        relation=relation,
        threshold=threshold,
        needs=("pre-norm",),
        values=lambda rows: np.log10(total(rows, "pre-norm")),
    )


SIDES: tuple[tuple[Relation, int], ...] = (("above", -1), ("below", 1))
CHECKS = (
    *(set_to(factor, relation, factor + sign * CLOSE) for factor in FACTORS for relation, sign in SIDES),
    kept("above", -1.5),
    kept("below", 1.5),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Gradient with respect to the stream behind each layer, over that at the top; a line for each of eight seeds."""
    points = [
        {"arm": unit, "seed": seed, "layer": layer, "gradient": value}
        for unit, row in rows.items()
        for seed, lane in enumerate(row["gradient"])
        for layer, value in enumerate(lane)
    ]
    y = alt.Y(
        "gradient:Q", title="gradient at the layer / at the top", scale=alt.Scale(type="log"), axis=drawing.POWERS
    )
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=1.3, opacity=0.7)
        .encode(x=alt.X("layer:Q", title="layer"), y=y, color=drawing.color("arm", list(rows)), detail="seed:N")
        .properties(width=520, height=280)
    )


def lesson(rows: Rows) -> str:
    """The product, with what comes of it."""
    small, even, large, wild = (
        float(np.exp(np.log(total(rows, unit)).mean()))
        for unit in (*(f"factor {factor:g}" for factor in FACTORS), GROWING)
    )
    depth = len(rows["pre-norm"]["gradient"][0]) - 1
    return (
        f"Without a skip a gradient passes through every layer, and each multiplies it. If each of {depth} layers "
        f"passes on nine tenths, a gradient of 1 at the top should come to {0.9**depth:.1e} at the bottom, and in a "
        f"stack that was set so it came to {small:.1e} (a geometric mean over seeds, as all that follow); with one "
        f"tenth more a layer it should come to {1.1**depth:,.0f}, and came to {large:,.0f}; set to 1 a layer, to "
        f"{even:.2f}. With skips and norms (pre-norm) the same depth changes the gradient by a factor of "
        f"{float(np.exp(np.abs(np.log(total(rows, 'pre-norm'))).mean())):.1f}. One thing the product leaves out: a "
        "growing signal also grows inside attention's softmax. In a first run, half as wide, nothing stopped it "
        f"there: one tenth more a layer then came to {wild:.0e}, and to {total(rows, GROWING).max():.0e} in the seed "
        "with the largest."
    )


CLAIM = Claim(
    name="product",
    part="Residual connections",
    title="A gradient is a product over layers",
    says="The gradient at the first layer is the product of the derivatives of all layers: over 100 layers 0.9 each "
    "leaves 0.00003, and 1.1 each makes 13,780.",
    refuted_by="A stack whose layers each multiply by r, and in which the gradient does not change by r a layer.",
    protocol="100 layers of attention and ReLU feed-forward without skip and norm, D = 256, T = 32, at birth; the "
    "gain of the last matrix of each layer is set so that a layer multiplies the signal by r. Gradient of a random "
    "reading of the output with respect to the stream at every layer. Queries and keys are normalised; they were not "
    "in a first run with other seeds, D = 128, which did not settle r = 1.1 and is shown here (logits growing).",
    control="Pre-norm in the same place: its gradient must stay within a factor of 32 from end to end, for its stream "
    "grows as the square root of the depth, and its gradient with it.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
