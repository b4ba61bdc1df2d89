"""Matrices of position encodings: the logits that each induces where all tokens have the same content."""

import inspect
import json
from dataclasses import replace
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax import position
from stackjax.parameter import Normal, Spec
from stackjax.position import tree

from .documented import documented
from .trees import grammar

D_MODEL, N_HEADS = 64, 4
TREES = (position.TreePath, position.TreeRotary, position.TreeBias)


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


def equation_and_source(encoding: position.Position) -> tuple[str, str]:
    """The equation and the source of an encoding, from its documentation."""
    if isinstance(encoding, position.Both):
        return "both at once", "those of the two"
    return documented(type(encoding))


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
