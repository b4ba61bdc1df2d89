"""The benchmark's results as tables, a figure and a page."""

import json
from pathlib import Path
from typing import Any

import altair as alt

from ..lab import chart, environment, store
from ..lab.finding import Estimate, table
from .program import Row
from .verdict import TORCH, best_peer, groups, judge

WIDTH, HEIGHT = 240, 180

ABOUT_TRAINING = """A peer is the same model and optimiser, written with another library; unrolled is stackjax without \
its scan. Remat: what the backward pass computes again, nothing (none) or the inside of each layer (layer). Compile: \
seconds of tracing and compiling init, optimiser and step; of PyTorch, wall seconds of building and the first step. \
Step: median seconds of several steps, taken in turn by peers in one process; beside it, the same over that of the \
fastest JAX peer other than stackjax and over that of PyTorch eager (torch). Temporaries: XLA's own analysis of the \
whole step. Equations: those of the step's jaxpr. Of matmul rate: model FLOPs a second over the rate of the fastest \
matrix product; MFU: over the peak that the device's vendor states. Model FLOPs are those of the matrix products, \
nothing recomputed, masked entries of attention counted."""

ABOUT_REMAT = "Temporaries, by XLA's own analysis, of loss and gradient alone and of the whole step with its optimiser."

ABOUT_SWEEP = """Runs of a sweep, which differ in learning rate and seed: all at once by one program (vmap), or one \
after another, by the same program with a single run in it (a vmap of one) or by a program of one run. Seconds are \
medians, of a step those of all runs together. The ratio has a 95 % interval over rounds: below 1, all at once takes \
less time."""

ABOUT_DECODING = """A GPT-2 with the same random weights in both libraries. Tokens/s: new tokens of all sequences of \
the batch a second, reading the prompt included, compiling not. Same tokens: share of the new tokens that both choose; \
behind the first that differs, the two read different texts."""

ABOUT_PACKED = """Documents of many lengths, most of them short: each in a row of its own, filled up with padding \
(padded), or as many to a row as have room (packed). Tokens that count are those that the loss counts."""


def training(results: dict[str, Any]) -> list[Row]:
    """A line for each peer at each depth and rematerialisation."""
    lines = []
    for group in groups(results["rows"]):
        best = best_peer(group, "step_seconds")
        eager = group.get(TORCH)
        for row in group.values():
            lines.append(
                {
                    "layers": row["depth"],
                    "remat": row["remat"],
                    "peer": row["peer"],
                    "compile s": f"{row['compile_seconds']:.1f}",
                    "step s": _number(row["step_seconds"]),
                    "/ best JAX peer": _ratio(row, best),
                    "/ PyTorch eager": _ratio(row, eager),
                    "temporaries MiB": "" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 2**20:.1f}",
                    "equations": row["equations"] or "",
                    "of matmul rate": _share(results, row, results["matmul_flops_per_second"]),
                    **({"MFU": _share(results, row, results["peak"])} if results["peak"] else {}),
                }
            )
    return lines


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g}"


def _ratio(row: Row, other: Row | None) -> str:
    if other is None or not row["step_seconds"] or not other["step_seconds"]:
        return ""
    return f"{row['step_seconds'] / other['step_seconds']:.2f}"


def _share(results: dict[str, Any], row: Row, rate: float) -> str:
    if not row["step_seconds"]:
        return ""
    return f"{100 * results['model_flops'][str(row['depth'])] / row['step_seconds'] / rate:.0f} %"


def remat(results: dict[str, Any]) -> list[Row]:
    """Table of what rematerialisation costs and saves in one deep stack."""
    peer = results["remat_peer"]
    rows = [*results["remat"], *([peer] if peer else [])]
    return [
        {
            "layers": row["depth"],
            "peer": row["peer"],
            "remat": row["remat"],
            "step s": _number(row["step_seconds"]),
            "gradient's temporaries MiB": f"{row['gradient_bytes'] / 2**20:.1f}",
            "step's temporaries MiB": "" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 2**20:.1f}",
        }
        for row in rows
    ]


def sweep(results: dict[str, Any]) -> list[Row]:
    """Eight runs at once or one after another."""
    return [
        {
            "recipe": row["recipe"],
            "layers": row["depth"],
            "width": row["d_model"],
            **{f"compile, {name}, s": f"{seconds:.1f}" for name, seconds in row["compile_seconds"].items()},
            **{f"step, {name}, s": f"{seconds:.3g}" for name, seconds in row["seconds"].items()},
            "step, vmap / one after another": str(Estimate.of(row["ratios"])),
        }
        for row in results["sweep"]
    ]


def decoding(results: dict[str, Any]) -> list[Row]:
    """Tokens a second."""
    return [
        {
            **{"layers": row["depth"], "width": row["d_model"], "type": row["dtype"], "batch": row["batch"]},
            **{"prompt": row["prompt"], "new tokens": row["n_tokens"]},
            **{f"{name}, tokens/s": f"{rate:.0f}" for name, rate in row["tokens_per_second"].items()},
            "ratio": f"{row['tokens_per_second']['stackjax'] / row['tokens_per_second']['transformers']:.1f}",
            "same tokens": f"{100 * row['same_tokens']:.0f} %",
        }
        for row in results["decode"]
    ]


def packed(results: dict[str, Any]) -> list[Row]:
    """Tokens that count, a second, by how documents lie in rows."""
    return [
        {
            **{"layers": row["depth"], "remat": row["remat"], "documents": row["way"]},
            "tokens that count": f"{100 * row['share']:.0f} %",
            "step s": _number(row["step_seconds"]),
            "temporaries MiB": f"{row['temp_bytes'] / 2**20:.1f}",
            "counted tokens/s": f"{row['tokens_per_second']:,.0f}",
        }
        for row in results["packed"]
    ]


def figure(rows: list[Row]) -> alt.TopLevelMixin:
    """Compile time, step time and memory against depth, a column for each kind of rematerialisation."""
    shown = [
        {
            "peer": row["peer"],
            "remat": f"remat {row['remat']}",
            "layers": row["depth"],
            "compile": row["compile_seconds"],
            "step": row["step_seconds"],
            "memory": row["temp_bytes"] and row["temp_bytes"] / 2**20,
        }
        for row in rows
        if row["remat"] in ("none", "layer")
    ]
    names = list(dict.fromkeys(row["peer"] for row in shown))
    depths = alt.Axis(values=sorted({row["layers"] for row in shown}))
    scale = alt.Scale(domain=names, range=list(chart.PALETTE[: len(names)]))
    titles = {"compile": "compile (s)", "step": "training step (s)", "memory": "temporaries (MiB)"}
    panels = [
        alt.Chart(alt.Data(values=[row for row in shown if row[field]]), width=WIDTH, height=HEIGHT)
        .mark_line(point=True)
        .encode(
            x=alt.X("layers:Q", scale=alt.Scale(type="log", base=2, nice=False), title="layers", axis=depths),
            y=alt.Y(f"{field}:Q", scale=alt.Scale(type="log"), title=title),
            color=alt.Color("peer:N", scale=scale, title=None),
            column=alt.Column("remat:N", title=None, sort=["remat none", "remat layer"]),
        )
        for field, title in titles.items()
    ]
    return alt.vconcat(*panels)


def markdown(results: dict[str, Any]) -> str:
    """The whole page."""
    shape = ", ".join(f"{name} {value}" for name, value in results["size"].items() if name != "depth")
    rate = results["matmul_flops_per_second"] / 1e9
    note = "**A quick run: it shows that everything runs, and nothing else.**\n\n" if results["quick"] else ""
    flags = f"XLA_FLAGS {results['xla_flags']}. " if results.get("xla_flags") else ""
    peers = ", ".join(dict.fromkeys(row["peer"] for row in results["rows"]))
    parts = {
        "What rematerialisation saves and costs": (remat, ABOUT_REMAT),
        f"{results['sweep'][0]['runs']} runs of a sweep at once" if results["sweep"] else "": (sweep, ABOUT_SWEEP),
        "Greedy decoding": (decoding, ABOUT_DECODING),
        "Documents padded and packed": (packed, ABOUT_PACKED),
    }
    more = {title: (about, rows) for title, (make, about) in parts.items() if (rows := make(results))}
    title = f"The same model and optimiser in {peers}" if peers else ", ".join(more) or "stackjax beside its peers"
    model = (
        f" {shape}. {flags}The fastest of the model's own matrix products, alone: {rate:,.1f} GFLOP/s." if peers else ""
    )
    sections = [
        f"# {title}\n\n{note}{environment.described(results)}\n\n"
        f"{results['cores']} cores in use, load {results['load']} at the start; {results['clock']}.{model}"
    ]
    if targets := judge(results):
        about = (
            "Ratios are stackjax's number over the other's. Targets marked (aim) are hoped for, the others required."
        )
        sections.append(f"## Targets\n\n{about}\n\n{table([target.row for target in targets])}")
    if peers:
        sections.append(f"## Training\n\n{ABOUT_TRAINING}\n\n{table(training(results))}")
    if _many_depths(results):
        sections.append(
            "![compile time, step time and memory against depth](figures/bench.svg)\n\nPeers with equal numbers hide "
            "each other's lines; the table has them all."
        )
    sections += [f"## {title}\n\n{about}\n\n{table(rows)}" for title, (about, rows) in more.items()]
    if results["skipped"]:
        sections.append("## Left out\n\n" + "\n".join(f"- {line}" for line in results["skipped"]))
    return "\n\n".join(sections) + "\n"


def _many_depths(results: dict[str, Any]) -> bool:
    return len({row["depth"] for row in results["rows"]}) > 1


def save(results: dict[str, Any], folder: Path) -> None:
    """Write result.json, finding.md and, once there are several depths, their figure."""
    store.write(folder / "result.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    store.write(folder / "finding.md", markdown(results))
    if _many_depths(results):
        chart.export(folder / "figures", "bench", figure(results["rows"]).to_dict(validate=False))
