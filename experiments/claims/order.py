"""Is attention blind to the order of its tokens?"""

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj

from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds

ENCODER, ROTARY, DECODER = "encoder without positions", "encoder with rotary positions", "decoder without positions"


def model(arm: str, depth: int, d_model: int) -> sj.Model:
    """The model of an arm."""
    make = sj.decoder if arm == DECODER else sj.encoder
    position = sj.position.Rotary() if arm == ROTARY else sj.position.NoPosition()
    return make(vocab=64, d_model=d_model, depth=depth, n_heads=4, position=position)


def run(*, arm: str, depth: int, d_model: int, context: int, seeds: list[int]) -> Json:
    """|f(P x) - P f(x)| / |f(x)| for a random order P of the tokens, one number a seed."""
    described = model(arm, depth, d_model)
    apply = jax.jit(lambda params, tokens: described.apply(params, tokens)[0])
    differences = []
    for seed in seeds:
        init, data, shuffle = jax.random.split(jax.random.key(seed), 3)
        params = described.init(init)
        tokens = jax.random.randint(data, (context,), 0, 64)
        order = jax.random.permutation(shuffle, context)
        ordered, plain = apply(params, tokens[order]), apply(params, tokens)
        differences.append(float(jnp.linalg.norm(ordered - plain[order]) / jnp.linalg.norm(plain)))
    return {"difference": differences}


def units(quick: bool) -> list[Unit]:
    """Three models."""
    size = {"depth": 4, "d_model": 64, "context": 24, "seeds": list(seeds(5))}
    return [Unit(name=name, run=run, setting={**size, "arm": name}) for name in (ENCODER, ROTARY, DECODER)]


def check(about: About, unit: str, relation: Relation, threshold: float) -> Check:
    """Check that the order matters to a model, or does not."""
    return Check(
        claim=f"{unit}: relative difference that the order makes",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(unit,),
        values=lambda rows: np.array(rows[unit]["difference"]),
    )


CHECKS = (
    check("claim", ENCODER, "below", 1e-5),
    check("correction", DECODER, "above", 1e-2),
    check("control", ROTARY, "above", 1e-2),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Relative difference that the order of the tokens makes to the outputs, which are put back in order."""
    values = {unit: np.maximum(row["difference"], 1e-9) for unit, row in rows.items()}
    return drawing.dots(
        {unit: list(each) for unit, each in values.items()}, title="relative difference that the order makes", log=True
    )


def lesson(rows: Rows) -> str:
    """Lesson on who sees the order."""

    def difference(unit: str) -> str:
        return f"{np.mean(rows[unit]['difference']):.1g}"

    return (
        "Shuffle the tokens, run the model, and put the outputs back in order. An encoder without positions gives "
        f"what it gave before, to rounding error (relative difference {difference(ENCODER)}): for it a sentence is a "
        f"bag of words, as the claim says. A decoder without positions does not ({difference(DECODER)}): its mask "
        "lets the third token see two others and the tenth nine, so that what a token sees depends on where it "
        "stands. The claim is right for attention without a mask and wrong for decoders, which most language models "
        "are."
    )


CLAIM = Claim(
    name="order",
    part="Positional encoding",
    title="Attention is blind to order",
    says="Attention treats its input as a set and cannot tell the order of the tokens.",
    refuted_by="A stack without positions whose outputs change by more than their order when the tokens are shuffled.",
    protocol="Exact: four layers at birth, D = 64, T = 24, random tokens in a random order P; |f(P x) - P f(x)| over "
    "|f(x)|.",
    control="Rotary positions in the same encoder: the order must matter there.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
