"""Which of its layers does each recipe use?

    python -m experiments.layer_drop
    python -m experiments.layer_drop --cells runs/mine/cells/pre_norm-L24-lr0.001-s0-0123456789

For trained models: how much the loss rises when one layer is left out, for each layer in turn, and how far each layer
turns the stream, as the angle between x_l and x_m at the last token (Gromov et al. 2024, arXiv:2403.17887). The models
are cells of a sweep that was run with `--keep-params`, or trained on the spot.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.recipe import Recipe

from .lab import chart, command_line, data, environment, finding, lanes, names, profile_chart, store
from .lab.corpus import Corpus
from .lab.finding import Estimate, Prediction
from .lab.grid import Setting
from .lab.options import Recipes, Training, one_or_more, plain

USED = 0.01
"""Nats: a layer whose absence costs less is hardly used."""


@dataclass(frozen=True, kw_only=True)
class Options(Training):
    """Leave out each layer of trained models in turn, and measure the angles between their layers.

    Exit status: 0 done, whatever the verdicts; 2 bad usage; 130 interrupted.
    """

    cells: tuple[str, ...] = ()
    """Folders of cells with params.npz, trained on the text that --data names; none means to train the recipes here."""
    recipes: Recipes = field(
        default_factory=lambda: names.recipes("pre_norm", "layer_norm_scaling", "deepnorm", "post_norm")
    )
    """Trained here: names, or dotted paths of your own."""
    depth: int = 16
    """Layers of what is trained here."""
    eval_batches: int = 16
    """Batches of validation windows that losses and angles are averaged over."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "depth", "eval_batches")
        if not self.recipes and not self.cells:
            raise ValueError("--recipes needs at least one value, or --cells")


USUAL = Options(out="runs/layer_drop", steps=300, learning_rate=2e-3)
QUICK = replace(
    USUAL,
    quick=True,
    recipes=names.recipes("pre_norm", "post_norm"),
    depth=2,
    steps=4,
    seeds=2,
    d_model=16,
    n_heads=2,
    context=8,
    batch=2,
    eval_batches=2,
)


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Losses and distances of one recipe, or one cell.

    Args:
        loss: with all layers, (seeds,).
        cost: by how much the loss rises without each layer, (seeds, L).
        distance: mean angle between x_l and x_m as a share of pi, (seeds, L + 1, L + 1).
    """

    loss: np.ndarray
    cost: np.ndarray
    distance: np.ndarray

    @property
    def deeper_half(self) -> np.ndarray:
        """Mean cost of the layers of the deeper half, (seeds,)."""
        return self.cost[:, self.cost.shape[1] // 2 :].mean(1)

    def turns(self) -> np.ndarray:
        """Angle between each layer's input and output, (seeds, L)."""
        return np.diagonal(self.distance, 1, 1, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.main(
        "experiments.layer_drop",
        usual=USUAL,
        quick=QUICK,
        prepare=prepare,
        run=lambda work, command: run(*work, command),
        arguments=arguments,
    )


Cells = dict[str, tuple[Setting, sj.Model, Any]]
"""Setting, model and trained parameters by the name of the cell."""


def prepare(options: Options) -> tuple[Options, Corpus, Cells]:
    """The options with what they name, read and found to fit.

    Raises:
        ValueError: what does not.
    """
    corpus = checked(options)
    return options, corpus, {Path(path).name: cell_of(path, corpus) for path in options.cells}


def run(options: Options, corpus: Corpus, cells: Cells, command: str) -> Path:
    """Drop the layers of the cells, or of recipes trained here, and report."""
    results = {}
    for name, (setting, model, params) in cells.items():
        results[name] = drop(model, [params], corpus, setting, options.eval_batches)
    for name, recipe in options.recipes.items() if not cells else ():
        setting = setting_of(options)
        model, params = trained(recipe, corpus, setting, options)
        results[name] = drop(model, params, corpus, setting, options.eval_batches)
        print(f"{name}: validation {results[name].loss.mean():.3f}", flush=True)
    return report(results, corpus, options, command)


def checked(options: Options) -> Corpus:
    """The text, once everything is known to fit.

    Raises:
        ValueError: what does not.
    """
    corpus = data.load(options.data)
    if not options.cells:
        corpus.check(batch=options.batch, context=options.context)
        setting_of(options).check(corpus.vocab)
        for recipe in options.recipes.values():
            setting_of(options).model(recipe, options.depth, corpus.vocab)
    return corpus


def setting_of(options: Options) -> Setting:
    """Setting of the models that are trained on the spot."""
    sizes = {name: getattr(options, name) for name in ("steps", "d_model", "n_heads", "context", "batch")}
    return Setting(eval_every=max(1, options.steps // 4), **sizes)


def cell_of(path: str, corpus: Corpus) -> tuple[Setting, sj.Model, Any]:
    """A cell's setting, model and trained parameters.

    Raises:
        ValueError: no cell, no parameters, or another text.
    """
    folder = Path(path)
    config = store.read_sealed(folder / "config.json")
    if config is None:
        raise ValueError(f"--cells {path!r} is no cell of a sweep: it has no config.json")
    if not (folder / "params.npz").exists():
        raise ValueError(f"{path} kept no parameters; run the sweep with --keep-params")
    try:
        sha256, name = config["data"]["sha256"], config["data"]["name"]
        setting, recipe, depth = Setting(**config["setting"]), config["recipe"], int(config["depth"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {type(error).__name__}: {error}") from error
    if sha256 != corpus.sha256:
        raise ValueError(f"{path} was trained on {name}, which --data has to name")
    model = setting.model(names.recipe_named(recipe), depth, corpus.vocab)
    return setting, model, store.load_params(folder / "params.npz", model)


def trained(recipe: Recipe, corpus: Corpus, setting: Setting, options: Options) -> tuple[sj.Model, list[Any]]:
    """A recipe's model, and its parameters for each seed."""
    trainer = setting.trainer(recipe, options.depth, corpus.vocab)
    done = lanes.fit(
        trainer,
        corpus,
        learning_rates=(options.learning_rate,),
        seeds=range(options.seeds),
        steps=setting.steps,
        batch=setting.batch,
        context=setting.context,
        eval_every=setting.eval_every,
        warmup=setting.warmup_steps,
    )
    return trainer.task.model, [jax.tree.map(lambda x, i=i: x[i], done.state.params) for i in range(options.seeds)]


def drop(model: sj.Model, params: Sequence[Any], corpus: Corpus, setting: Setting, eval_batches: int) -> Dropped:
    """Leave out each layer, and measure the angles, for each set of parameters."""
    batches = jnp.asarray(corpus.valid_batches(eval_batches, batch=setting.batch, context=setting.context))

    def one(params: Any, windows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def loss(logits: jax.Array) -> jax.Array:
            return sj.loss.cross_entropy(logits, windows[:, 1:])

        tokens = windows[:, :-1]
        whole, without = sj.skip.losses(model, params, tokens, loss)
        last = model.apply(params, tokens, measure=sj.probe.last_token)[1].measure
        return whole, without, sj.probe.angular_distance(**last)

    over_batches = jax.jit(lambda params: jax.lax.map(lambda windows: one(params, windows), batches))
    by_seed = [[np.asarray(x, np.float64).mean(0) for x in over_batches(each)] for each in params]
    loss, without, distance = (np.stack(each) for each in zip(*by_seed, strict=True))
    return Dropped(loss=loss, cost=without - loss[:, None], distance=distance)


def predictions(results: dict[str, Dropped]) -> list[Prediction]:
    """Stated beforehand, from the papers and a pilot with 16 layers and 500 steps."""
    stated: list[Prediction] = []

    def predict(claim: str, needed: set[str], value: Any, relation: Any, threshold: float) -> None:
        if needed <= set(results):
            estimate = Estimate.of(value())
            stated.append(Prediction(claim=claim, found=estimate, relation=relation, threshold=threshold))

    def turned(name: str) -> np.ndarray:
        turns = results[name].turns()
        half = turns.shape[1] // 2
        return turns[:, half:].mean(1) / turns[:, :half].mean(1)

    pre, scaled, post = "pre_norm", "layer_norm_scaling", "post_norm"
    deeper = {name: dropped.deeper_half for name, dropped in results.items()}
    predict("pre-norm: cost of a layer of the deeper half, nats", {pre}, lambda: deeper[pre], "below", 0.02)
    predict(
        "pre-norm: cost of the first layer over that",
        {pre},
        lambda: results[pre].cost[:, 0] / np.maximum(deeper[pre], 1e-6),
        "above",
        5.0,
    )
    predict("pre-norm: turn of the deeper half over the other's", {pre}, lambda: turned(pre), "below", 1.0)
    predict(
        "1/sqrt(l) scaling makes the deeper half cost more than pre-norm's (its paper), nats",
        {pre, scaled},
        lambda: deeper[scaled] - deeper[pre],
        "above",
        0.0,
    )
    predict(
        "post-norm's deeper half costs more than pre-norm's, nats",
        {pre, post},
        lambda: deeper[post] - deeper[pre],
        "above",
        0.0,
    )
    return stated


def cost_figure(results: dict[str, Dropped]) -> alt.TopLevelMixin:
    """Chart of how much the loss rises without a layer, on an axis linear below `USED` and logarithmic above."""
    rows = []
    for name, dropped in results.items():
        for layer, costs in enumerate(dropped.cost.T, 1):
            rows += [{"recipe": name, "layer": layer, "cost": float(np.mean(costs)), "all": costs.tolist()}]
    names = list(results)
    color = alt.Color(
        "recipe:N",
        title=None,
        scale=alt.Scale(domain=names, range=[chart.PALETTE[i % len(chart.PALETTE)] for i in range(len(names))]),
    )
    y = alt.Y(
        "cost:Q",
        title="rise of the loss without the layer (nats)",
        scale=alt.Scale(type="symlog", constant=USED, nice=False),
        axis=alt.Axis(values=[0, 0.01, 0.03, 0.1, 0.3, 1, 3], format="~g"),
    )
    line = alt.Chart(alt.Data(values=rows)).mark_line(point=True, strokeWidth=2)
    x = alt.X("layer:Q", title="layer left out", axis=alt.Axis(tickMinStep=1))
    return line.encode(x=x, y=y, color=color, tooltip=["recipe:N", "layer:Q", "cost:Q"]).properties(
        width=560, height=300
    )


def report(results: dict[str, Dropped], corpus: Corpus, options: Options, command: str) -> Path:
    """Write the finding; returns its page."""
    lines, rows = [], []
    for name, dropped in results.items():
        cost = dropped.cost.mean(0)
        lines.append(
            {
                "": name,
                "validation loss": str(Estimate.of(dropped.loss)),
                "first layer": f"{cost[0]:.3f}",
                "deeper half, each": str(Estimate.of(dropped.deeper_half)),
                f"layers that cost less than {USED}": f"{int(np.sum(cost < USED))} of {len(cost)}",
                "mean turn of a layer": f"{dropped.turns().mean():.3f} pi",
            }
        )
        rows.append({"recipe": name, **{field: _short(values) for field, values in vars(dropped).items()}})
    stated = predictions(results)
    for claim in stated:
        print(f"{claim.verdict:<13}{claim.claim}: {claim.found} (must be {claim.relation} {claim.threshold:g})")
    title = "angle between x_l and x_m / pi"
    figures = {
        "cost": cost_figure(results),
        "angles": profile_chart.matrix({name: dropped.distance.mean(0) for name, dropped in results.items()}, title),
    }
    how = (
        "Cells of a sweep."
        if options.cells
        else f"{options.depth} layers, D = {options.d_model}, {options.steps} steps of B = {options.batch} windows of "
        f"{options.context} bytes at a learning rate of {options.learning_rate:g}, {options.seeds} seeds."
    )
    text = f"{how} Text: {corpus.name}. Costs in nats, on validation windows; 95 % intervals over seeds."
    return finding.write(
        options.out,
        question="Which of its layers does each recipe use?",
        setting={**plain(options), "data": corpus.facts()},
        provenance=environment.provenance(command, seeds=() if options.cells else range(options.seeds)),
        predictions=stated,
        rows=rows,
        figures=figures,
        text=finding.QUICK * options.quick + text + "\n\n" + finding.table(lines),
    )


def _short(values: np.ndarray) -> list[Any]:
    """Four digits, as nested lists; None for what is not finite."""
    if values.ndim > 1:
        return [_short(part) for part in values]
    return [float(f"{x:.4g}") if np.isfinite(x) else None for x in values]


if __name__ == "__main__":
    sys.exit(main())
