"""Are a layer norm's statistics those of a sample, or those of a token?"""

from collections.abc import Callable

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

from stackjax.norm import batch_norm, layer_norm

from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds

SAMPLES, TOKENS, OWN = "other samples", "other tokens of the sample", "the token itself"


def _batch_norm(x: jax.Array) -> jax.Array:
    statistics = {"mean": jnp.zeros(x.shape[-1]), "variance": jnp.ones(x.shape[-1])}
    return batch_norm(statistics, x, training=True)[0]


NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "layer norm": lambda x: layer_norm({}, x),
    "batch norm": _batch_norm,
}


def run(*, norm: str, batch: int, context: int, d_model: int, seeds: list[int]) -> Json:
    """Relative change of the output at one token when something else is replaced, one number a seed."""
    changes: dict[str, list[float]] = {SAMPLES: [], TOKENS: [], OWN: []}
    same_token = jnp.zeros((batch, context, 1), bool).at[0, 0].set(True)
    sample = jnp.zeros((batch, context, 1), bool).at[0].set(True)
    replaced = {SAMPLES: ~sample, TOKENS: sample & ~same_token, OWN: same_token}
    for seed in seeds:
        x, noise = jax.random.normal(jax.random.key(seed), (2, batch, context, d_model))
        before = NORMS[norm](x)[0, 0]
        for what, where in replaced.items():
            after = NORMS[norm](jnp.where(where, 2 * noise + 1, x))[0, 0]
            changes[what].append(float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before)))
    return changes


def units(quick: bool) -> list[Unit]:
    """Layer norm and batch norm."""
    size = {"batch": 8, "context": 16, "d_model": 64, "seeds": list(seeds(5))}
    return [Unit(name=name, run=run, setting={**size, "norm": name}) for name in NORMS]


def check(about: About, norm: str, what: str, relation: Relation, threshold: float) -> Check:
    """Check that replacing something changes a norm's output, or does not."""
    return Check(
        claim=f"{norm}: relative change at a token when {what} {'is' if what == OWN else 'are'} replaced",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(norm,),
        values=lambda rows: np.array(rows[norm][what]),
    )


CHECKS = (
    check("claim", "layer norm", SAMPLES, "below", 1e-6),
    check("correction", "layer norm", TOKENS, "below", 1e-6),
    check("control", "layer norm", OWN, "above", 0.1),
    check("control", "batch norm", SAMPLES, "above", 0.1),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Mean over five seeds of the change at one token, for each norm and replacement."""
    points = [
        {"norm": norm, "replaced": what, "change": float(np.mean(each))}
        for norm, row in rows.items()
        for what, each in row.items()
    ]
    order = [SAMPLES, TOKENS, OWN]
    y = alt.Y("replaced:N", title="what is replaced", sort=order, axis=alt.Axis(labelLimit=0))
    offset = alt.YOffset("norm:N", sort=list(rows))
    x = alt.X("change:Q", title="relative change of the output at one token")
    base = alt.Chart(alt.Data(values=points)).encode(x=x, y=y, yOffset=offset)
    bars = base.mark_bar().encode(color=drawing.color("norm", list(rows)))
    numbers = base.mark_text(align="left", dx=4).encode(text=alt.Text("change:Q", format=".2f"))
    return (bars + numbers).properties(width=460, height=170)


def lesson(rows: Rows) -> str:
    """Lesson on whose statistics these are."""

    def change(norm: str, what: str) -> str:
        return f"{np.mean(rows[norm][what]):.2g}"

    return (
        "A norm subtracts a mean and divides by a deviation, and the question is over what these are taken. Replace "
        f"all other samples of a batch and a layer norm's output changes by {change('layer norm', SAMPLES)}, a batch "
        f"norm's by {change('batch norm', SAMPLES)}: so far the claim is right. But replace all other tokens of the "
        f"same sample and the layer norm's output still changes by {change('layer norm', TOKENS)}. It knows one token "
        "at a time: its statistics run over the features of that token, and not over the sample."
    )


CLAIM = Claim(
    name="per_token",
    part="Layer normalisation",
    title="Layer norm works per sample",
    says="Layer norm takes its statistics for each sample by itself and not over the batch.",
    refuted_by="An output that changes when other samples do. It would hold for samples rather than tokens if it "
    "changed when other tokens of the sample do.",
    protocol="Exact: replace the other samples, the other tokens of the sample, or the token itself by noise of "
    "another mean and size, and compare the output at one token.",
    control="Batch norm, whose output must change with the other samples; and the token itself, which must matter.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
