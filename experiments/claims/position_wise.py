"""The feed-forward network treats each position alone."""

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.parameter import declare, realise, xavier
from stackjax.sublayer import Sublayer

from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds

SUBLAYERS: dict[str, Sublayer] = {"feed-forward": sj.FeedForward(), "attention": sj.Attention(n_heads=4, causal=False)}


def run(*, sublayer: str, context: int, d_model: int, seeds: list[int]) -> Json:
    """Largest Jacobian norm between two different positions over that of a position with itself, one number a seed."""
    described = SUBLAYERS[sublayer]
    leaks = []
    for seed in seeds:
        init, data = jax.random.split(jax.random.key(seed))
        declared = declare(described.spec(d_model))
        params = realise(init, declared, default_init=xavier, gain=lambda role: 1.0, dtype=jnp.float32)
        x = jax.random.normal(data, (context, d_model))

        def apply(x: jax.Array, params=params) -> jax.Array:
            return described.apply(params, x, sj.SideInputs())[0]

        jacobian = jax.jacobian(apply)(x)
        sizes = np.asarray(jnp.sqrt(jnp.sum(jacobian**2, (1, 3))))
        away = sizes - np.diag(np.diag(sizes))
        leaks.append(float(away.max() / np.diag(sizes).max()))
    return {"across": leaks}


def units(quick: bool) -> list[Unit]:
    """Feed-forward and attention."""
    size = {"context": 6, "d_model": 16, "seeds": list(seeds(5))}
    return [Unit(name=name, run=run, setting={**size, "sublayer": name}) for name in SUBLAYERS]


def check(about: About, unit: str, relation: Relation, threshold: float) -> Check:
    """Check that a sublayer mixes positions, or does not."""
    return Check(
        claim=f"{unit}: largest influence of one position on another, over that on itself",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(unit,),
        values=lambda rows: np.array(rows[unit]["across"]),
    )


CHECKS = (
    check("claim", "feed-forward", "below", 1e-6),
    check("control", "attention", "above", 0.05),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Largest influence of one position on another, over the largest of a position on itself."""
    return drawing.dots(
        {unit: row["across"] for unit, row in rows.items()}, title="influence across positions / within one"
    )


def lesson(rows: Rows) -> str:
    """Lesson on where positions meet."""
    return (
        "The Jacobian tells how much the output at one position moves when the input at another does. For the "
        f"feed-forward network it is {np.mean(rows['feed-forward']['across']):.2g} between different positions: every "
        "token is treated by itself, with the same weights. All that passes between tokens passes through attention, "
        f"where the largest influence of one position on another is {np.mean(rows['attention']['across']):.2g} of the "
        "largest that a position has on itself."
    )


CLAIM = Claim(
    name="position_wise",
    part="Feed-forward network",
    title="The feed-forward network treats each position alone",
    says="The same network is applied to each position by itself.",
    refuted_by="An output at one position that depends on the input at another.",
    protocol="Exact: the Jacobian of a sublayer with respect to all its inputs, its block norms between different "
    "positions over the largest between a position and itself; at birth, D = 16, T = 6, "
    "attention without a causal mask.",
    control="Attention, which must mix positions.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
