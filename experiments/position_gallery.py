"""A picture of what each position encoding does to attention.

    python -m experiments.position_gallery

One small matrix an encoding: the logit of each query (row) and key (column) when every token has the same content, so
that all that is seen is position. An encoding that acts on the stream is read out by its own dot products; one that
acts inside attention turns and shifts the logits of a constant vector. What is learned is drawn at random. The trees
are those of a real document: the source of a function of this library, read by its grammar.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax import position
from stackjax.parameter import Normal, Spec
from stackjax.position import tree

from .lab import command_line, environment, finding
from .lab.options import Finding, at_least, one_or_more, plain
from .lab.trees import grammar

D_MODEL, N_HEADS = 64, 4
TREES = (position.TreePath, position.TreeRotary, position.TreeBias)


@dataclass(frozen=True, kw_only=True)
class Options(Finding):
    """Draw the matrix that each position encoding induces.

    Exit status: 0 done; 2 bad usage; 130 interrupted.
    """

    tokens: int = 24
    """Queries and keys of the encodings that read an index."""
    seed: int = 0
    """Seed of the parameters that are drawn at random."""

    def __post_init__(self):
        one_or_more(self, "tokens")
        at_least(0, self, "seed")


USUAL = Options(out="runs/position_gallery")
QUICK = replace(USUAL, quick=True, tokens=6)


def encodings(tokens: int) -> dict[str, position.Position]:
    """Every encoding, by the name under its picture."""
    return {
        "NoPosition": position.NoPosition(),
        "Scalar": position.Scalar(period=float(tokens)),
        "Sinusoidal": position.Sinusoidal(),
        "Learned": position.Learned(n_positions=tokens),
        "Rotary": position.Rotary(),
        "Shaw": position.Shaw(max_distance=8),
        "TransformerXL": position.TransformerXL(),
        "T5Bias": position.T5Bias(n_buckets=16, max_distance=32, bidirectional=True),
        "ALiBi": position.ALiBi(),
        "FIRE": position.FIRE(threshold=tokens / 2),
        "TreePath": position.TreePath(arity=8, depth=8),
        "TreeRotary": position.TreeRotary(n_depth=2, n_levels=6),
        "TreeBias": position.TreeBias(max_steps=4, max_apart=4),
        "Both(Rotary, TreeBias)": position.Both(first=position.Rotary(), second=position.TreeBias(max_apart=4)),
    }


def reads_trees(encoding: position.Position) -> bool:
    """True if the encoding needs paths."""
    if isinstance(encoding, position.Both):
        return reads_trees(encoding.first) or reads_trees(encoding.second)
    return isinstance(encoding, TREES)


def document() -> tuple[list[str], dict[str, jax.Array]]:
    """Leaves of a real document, and their positions."""
    reading = grammar.read(inspect.getsource(tree.depth_of).encode(), "python")
    leaves = [t for t, kind in enumerate(reading.kind) if reading.kinds[kind] != grammar.GAP]
    words = [reading.token(t).decode() for t in leaves]
    return words, {"index": jnp.arange(len(leaves))[None], "path": jnp.asarray(reading.path[leaves])[None]}


def drawn(specs: Any, key: jax.Array) -> Any:
    """Parameters as they are born, but for tables of logits, which are born equal or zero: those are Gaussian."""

    def visible(spec: Spec) -> Spec:
        return replace(spec, init=Normal(1.0)) if spec.role == "relative_bias" else spec

    specs = jax.tree.map(visible, specs, is_leaf=sj.parameter.is_spec)
    return sj.parameter.realise(key, sj.parameter.declare(specs))


def induced(encoding: position.Position, where: dict[str, jax.Array], key: jax.Array) -> np.ndarray:
    """The logits of one head for tokens of equal content.

    Args:
        encoding: what acts.
        where: positions of one row of T tokens.
        key: of the parameters that are drawn.

    Returns:
        (T, T), queries by keys.
    """
    length = where["index"].shape[1]
    x = jnp.zeros((1, length, D_MODEL))
    if encoding.acts_on(("embed",)):
        x = encoding.embed(drawn(encoding.stream_spec(D_MODEL), key), where, x)
        return np.asarray(x[0] @ x[0].T / jnp.sqrt(D_MODEL))
    attention = sj.Attention(n_heads=N_HEADS, position=encoding, causal=False, bias=("query", "key"))
    params = drawn(attention.spec(D_MODEL), key)
    params |= {name: jnp.ones_like(params[name]) for name in ("query_bias", "key_bias")}
    shared = drawn(attention.shared(D_MODEL), key)
    prepared = attention.prepare(shared, sj.SideInputs(position=where), length, D_MODEL)
    _, aux = attention.apply(params, x, sj.SideInputs(position=where, prepared=prepared))
    return np.asarray(aux.intermediates["logits"][0, 0])


def said(encoding: position.Position) -> tuple[str, str]:
    """The equation and the source of an encoding, from its documentation."""
    if isinstance(encoding, position.Both):
        return "both at once", "those of the two"
    first, *rest = inspect.cleandoc(type(encoding).__doc__ or "").split("\n\n")
    sources = [part.removeprefix("Source: ") for part in rest if part.startswith("Source: ")]
    return " ".join(first.split()), " ".join(" ".join(sources).split())


def by_distance_alone(matrix: np.ndarray) -> bool:
    """True if the entries of each diagonal are equal."""
    ends = 1e-4 * (np.ptp(matrix) + 1e-6)
    return all(np.ptp(np.diagonal(matrix, k)) <= ends for k in range(-len(matrix) + 1, len(matrix)))


def panel(name: str, matrix: np.ndarray, cell: int, words: list[str] | None = None) -> alt.Chart:
    """One matrix, light where the logit is high; with the tokens along the sides if there are any."""
    low, high, size = float(matrix.min()), float(matrix.max()), cell * len(matrix)
    cells = [{"i": i, "j": j, "logit": round(float(v), 4)} for (i, j), v in np.ndenumerate(matrix)]
    labels = alt.Axis(labels=False, ticks=False, domain=False)
    if words is not None:
        short = [word if len(word) < 12 else f"{word[:10]}.." for word in words]
        labels = alt.Axis(labelExpr=f"{json.dumps(short)}[datum.value]", labelFont="monospace", labelFontSize=8)
        labels.labelOverlap, labels.ticks, labels.domain = False, False, False
    return (
        alt.Chart(alt.Data(values=cells), title=alt.Title(name, subtitle=f"{low:.2g} to {high:.2g}", fontSize=11))
        .mark_rect(aria=False)
        .encode(
            x=alt.X("j:O", title=None, axis=labels),
            y=alt.Y("i:O", title=None, axis=labels),
            color=alt.Color(
                "logit:Q",
                legend=None,
                scale=alt.Scale(scheme="viridis", domain=[low, high] if high > low else [low - 1, low + 1]),
            ),
        )
        .properties(width=size, height=size)
    )


def sheet(panels: list[alt.Chart], columns: int) -> alt.TopLevelMixin:
    """Chart of many panels side by side."""
    return alt.concat(*panels, columns=columns).resolve_scale(color="independent").configure_view(stroke=None)


def run(options: Options, command: str) -> Path:
    """Draw everything; returns the page."""
    words, on_tree = document()
    words, on_tree = (words[:6], {k: v[:, :6] for k, v in on_tree.items()}) if options.quick else (words, on_tree)
    on_line = {"index": jnp.arange(options.tokens)[None]}
    key = jax.random.key(options.seed)
    rows, line, trees = [], [], []
    for name, encoding in encodings(options.tokens).items():
        of_tree = reads_trees(encoding)
        matrix = induced(encoding, on_tree if of_tree else on_line, key)
        if of_tree:
            trees.append(panel(name, matrix, 10, words))
        else:
            line.append(panel(name, matrix, 5))
        equation, source = said(encoding)
        rows.append(
            {
                "encoding": name,
                "equation": equation,
                "by distance alone": "" if of_tree else ("yes" if by_distance_alone(matrix) else "no"),
                "source": source,
            }
        )
    text = (
        "Logits of a query (row) and a key (column) of equal content, dark to light from the lowest to the highest, "
        "which stand above each panel. Learned numbers are drawn at random, so what counts is which entries are equal. "
        "Whether a matrix depends on the distance alone is read off it. The tokens of the trees are the leaves of\n\n"
        f"```python\n{inspect.getsource(tree.depth_of).strip()}\n```\n\n"
    )
    return finding.write(
        options.out,
        question="What does each position encoding do to attention?",
        setting=plain(options),
        predictions=[],
        rows=rows,
        figures={"line": sheet(line, 5), "tree": sheet(trees, 2)},
        text=finding.QUICK * options.quick + text + finding.table(rows),
        provenance=environment.provenance(command, seeds=(options.seed,)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program = "experiments.position_gallery"
    return command_line.main(
        program, usual=USUAL, quick=QUICK, prepare=lambda options: options, run=run, arguments=arguments
    )


if __name__ == "__main__":
    raise SystemExit(main())
