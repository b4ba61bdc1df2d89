"""Which of its layers does each recipe use?

    python -m experiments.layer_drop
    python -m experiments.layer_drop --cells runs/mine/cells/pre_norm-L24-lr0.001-s0-0123456789

For trained models: how much the loss rises when one layer is left out, for each layer in turn; when the least costly
ones are left out together; and how far each layer turns the stream, as the angle between x_l and x_m at the last token
(Gromov et al. 2024, arXiv:2403.17887). The models are cells of a sweep that was run with `--keep-params`, or trained on
the spot: by default pre-norm and 1/sqrt(l) scaling, each with the two inits, for the scaling's paper has an init of its
own; DeepNorm and post-norm.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import stackjax as sj
from stackjax.parameter import Normal, xavier
from stackjax.recipe import LayerNormScaling, PreNorm, Recipe

from ..lab import command_line, data, environment, finding, lanes, names, profile_chart, store
from ..lab.corpus import Corpus
from ..lab.finding import Estimate, Prediction
from ..lab.grid import Setting
from ..lab.options import Recipes, Training, at_least, one_or_more, plain
from . import chart
from .dropped import USED, Dropped, drop

SMALL_INIT, XAVIER = " from N(0.02)", " from Xavier"
"""Endings of the names of recipes with the other's init."""


@dataclass(frozen=True, kw_only=True)
class Options(Training):
    """Leave out layers of trained models, one by one and together, and measure the angles between their layers.

    Exit status: 0 done, whatever the verdicts; 2 bad usage; 130 interrupted.
    """

    cells: tuple[str, ...] = ()
    """Folders of cells with params.npz, trained on the text that --data names; none means to train the recipes here."""
    recipes: Recipes = field(
        default_factory=lambda: {
            "pre_norm": PreNorm(),
            "layer_norm_scaling": LayerNormScaling(),
            f"pre_norm{SMALL_INIT}": PreNorm(default_init=Normal(0.02)),
            f"layer_norm_scaling{XAVIER}": LayerNormScaling(default_init=xavier),
            **names.recipes("deepnorm", "post_norm"),
        }
    )
    """Trained here: names, or dotted paths of your own."""
    depth: int = 16
    """Layers of what is trained here."""
    eval_batches: int = 16
    """Batches of validation windows that losses and angles are averaged over."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "depth")
        at_least(2, self, "eval_batches")
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


def predictions(results: dict[str, Dropped]) -> list[Prediction]:
    """Stated beforehand: from the papers, a pilot with 16 layers and 500 steps, and a first run without the other inits
    and without layers left out together.
    """
    stated: list[Prediction] = []

    def predict(claim: str, needed: set[str], value: Any, relation: Any, threshold: float) -> None:
        if needed <= set(results):
            estimate = Estimate.of(value())
            stated.append(Prediction(claim=claim, found=estimate, relation=relation, threshold=threshold))

    def turned(name: str) -> np.ndarray:
        turns = results[name].turns()
        half = turns.shape[1] // 2
        return turns[:, half:].mean(1) / turns[:, :half].mean(1)

    def log_ratio(name: str) -> np.ndarray:
        return np.log(np.maximum(results[name].cost[:, 0], 1e-6) / np.maximum(deeper[name], 1e-6))

    pre, scaled, post = "pre_norm", "layer_norm_scaling", "post_norm"
    deeper = {name: dropped.deeper_half for name, dropped in results.items()}
    predict("pre-norm: cost of a layer of the deeper half, nats", {pre}, lambda: deeper[pre], "below", 0.02)
    predict(
        "pre-norm: logarithm of the cost of the first layer over that",
        {pre},
        lambda: log_ratio(pre),
        "above",
        np.log(5),
    )
    predict(
        f"pre-norm: rise without all layers that alone cost less than {USED}, together, nats",
        {pre},
        lambda: results[pre].idle_together,
        "above",
        0.12,
    )
    predict("pre-norm: turn of the deeper half over the other's", {pre}, lambda: turned(pre), "below", 1.0)
    for init, one, other in (
        ("from N(0.02)", scaled, f"{pre}{SMALL_INIT}"),
        ("from Xavier", f"{scaled}{XAVIER}", pre),
    ):
        claim = f"1/sqrt(l) scaling makes the deeper half cost more than pre-norm's (its paper), both {init}, nats"
        predict(claim, {one, other}, lambda a=one, b=other: deeper[a] - deeper[b], "above", 0.0)
        claim = f"1/sqrt(l) scaling ends below pre-norm (its paper), both {init}, nats"
        predict(claim, {one, other}, lambda a=one, b=other: results[a].loss - results[b].loss, "below", 0.0)
    predict(
        "post-norm's deeper half costs more than pre-norm's, nats",
        {pre, post},
        lambda: deeper[post] - deeper[pre],
        "above",
        0.0,
    )
    return stated


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
                f"layers that cost less than {USED}, by the mean of the seeds": f"{np.sum(cost < USED)} of {len(cost)}",
                "in each seed": ", ".join(f"{n:.0f}" for n in dropped.idle),
                "those of each seed together": str(Estimate.of(dropped.idle_together)),
                "mean turn of a layer": f"{dropped.turns().mean():.3f} pi",
            }
        )
        rows.append({"recipe": name, **{field: _short(values) for field, values in vars(dropped).items()}})
    stated = predictions(results)
    for claim in stated:
        print(f"{claim.verdict:<13}{claim.claim}: {claim.found} (must be {claim.relation} {claim.threshold:g})")
    title = "angle between x_l and x_m / pi"
    figures = {
        "cost": chart.alone(results),
        "together": chart.together(results),
        "angles": profile_chart.matrix({name: dropped.distance.mean(0) for name, dropped in results.items()}, title),
    }
    how = (
        "Cells of a sweep."
        if options.cells
        else f"{options.depth} layers, D = {options.d_model}, {options.steps} steps of B = {options.batch} windows of "
        f"{options.context} bytes at a learning rate of {options.learning_rate:g}, {options.seeds} seeds."
    )
    text = (
        f"{how} Text: {corpus.name}. The cost of a layer is the rise of the validation loss, in nats, when it alone is "
        "left out of the trained model; intervals are 95 % over seeds. Each seed has its own cheap layers, counted and "
        "chosen by their costs on one half of the windows; the cost of leaving them all out together is measured on "
        "the other half. A layer's turn is the angle between its input and its output at the last token. Counting "
        f"single bytes ends at {corpus.facts()['unigram']:.3f}: a recipe that ends near it says nothing about layers "
        "that are used."
    )
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
