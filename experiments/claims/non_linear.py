"""Is attention linear, and is the feed-forward network where the non-linearity is?"""

from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.parameter import declare, realise, xavier

from ..lab.finding import Estimate
from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds
from .training import best, train_on_text

EXACT = "attention at birth"
GELU, IDENTITY, NONE = (
    "feed-forward with GELU",
    "feed-forward without activation",
    "no feed-forward, three times as deep",
)


def linearity(*, context: int, d_model: int, n_heads: int, seeds: list[int]) -> Json:
    """|f(x + y) - f(x) - f(y)| / |f(x + y)| of attention, and of attention whose weights are those of x + y."""
    attention = sj.Attention(n_heads=n_heads)
    deviations: dict[str, list[float]] = {"attention": [], "weights held": []}
    for seed in seeds:
        init, data = jax.random.split(jax.random.key(seed))
        declared = declare(attention.spec(d_model))
        params = realise(init, declared, default_init=xavier, gain=lambda role: 1.0, dtype=jnp.float32)
        x, y = jax.random.normal(data, (2, 1, context, d_model))

        def apply(z: jax.Array, params=params) -> tuple[jax.Array, jax.Array]:
            out, aux = attention.apply(params, z, sj.SideInputs())
            return out, aux.intermediates["weights"]

        whole, weights = apply(x + y)

        def held(z: jax.Array, params=params, weights=weights) -> jax.Array:
            value = (z @ params["value"]).reshape(1, context, n_heads, -1)
            return jnp.einsum("bhts,bshk->bthk", weights, value).reshape(1, context, -1) @ params["out"]

        for name, f in (("attention", lambda z: apply(z)[0]), ("weights held", held)):
            away = f(x + y) - f(x) - f(y)
            deviations[name].append(float(jnp.linalg.norm(away) / jnp.linalg.norm(whole)))
    return deviations


def run(*, arm: str, depth: int, d_model: int, n_heads: int, **numbers: Any) -> Json:
    """Validation losses of a decoder."""
    attention = sj.Attention(n_heads=n_heads, position=sj.position.Rotary())
    activation = sj.feed_forward.identity if arm == IDENTITY else sj.feed_forward.gelu_tanh
    model = sj.decoder(
        d_model=d_model, depth=depth, attention=attention, feed_forward=sj.FeedForward(activation=activation)
    )
    if arm == NONE:
        layer = sj.Layer(sublayers=(attention,))
        stack = sj.Stack.of(layer, depth=3 * depth, d_model=d_model, recipe=sj.recipe.PreNorm())
        model = sj.Model(embedding=model.embedding, stack=stack, head=model.head)
    return train_on_text(model, **numbers)


def units(quick: bool) -> list[Unit]:
    """The exact part, and three decoders of equal size."""
    some = list(seeds(2 if quick else 3))
    size = {"depth": 4, "d_model": 64, "n_heads": 4, "context": 64, "batch": 8, "steps": 400, "seeds": some}
    if quick:
        size |= {"depth": 1, "d_model": 8, "n_heads": 2, "context": 8, "batch": 2, "steps": 2}
    exact = {"context": 16, "d_model": 64, "n_heads": 4, "seeds": list(seeds(2 if quick else 5))}
    rates = [6e-3] if quick else [3e-3, 6e-3]
    return [Unit(name=EXACT, run=linearity, setting=exact)] + [
        Unit(name=arm, run=run, setting={**size, "arm": arm, "rates": rates}) for arm in (GELU, IDENTITY, NONE)
    ]


def exact(about: About, what: str, relation: Relation, threshold: float) -> Check:
    """Check of the exact part."""
    return Check(
        claim=f"{what}: |f(x + y) - f(x) - f(y)| / |f(x + y)|",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(EXACT,),
        values=lambda rows: np.array(rows[EXACT][what]),
    )


def difference(about: About, one: str, other: str, relation: Relation, threshold: float) -> Check:
    """Check of the difference between two units' losses, paired by seed."""
    return Check(
        claim=f"{one} minus {other}, nats",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(one, other),
        values=lambda rows: best(rows[one]) - best(rows[other]),
    )


CHECKS = (
    exact("correction", "attention", "above", 0.1),
    exact("control", "weights held", "below", 1e-5),
    difference("claim", IDENTITY, GELU, "above", 0.05),
    difference("claim", NONE, GELU, "above", 0.05),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Losses of the three decoders, each at the better of two learning rates."""
    values = {arm: best(rows[arm]) for arm in (GELU, IDENTITY, NONE) if arm in rows}
    return drawing.dots({arm: list(each) for arm, each in values.items()}, title="validation loss (nats)")


def lesson(rows: Rows) -> str:
    """Lesson on where the non-linearity is, and what it is worth."""
    exact = rows[EXACT]
    return (
        f"A linear map gives f(x + y) = f(x) + f(y). Attention misses that by {100 * np.mean(exact['attention']):.0f} "
        "% of its output: the weights depend on the tokens through a softmax, and only if one holds them fixed is the "
        f"rest linear, to rounding error ({np.mean(exact['weights held']):.0e}). So attention is not linear, and the "
        "claim is wrong there. Where a feed-forward network stands, its activation is worth something: without it the "
        f"loss, as a difference from that with GELU, is {Estimate.of(best(rows[IDENTITY]) - best(rows[GELU]))} nats. "
        "But the network can be done without: with as many parameters in more attention layers instead the difference "
        f"is {Estimate.of(best(rows[NONE]) - best(rows[GELU]))}, below the 0.05 that was set as the least."
    )


CLAIM = Claim(
    name="non_linear",
    part="Feed-forward network",
    title="Attention is linear, the feed-forward network supplies the non-linearity",
    says="Attention only takes weighted sums, which are linear; the feed-forward network brings the non-linearity.",
    refuted_by="Attention that is not additive; or a decoder that does as well without the activation.",
    protocol="Exact: f(x + y) against f(x) + f(y) for attention at birth. Then four-layer decoders on text, D = 64, "
    "400 steps of 8 windows of 64 bytes, each at the better of two learning rates: GELU, no activation, and no "
    "feed-forward network but three times as many attention layers, which is as many parameters.",
    control="Attention with its weights held must be additive to rounding error, or the measure is broken.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
