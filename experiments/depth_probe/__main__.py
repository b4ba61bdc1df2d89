"""What stands in each layer of a stack, before any training and after a little of it?

    python -m experiments.depth_probe
    python -m experiments.depth_probe --recipes pre_norm my.module:recipe --depths 8 64 --steps 0

Gradient norm, size of the stream, branch ratio, cosine, token similarity, rank and Jacobian gain of every layer, for
any recipe and depth, on one page. Two published contrasts at initialisation are drawn again from the same arrays, their
thresholds stated beforehand: the gradients of post-norm and pre-norm (Xiong et al. 2020, figure 3, arXiv:2002.04745)
and rank collapse without skips (Dong et al. 2021, figure 2, arXiv:2103.03404).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax import probe
from stackjax.recipe import Recipe

from ..lab import command_line, data, environment, finding, names, page, profile_chart
from ..lab.corpus import Corpus
from ..lab.grid import Setting
from ..lab.options import Recipes, Training, one_or_more, plain, some
from ..lab.store import Json
from . import claims
from .claims import Arrays, Looked


@dataclass(frozen=True, kw_only=True)
class Options(Training):
    """Look into every layer of any recipes at any depths, at initialisation and after a few steps.

    Exit status: 0 done, whatever the verdicts; 2 bad usage; 130 interrupted.
    """

    FEWEST_STEPS = 0

    recipes: Recipes = field(
        default_factory=lambda: names.recipes("pre_norm", "post_norm", "deepnorm", "keel", "no_residual")
    )
    """Names, or dotted paths of your own."""
    depths: tuple[int, ...] = (6, 12, 24, 48)
    """Numbers of layers; the claims about gradients need two or more."""

    def __post_init__(self):
        super().__post_init__()
        some(self, "depths", "recipes")
        one_or_more(self, "depths")


FIGURES = ("gradients", "collapse", "born", "trained")
USUAL = Options(out="runs/depth_probe", steps=30, seeds=5, learning_rate=1e-3, context=64, batch=4)
QUICK = replace(USUAL, quick=True, depths=(2, 3), steps=2, seeds=2, d_model=16, n_heads=2, context=8, batch=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.main(
        "experiments.depth_probe",
        usual=USUAL,
        quick=QUICK,
        prepare=lambda options: (options, checked(options)),
        run=lambda work, command: run(*work, command),
        arguments=arguments,
    )


def checked(options: Options) -> Corpus:
    """The text, once everything is known to fit.

    Raises:
        ValueError: what does not.
    """
    corpus = data.load(options.data)
    corpus.check(batch=options.batch, context=options.context)
    setting_of(options).check(corpus.vocab)
    for recipe in options.recipes.values():
        for depth in options.depths:
            setting_of(options).model(recipe, depth, corpus.vocab)
    return corpus


def setting_of(options: Options) -> Setting:
    """Setting of the steps before the second look."""
    sizes = {name: getattr(options, name) for name in ("d_model", "n_heads", "context", "batch")}
    return Setting(steps=max(options.steps, 1), schedule="constant", **sizes)


def look(recipe: Recipe, depth: int, corpus: Corpus, options: Options) -> Looked:
    """All seeds of a recipe at a depth."""
    setting = setting_of(options)
    model = setting.model(recipe, depth, corpus.vocab)
    size = {"batch": options.batch, "context": options.context}

    @jax.jit
    def draw(key: jax.Array, windows: jax.Array) -> Any:
        return model.calibrate(model.init(key), windows[:, :-1])

    @jax.jit
    def seen(params: Any, windows: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        def loss(logits: jax.Array) -> jax.Array:
            return sj.loss.cross_entropy(logits, windows[:, 1:])

        return probe.look(model, params, windows[:, :-1], loss, key, remat="layer")

    measured: dict[str, list[Any]] = {"random": [], "text": []}
    for seed in range(options.seeds):
        key = jax.random.key(seed)
        noise = jax.random.randint(jax.random.fold_in(key, 1), (options.batch, options.context + 1), 0, corpus.vocab)
        windows = {"random": noise, "text": jnp.asarray(corpus.batch(seed=seed, step=0, **size), jnp.int32)}
        for kind, window in windows.items():
            params = draw(jax.random.fold_in(key, 0), window)
            measured[kind].append(jax.device_get(seen(params, window, jax.random.fold_in(key, 2))))
    trained = None
    if options.steps:
        params = _trained(setting, recipe, depth, corpus, options)
        window = jnp.asarray(corpus.batch(seed=0, step=options.steps, **size), jnp.int32)
        trained = _stacked([jax.device_get(seen(params, window, jax.random.key(2)))])
    return Looked(random=_stacked(measured["random"]), text=_stacked(measured["text"]), trained=trained)


def _stacked(each: Sequence[dict[str, Any]]) -> Arrays:
    return {name: np.stack([arrays[name] for arrays in each]) for name in each[0]}


def _trained(setting: Setting, recipe: Recipe, depth: int, corpus: Corpus, options: Options) -> Any:
    """Parameters of the first seed after the steps."""
    trainer = setting.trainer(recipe, depth, corpus.vocab)
    hyper = setting.hyper(learning_rate=options.learning_rate, seed=0)
    size = {"batch": options.batch, "context": options.context}
    batches = jnp.stack([jnp.asarray(corpus.batch(seed=0, step=step, **size)) for step in range(options.steps)])
    state = jax.jit(trainer.start)(hyper, batches[0])
    return jax.jit(trainer.advance)(hyper, state, batches)[0].params


def run(options: Options, corpus: Corpus, command: str) -> Path:
    """Look at everything and write the finding and the page; returns the page."""
    looked: dict[tuple[str, int], Looked] = {}
    for name, recipe in options.recipes.items():
        for depth in options.depths:
            looked[name, depth] = look(recipe, depth, corpus, options)
            print(f"{name}, {depth} layers: looked at", flush=True)
    collapsed = claims.collapse(seeds=options.seeds, d_model=options.d_model, n_heads=options.n_heads)
    stated = claims.predictions(looked, collapsed)
    for claim in stated:
        print(f"{claim.verdict:<13}{claim.claim}: {claim.found} (must be {claim.relation} {claim.threshold:g})")
    born, later = (
        [
            point
            for (name, depth), seen in looked.items()
            for point in profile_chart.rows({k: v.mean(0) for k, v in pick(seen).items()}, recipe=name, depth=depth)
        ]
        for pick in (lambda seen: seen.text, lambda seen: seen.trained or {})
    )
    charts = {
        "Gradients at initialisation": (
            claims.gradients(looked),
            "After Xiong et al. 2020, figure 3: post-norm's last layers get large gradients however deep the stack is, "
            "pre-norm's shrink as 1 / sqrt(depth). Random bytes, mean over seeds.",
        ),
        "Rank collapse": (
            claims.ranks(collapsed),
            "After Dong et al. 2021, figure 2: without skips all tokens become alike. Their bound is doubly "
            "exponential; at a random initialisation the decay is exponential, a straight line here.",
        ),
        "Every layer at initialisation": (profile_chart.profiles(born), "On text, mean over seeds."),
    }
    if later:
        caption = "On text, one seed, constant learning rate."
        charts[f"Every layer after {options.steps} steps"] = (profile_chart.profiles(later), caption)
    out = Path(options.out)
    figures = {name: figure for name, (figure, _) in zip(FIGURES, charts.values(), strict=False)}
    question = "What stands in each layer, before training and after a little of it?"
    sizes = (
        f"D = {options.d_model}, T = {options.context}, B = {options.batch}, {options.seeds} seeds; "
        f"text from {corpus.name}; intervals are 95 % over seeds"
    )
    finding.write(
        out,
        question=question,
        setting={**plain(options), "data": corpus.facts()},
        provenance=environment.provenance(command, seeds=range(options.seeds)),
        predictions=stated,
        rows=_kept(looked, collapsed),
        figures=figures,
        text=finding.QUICK * options.quick + f"{sizes}.\n\n{meanings(options)}",
    )
    return page.write_page(out / "page.html", title=question, under=sizes, predictions=stated, charts=charts)


def meanings(options: Options) -> str:
    """Paragraphs on what the measures, the claims and the figures are."""
    depths = ", ".join(f"{depth:,}" for depth in options.depths)
    trained = f", `trained` after {options.steps} steps at a learning rate of {options.learning_rate:g}, one seed"
    return f"""*Gradient* is the norm of the gradient of W_2, the feed-forward network's second matrix, at \
initialisation on random bytes. Its *slope in log depth* is that of its logarithm against the logarithm of the depth, \
over {depths} layers: -0.5 where it shrinks as 1 / sqrt(depth), -1 where as 1 / depth, 0 where it does not depend on \
the depth. Gradients of 0 are not drawn.

*Rank* is not the rank of a matrix, but how far the tokens are from all alike: |X - mean of X over the tokens| / |X|, \
with Frobenius norms, of the stream X (tokens, D) after a layer. It is 0 where all tokens are the same vector. It is \
measured at initialisation in {claims.COLLAPSE_DEPTH} layers on {claims.COLLAPSE_TOKENS} random vectors, in float64; \
half-way is behind layer {claims.COLLAPSE_DEPTH // 2}.

Figures: `gradients` and `collapse` belong to the claims; `born` has every layer at initialisation, on \
text{trained if options.steps else ""}. The command also makes `page.html`, with all charts."""


def _kept(looked: dict[tuple[str, int], Looked], collapsed: Arrays) -> list[Json]:
    """Means over seeds, four digits, one row for each recipe, depth and look."""

    def short(values: np.ndarray) -> list[float | None]:
        return [float(f"{x:.4g}") if np.isfinite(x) else None for x in values.mean(0)]

    rows = []
    for (name, depth), seen in looked.items():
        random = {"grad_norm/down": seen.random["grad_norm/down"]}
        for when, arrays in (("random", random), ("text", seen.text), ("trained", seen.trained or {})):
            profile = {measure: short(values) for measure, values in arrays.items()}
            rows += [{"recipe": name, "depth": depth, "when": when, **profile}] if profile else []
    return [*rows, *({"kind": kind, "rank_residual": short(values)} for kind, values in collapsed.items())]


if __name__ == "__main__":
    sys.exit(main())
