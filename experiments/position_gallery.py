"""A picture of what each position encoding does to attention.

    python -m experiments.position_gallery

One small matrix an encoding: the logit of each query (row) and key (column) when every token has the same content, so
that all that is seen is position. An encoding that acts on the stream is read out by its own dot products; one that
acts inside attention turns and shifts the logits of a constant vector. What is learned is drawn at random. The trees
are those of a real document: the source of a function of this library, read by its grammar.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

from stackjax.position import tree

from .lab import command_line, environment, finding
from .lab.options import Finding, at_least, one_or_more, plain
from .lab.position_matrix import document, encodings, equation_and_source, induced, panel, reads_trees


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


def by_distance_alone(matrix: np.ndarray) -> bool:
    """True if the entries of each diagonal are equal."""
    ends = 1e-4 * (np.ptp(matrix) + 1e-6)
    return all(np.ptp(np.diagonal(matrix, k)) <= ends for k in range(-len(matrix) + 1, len(matrix)))


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
        equation, source = equation_and_source(encoding)
        rows.append(
            {
                "encoding": name,
                "equation": equation,
                "by distance alone, W = 1": "" if of_tree else ("yes" if by_distance_alone(matrix) else "no"),
                "source": source,
            }
        )
    text = (
        "Logits of a query (row) and a key (column) of equal content, dark to light from the lowest to the highest, "
        "which stand above each panel. Learned numbers are drawn at random, so what counts is which entries are equal. "
        "Whether a matrix depends on the distance alone is read off it, and holds for query and key weights of one "
        "(W = 1): what is added to the stream, as sinusoids are, depends on it no longer once weights are learned. The "
        "tokens of the trees are the leaves of\n\n"
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
