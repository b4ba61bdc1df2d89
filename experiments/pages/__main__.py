"""One page a recipe and a position, with an index of each, from the code and the committed results.

    python -m experiments.pages --out experiments/results

A page gives the equation, the source, the lines of the library that are the implementation, figures, cost, and when it
fails, all read from the library's documentation and source and from `experiments/results`. What no committed result
has is measured here and kept in `recipes/result.json` and `positions/result.json`: each layer at birth, and the matrix
of a position. Measurements that are there for an equal description are not made again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import vl_convert

from stackjax.recipe import NAMES

from ..lab import chart, command_line, environment, names, store
from ..lab.committed import RESULTS
from ..lab.grid import Setting
from ..lab.position_matrix import document, encodings, induced, reads_trees
from ..lab.store import Json
from . import birth, position_page, recipe_chart, recipe_page

TOKENS = 24
"""Queries and keys in the matrix of an encoding."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write one page a recipe and a position.

    Exit status: 0 done; 2 bad usage; 130 interrupted.
    """

    out: str
    """Folder in which `recipes` and `positions` are made."""
    quick: bool = False
    """Only two recipes and two positions, measured small, to see that everything runs."""


USUAL = Options(out="runs/pages")
QUICK = replace(USUAL, quick=True)
SIZES = Setting(steps=1, d_model=64, n_heads=4, context=64, batch=4)
QUICK_SIZES = replace(SIZES, d_model=8, n_heads=2, context=6, batch=2)
DEPTH, SEEDS = 48, 3
"""Layers and inits of the profiles at birth."""


def about_recipes(quick: bool) -> dict[str, Json]:
    """Recipes and sizes that identify each profile at birth, by name."""
    setting, depth, seeds = (QUICK_SIZES, 2, 1) if quick else (SIZES, DEPTH, SEEDS)
    shown = (recipe_page.REFERENCE, "deepnorm") if quick else NAMES
    size = {"depth": depth, "seeds": seeds, "d_model": setting.d_model, "context": setting.context}
    return {name: {"recipe": name, "description": names.describe(NAMES[name]()), **size} for name in shown}


def about_positions(quick: bool) -> dict[str, Json]:
    """Positions that identify each matrix, by name; with the tokens along its sides where they are those of a tree."""
    words = document()[0][:TOKENS]
    shown = list(position_page.pages(encodings(TOKENS)).items())[: 2 if quick else None]
    return {
        name: {"position": name, "description": names.describe(encoding)}
        | ({"words": words} if reads_trees(encoding) else {})
        for name, encoding in shown
    }


def measured_recipe(about: Json, quick: bool) -> Json:
    """A recipe at birth."""
    setting = QUICK_SIZES if quick else SIZES
    recipe = NAMES[about["recipe"]]()
    return {**about, **birth.profile(recipe, setting, depth=about["depth"], seeds=about["seeds"])}


def measured_position(about: Json) -> Json:
    """The matrix of a position, in four digits."""
    encoding = position_page.pages(encodings(TOKENS))[about["position"]]
    line = {"index": jnp.arange(TOKENS)[None]}
    where = {name: x[:, :TOKENS] for name, x in document()[1].items()} if reads_trees(encoding) else line
    matrix = induced(encoding, where, jax.random.key(0))
    return {**about, "matrix": [[float(f"{x:.4g}") for x in row] for row in matrix]}


def measured(
    folder: Path, abouts: Mapping[str, Json], measure: Callable[[Json], Json], provenance: Json
) -> dict[str, Json]:
    """Measurements in a folder's `result.json`: those that are there for an equal description stay, others are made.

    Args:
        folder: of the pages.
        abouts: what is to be measured, by name.
        measure: from what it is about to the whole row.
        provenance: of those that are made, from `environment.provenance`; each is written when it is made.

    Returns:
        Rows by name.
    """
    record = store.read(folder / "result.json") or {**provenance, "rows": []}
    rows: dict[str, Json] = {}
    for name, about in abouts.items():
        there = (row for row in record["rows"] if all(row.get(key) == value for key, value in about.items()))
        if (row := next(there, None)) is None:
            row = measure(about)
            record = {**provenance, "rows": [*record["rows"], row]}
            store.write(folder / "result.json", json.dumps(record) + "\n")
        rows[name] = row
    store.write(folder / "result.json", json.dumps({**record, "rows": list(rows.values())}) + "\n")
    return rows


def written(recipes: Mapping[str, Json], positions: Mapping[str, Json]) -> dict[str, str]:
    """Every page by its path, as text."""
    reference = recipes[recipe_page.REFERENCE]
    pages = {f"recipes/{name}.md": recipe_page.page(name, row, reference) for name, row in recipes.items()}
    pages["recipes/README.md"] = recipe_page.index(list(recipes))
    shown = position_page.pages(encodings(TOKENS))
    pages |= {f"positions/{name}.md": position_page.page(name, shown[name]) for name in positions}
    pages["positions/README.md"] = position_page.index({name: shown[name] for name in positions})
    return pages


def drawn(recipes: Mapping[str, Json], positions: Mapping[str, Json]) -> dict[str, tuple[Any, alt.TopLevelMixin]]:
    """Every figure by its path: what it shows, and the chart."""
    births = dict(recipes)
    figures: dict[str, tuple[Any, alt.TopLevelMixin]] = {}
    for name in recipes:
        points = recipe_chart.figure_data(name, births)
        figures[f"recipes/figures/{name}.svg"] = points, recipe_chart.figure(name, points)
    for name, row in positions.items():
        points = position_page.figure_data(name, row)
        figures[f"positions/figures/{name}.svg"] = points, position_page.figure(name, row, points)
    return figures


def mark(points: Any) -> str:
    """The line at the end of a figure's file that says which numbers it shows."""
    return f"<!-- numbers {store.digest(points)} -->\n"


def prepare(options: Options) -> Options:
    """The options, once what the folder holds can be read.

    Raises:
        ValueError: a file in it is damaged; there are no committed results.
    """
    if not RESULTS.is_dir():
        raise ValueError(f"pages are made from the committed results, and {RESULTS} is not there; run in a checkout")
    for folder in ("recipes", "positions"):
        store.read(Path(options.out) / folder / "result.json")
    return options


def run(options: Options, command: str) -> Path:
    """Measure what is not there, and write all pages; returns the index of recipes."""
    out = Path(options.out)
    quick, origin = options.quick, environment.provenance(command, seeds=range(SEEDS))
    recipes = measured(out / "recipes", about_recipes(quick), lambda about: measured_recipe(about, quick), origin)
    positions = measured(out / "positions", about_positions(quick), measured_position, origin)
    for path, text in written(recipes, positions).items():
        store.write(out / path, text)
    for path, (points, figure) in drawn(recipes, positions).items():
        svg = vl_convert.vegalite_to_svg({**figure.to_dict(validate=False), "config": {**chart.theme(), "aria": False}})
        store.write(out / path, svg.rstrip() + "\n" + mark(points))
    return out / "recipes" / "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.main(
        "experiments.pages", usual=USUAL, quick=QUICK, prepare=prepare, run=run, arguments=arguments
    )


if __name__ == "__main__":
    raise SystemExit(main())
