"""The page of a recipe, and the table of all recipes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stackjax.recipe import NAMES, Geometry, Recipe

from ..lab import finding
from ..lab.committed import result
from ..lab.documented import documented
from ..lab.headline import NO_GAIN, STUCK
from ..lab.store import Json
from . import implementation, readings

REFERENCE = "pre_norm"
"""Recipe that every chart and every cost is compared with."""
NUMBERS_AT = (2, 8, 32, 128, 512)
"""Depths whose numbers are tabulated."""
ROLES = ("query", "value", "out", "up", "down")
"""Roles of the matrices whose init and learning rate are tabulated."""


def page(name: str, birth: Json, reference: Json) -> str:
    """The page of the recipe of this name, in Markdown.

    Args:
        name: a key of `stackjax.recipe.NAMES`.
        birth: row of `birth.profile`, with its setting.
        reference: that of `REFERENCE`.
    """
    recipe = NAMES[name]()
    equation, source = documented(type(recipe))
    rows = readings.points(name)
    sections = {
        None: f"{_code(equation)}\n\nSource: {source or 'none; a control of this library.'}\n\n"
        f"`sj.recipe.{_call(recipe)}`, or `{name}` where a command asks for recipes.",
        "The lines that are it": f"```python\n{implementation.of_recipe(recipe)}\n```\n\nModule `{_module(recipe)}`.",
        "Numbers by depth": numbers(recipe),
        "Loss against depth": f"![{name}: loss against depth, and each layer at birth](figures/{name}.svg)\n\n"
        + losses(rows),
        "At birth": at_birth(birth, reference),
        "Cost": cost(name),
        "When it fails": failures(name, rows, birth),
        "What these data do not carry": limits(name, rows, birth),
    }
    return f"# {type(recipe).__name__}\n\n" + _joined(sections) + "\n\n[All recipes](README.md)\n"


def index(names: Sequence[str]) -> str:
    """The table of all recipes."""
    rows = []
    for name in names:
        recipe = NAMES[name]()
        points = {point["depth"]: point for point in readings.points(name)}
        losses = {f"{depth:,}": _loss(points.get(depth)) for depth in readings.depths()}
        rows.append({"recipe": f"[{name}]({name}.md)", "equation": _code(documented(type(recipe))[0]), **losses})
    setting = result("depth_atlas")["setting"]
    return (
        "# Recipes\n\nOne page each: equation, source, the lines that are the implementation, what it does at birth, "
        "loss against depth, cost, and when it fails. In this table: validation loss in nats after "
        f"{setting['steps']} steps at the best learning rate, by layers, from the "
        f"[depth atlas](../depth_atlas/discussion.md), at width {setting['d_model']} with {setting['batch']} windows "
        f"of {setting['context']} bytes a step; counting single bytes gives {readings.unigram():.2f}, and what "
        "is not below the column of 0 layers gained nothing.\n\n"
        f"{finding.table(rows)}\n\nMade by `python -m experiments.pages --out experiments/results`.\n"
    )


def _loss(point: Json | None) -> str:
    return "" if point is None else point["word"] if point["loss"] is None else f"{point['loss']:.2f}"


def _code(equation: str) -> str:
    return f"`{equation}`" if "`" not in equation else equation


def _call(recipe: Recipe) -> str:
    text = repr(recipe)
    return text if text.endswith(")") else f"{text}()"


def _module(recipe: Recipe) -> str:
    return type(recipe).__module__


def _joined(sections: dict[str | None, str]) -> str:
    parts = [text if heading is None else f"## {heading}\n\n{text}" for heading, text in sections.items() if text]
    return "\n\n".join(parts)


def numbers(recipe: Recipe) -> str:
    """Table of a recipe's coefficients, gains and learning rates at some depths; what is 1 everywhere is left out."""
    columns: dict[str, dict[int, np.ndarray]] = {}
    width = result("depth_atlas")["setting"]["d_model"]
    for depth in NUMBERS_AT:
        geometry = Geometry(depth=depth, d_model=width)
        for name, value in recipe.coefficients(geometry)["sublayer"].items():
            columns.setdefault(name, {})[depth] = np.asarray(value)
        for role in ROLES:
            gain, multiplier = recipe.gain(role, geometry), recipe.multiplier(role, geometry)
            columns.setdefault(f"init of {role}", {})[depth] = np.asarray(gain)
            columns.setdefault(f"learning rate of {role}", {})[depth] = np.asarray(multiplier.learning_rate)
    told = {
        name: values
        for name, values in columns.items()
        if all(value.size <= 2 * depth for depth, value in values.items())
        and any(not np.allclose(value, 1) for value in values.values())
    }
    init = f"Matrices begin as `{_named(recipe.default_init)}`."
    if not told:
        return f"{init} No coefficient, init or learning rate depends on depth: all factors are 1."
    rows = [{"layers": depth, **{name: _span(values[depth]) for name, values in told.items()}} for depth in NUMBERS_AT]
    return (
        f"{init} Factors, from the first layer to the last where they differ (at width {width}):\n\n"
        + finding.table(rows)
    )


def _named(init: Any) -> str:
    return getattr(init, "__name__", None) or repr(init)


def _span(value: np.ndarray) -> str:
    ends = (float(value.flat[0]), float(value.flat[-1]))
    first, last = (f"{end:.3g}" if abs(end) < 1000 else f"{end:,.0f}" for end in ends)
    return first if first == last else f"{first} to {last}"


def losses(rows: Sequence[Json]) -> str:
    """Table of a recipe's final losses, with intervals where several seeds were run."""
    cells = [
        {
            "layers": f"{row['depth']:,}",
            "best learning rate": "" if row["learning_rate"] is None else f"{row['learning_rate']:g}",
            "validation loss (nats)": "" if row["estimate"] is None else str(row["estimate"]),
            "less that of no layers": _gain(row),
            "seeds": "" if row["estimate"] is None else row["estimate"].n,
            "": row["word"],
        }
        for row in rows
    ]
    setting = result("depth_atlas")["setting"]
    words = (
        f"Decoders of width {setting['d_model']}, {setting['steps']} steps of {setting['batch']} windows of "
        f"{setting['context']} bytes, each depth at its best learning rate ([depth atlas](../depth_atlas/finding.md)); "
        "intervals are 95 % over seeds, paired where losses are compared. *Trained* is below no layers, by more than "
        "the interval where there is one."
    )
    return f"{words}\n\n{finding.table(cells)}"


def _gain(row: Json) -> str:
    """The loss of a depth less that without layers, with its interval where it has one."""
    if row["gain"] is None:
        return ""
    ends = "" if row["gain_low"] is None else f" [{row['gain_low']:.3f}, {row['gain_high']:.3f}]"
    return f"{row['gain']:.3f}{ends}"


def at_birth(birth: Json, reference: Json) -> str:
    """Sentences on the size of the stream and on the gradient in each layer before the first step."""
    words = (
        f"{birth['depth']} layers of width {birth['d_model']} on random bytes, mean over {birth['seeds']} seeds "
        "(the two panels on the right above)."
    )
    sentences = [
        _ends(birth, "stream_rms", "The size (RMS) of the stream", "behind the first layer", "behind the last")
    ]
    sentences.append(_ends(birth, "stream_gradient", "The gradient |dLoss/dx|", "at the embedding", "at the top"))
    if birth["recipe"] != REFERENCE and None not in birth["stream_gradient"]:
        own, other = (row["stream_gradient"][0] / row["stream_gradient"][-1] for row in (birth, reference))
        sentences.append(
            f"Bottom over top is {own:.3g} for the gradient; for [{REFERENCE}]({REFERENCE}.md) it is {other:.3g}."
        )
    more = readings.others(birth["recipe"], "recipe", ("depth_atlas", "recipes", "positions"))
    links = ", ".join(f"[{name}](../{name}/finding.md)" for name in more)
    also = f" Also in {links}." if more else " No other committed experiment looks into its layers."
    return " ".join([words, *sentences]) + also


def _ends(birth: Json, measure: str, what: str, first: str, last: str) -> str:
    values = birth[measure]
    if None in values:
        return f"{what} is not finite."
    return f"{what} is {values[0]:.3g} {first} and {values[-1]:.3g} {last}."


def cost(name: str) -> str:
    """Table of what a recipe costs, beside what the reference does."""
    check, other = readings.check(name), readings.check(REFERENCE)
    if check is None or other is None:
        return "Not measured."
    sizes = {each: readings.size(each, 32) for each in (name, REFERENCE)}
    temp = check["temp_bytes"] or {}
    same_depth = check["depth"] == other["depth"]

    def beside(value: float | None, reference: float | None, form: str) -> str:
        if value is None:
            return "not measured"
        if name == REFERENCE or not reference:
            return format(value, form)
        return f"{value:{form}} ({value / reference:.2f} times {REFERENCE}'s)"

    rows = []
    own, usual = sizes[name], sizes[REFERENCE]
    if own and usual:
        rows.append({"what": "parameters, 32 layers", "": beside(own["params"], usual["params"], ",")})
        flops = (own["flops"] / own["tokens"], usual["flops"] / usual["tokens"])
        rows.append({"what": "FLOPs a token in training, 32 layers", "": beside(*flops, ",.0f")})
    depth = f"{check['depth']:,} layers"
    seconds = ("step_seconds", "compile_seconds")
    values = [beside(check[field], other[field] if same_depth else None, ".2f") for field in seconds]
    rows += [
        {"what": f"seconds a step, {depth}", "": values[0]},
        {"what": f"seconds to compile, {depth}", "": values[1]},
    ]
    for remat in ("none", "layer", "nested"):
        if temp.get(remat):
            reference = other["temp_bytes"][remat] / 2**20 if same_depth else None
            text = beside(temp[remat] / 2**20, reference, ",.0f")
            rows.append({"what": f'temporary MiB, {depth}, `remat="{remat}"`', "": text})
    return finding.table(rows)


def failures(name: str, rows: Sequence[Json], birth: Json) -> str:
    """Sentences on where a recipe was seen to fail, or that it was not."""
    said = []
    words = {
        "stuck": f"less than {STUCK:g} nats below counting single bytes ({readings.unigram():.2f} nats), or above it",
        NO_GAIN: f"no better than the same recipe without layers ({readings.without_layers(name):.2f} nats)",
        "diverged": "diverged at every learning rate tried",
        "failed": "raised an error",
    }
    for word, meaning in words.items():
        alike = [row for row in rows if row["word"] == word]
        if alike:
            depths = ", ".join(f"{row['depth']:,}" for row in alike)
            ends = ", ".join(f"{row['loss']:.2f}" for row in alike if row["loss"] is not None)
            said.append(f"At {depths} layers{f' ({ends})' if ends else ''}: {meaning}.")
    for row in rows:
        if row["diverged"] and row["word"] != "diverged":
            rates = ", ".join(f"{rate:g}" for rate in row["diverged"])
            said.append(f"At {row['depth']:,} layers a run with learning rate {rates} diverged.")
    trained = [row for row in rows if row["word"] == "trained"]
    if len(trained) > 1:
        best, deepest = min(trained, key=lambda row: row["loss"]), trained[-1]
        worse = deepest["loss"] - best["loss"]
        if worse > 0.1:
            said.append(
                f"In the same number of steps {deepest['depth']:,} layers end {worse:.2f} nats above {best['depth']:,}."
            )
    check = readings.check(name)
    if check is not None and check["status"] != "finite":
        said.append(f"The first steps of {check['depth']:,} layers are {check['status']}.")
    elif check is not None and check["losses"][-1] > check["losses"][0]:
        ends = f"{check['losses'][0]:.2f} to {check['losses'][-1]:.2f}"
        said.append(f"The first {len(check['losses'])} steps of {check['depth']:,} layers raise the loss, {ends}.")
    if None in birth["stream_gradient"]:
        said.append(f"At birth the gradient of {birth['depth']} layers is not finite.")
    if not said:
        said = ["In what was run it did not: it trained at every depth, and no rate diverged."]
    return "\n".join(f"- {sentence}" for sentence in said)


def limits(name: str, rows: Sequence[Json], birth: Json) -> str:
    """Sentences on what was not run."""
    setting = result("depth_atlas")["setting"]
    said = []
    single = [f"{row['depth']:,}" for row in rows if row["estimate"] is not None and row["estimate"].n < 2]
    if single:
        said.append(f"One seed at {', '.join(single)} layers: differences of a few hundredths of a nat are noise.")
    missing = [f"{depth:,}" for depth in readings.depths() if depth not in {row["depth"] for row in rows}]
    if missing:
        said.append(f"Not trained at {', '.join(missing)} layers.")
    edges = [f"{row['depth']:,} ({row['edge']})" for row in rows if row["edge"]]
    if edges:
        said.append(
            f"The best learning rate is the end of those tried at {', '.join(edges)}: a wider grid may do better."
        )
    said.append(
        f"One width ({setting['d_model']}), one kind of text, {setting['steps']} steps: which recipe starts to learn "
        "at a depth, not which is best after a day."
    )
    return "\n".join(f"- {sentence}" for sentence in said)
