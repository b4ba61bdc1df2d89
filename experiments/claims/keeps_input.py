"""Does the top of a stack still know which token came in?"""

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.recipe.base import Recipe

from ..lab.store import Json
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds

DEPTHS = (2, 8, 24, 48)
VOCAB = 64
RECIPES: dict[str, Recipe] = {
    "pre-norm": sj.recipe.PreNorm(),
    "DeepNorm": sj.recipe.DeepNorm(),
    "ReZero": sj.recipe.ReZero(),
    "post-norm": sj.recipe.PostNorm(),
    "norm without skip": sj.recipe.Weighted(residual=sj.residual.Post(), alpha=0.0),
}


def run(
    *, recipe: str, depths: list[int], vocab: int, d_model: int, n_heads: int, context: int, batch: int,
    seeds: list[int],
) -> Json:  # fmt: skip
    """Share of tokens that a linear probe at the top names rightly, by depth and seed, and with labels shuffled."""
    scores: Json = {"accuracy": {}, "shuffled": {}}
    for depth in depths:
        model = sj.decoder(vocab=vocab, d_model=d_model, depth=depth, n_heads=n_heads, recipe=RECIPES[recipe])

        @jax.jit
        def shares(seed: jax.Array, model: sj.Model = model) -> tuple[jax.Array, jax.Array]:
            init, data, order = jax.random.split(jax.random.key(seed), 3)
            tokens = jax.random.randint(data, (2 * batch, context), 0, vocab)
            hidden, _ = model.hidden(model.init(init), tokens)
            features = hidden.reshape(2, batch * context, d_model)
            labels = tokens.reshape(2, batch * context)
            mixed = labels.at[0].set(jax.random.permutation(order, labels[0]))
            return probe(features, labels, vocab), probe(features, mixed, vocab)

        each = [jax.device_get(shares(jnp.asarray(seed))) for seed in seeds]
        scores["accuracy"][str(depth)] = [float(pair[0]) for pair in each]
        scores["shuffled"][str(depth)] = [float(pair[1]) for pair in each]
    return scores


def probe(features: jax.Array, labels: jax.Array, vocab: int) -> jax.Array:
    """Accuracy on the second half of a ridge regression that was fitted on the first.

    Args:
        features: (2, N, D)
        labels: (2, N) integers.
        vocab: V.
    """
    mean, scale = features[0].mean(0), features[0].std() + 1e-12
    x = jnp.concatenate(((features - mean) / scale, jnp.ones((*labels.shape, 1))), -1)
    n = labels.shape[1]
    target = jax.nn.one_hot(labels[0], vocab)
    weights = jnp.linalg.solve(x[0].T @ x[0] / n + 1e-4 * jnp.eye(x.shape[-1]), x[0].T @ target / n)
    return jnp.mean(jnp.argmax(x[1] @ weights, -1) == labels[1])


def units(quick: bool) -> list[Unit]:
    """A unit for each recipe."""
    size = {"vocab": VOCAB, "d_model": 64, "n_heads": 4, "context": 32, "batch": 128}
    size |= {"depths": list(DEPTHS), "seeds": list(seeds(5))}
    if quick:
        size |= {"vocab": 8, "d_model": 8, "n_heads": 2, "context": 4, "batch": 8, "seeds": list(seeds(2))}
    return [Unit(name=name, run=run, setting={**size, "recipe": name}) for name in RECIPES]


def accuracy(rows: Rows, unit: str, depth: int, labels: str = "accuracy") -> np.ndarray:
    """Accuracy of each seed."""
    return np.array(rows[unit][labels][str(depth)])


def check(about: About, unit: str, depth: int, relation: Relation, threshold: float, labels: str = "accuracy") -> Check:
    """Check that a probe behind so many layers names the token, or does not."""
    what = "" if labels == "accuracy" else ", labels shuffled"
    return Check(
        claim=f"{unit}, {depth} layers{what}: share of tokens named from the top",
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(unit,),
        values=lambda rows: accuracy(rows, unit, depth, labels),
    )


CHECKS = (
    check("claim", "pre-norm", 48, "above", 0.80),
    check("claim", "DeepNorm", 48, "above", 0.99),
    check("claim", "ReZero", 48, "above", 0.99),
    check("correction", "post-norm", 24, "below", 0.05),
    check("control", "norm without skip", 2, "below", 0.10),
    check("control", "pre-norm", 2, "below", 0.05, "shuffled"),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Accuracy of the probe against depth; ReZero is dashed, as it lies on DeepNorm, at 1."""
    points = [
        {"arm": unit, "depth": int(depth), "right": value}
        for unit, row in rows.items()
        for depth, each in row["accuracy"].items()
        for value in each
    ]
    x = alt.X("depth:Q", title="layers", scale=alt.Scale(type="log"), axis=alt.Axis(values=DEPTHS))
    y = alt.Y("right:Q", title="share of tokens named from the top", scale=alt.Scale(domain=[0, 1]))
    return drawing.curves(points, x=x, y=y, arms=list(rows), dash="ReZero")


def lesson(rows: Rows) -> str:
    """Lesson on who keeps the input."""

    def share(unit: str, depth: int) -> str:
        return f"{100 * accuracy(rows, unit, depth).mean():.0f} %"

    return (
        "If the skip hands the input on, one must be able to read at the top which token came in. Behind 48 layers at "
        f"birth a linear probe names {share('pre-norm', 48)} of the tokens with pre-norm, {share('DeepNorm', 48)} with "
        f"DeepNorm and {share('ReZero', 48)} with ReZero. With post-norm, whose norm stands on the skip itself, it "
        f"names {share('post-norm', 8)} behind 8 layers and {share('post-norm', 24)} behind 24, little more than by "
        f"guessing ({100 / VOCAB:.0f} %): there every norm shrinks what came before as much as what is new. DeepNorm "
        "has its norm in the same place and keeps the input, because it scales the skip up before it adds. So not "
        "any shortcut preserves: it must be free of norms, or outweigh its branch. With norms and no skip the input "
        f"is all but gone after two layers ({share('norm without skip', 2)})."
    )


CLAIM = Claim(
    name="keeps_input",
    part="Residual connections",
    title="The shortcut preserves the original input",
    says="The shortcut hands the original input on, so that it is not lost in deep stacks.",
    refuted_by="A stack with shortcuts from whose top one cannot tell which token came in.",
    protocol="Random tokens out of 64 through decoders of 2 to 48 layers at birth, D = 64, T = 32: pre-norm, "
    "post-norm, DeepNorm (norm(a x + f(x)) with a > 1 and a smaller init), ReZero (x + b f(x) with b = 0 at birth), "
    "and norm(f(x)). A ridge regression from the top's stream to each position's own token, fitted on 4,096 tokens "
    "and read on 4,096 others; chance is one in 64.",
    control="The same norms without a skip must lose the token after two layers; and with shuffled labels the probe "
    "must do no better than chance.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
