"""Targets of the benchmark, and which of them were met."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .program import Row

OWN, TORCH = "stackjax", "torch"
JAX_PEERS = ("linen", "nnx", "equinox", "haiku")
WIDE = 512
"""Width D from which a step's time is that of its matrix products."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A claim with its bound.

    Args:
        claim: in words.
        found: what was measured.
        bound: that it must not be above, or below.
        unit: of both: "ratio" or "%".
        side: of the bound on which it is met.
    """

    claim: str
    found: float
    bound: float
    unit: str = "ratio"
    side: Literal["at most", "at least"] = "at most"

    @property
    def met(self) -> bool:
        """True if the number found is on the right side of the bound."""
        return self.found <= self.bound if self.side == "at most" else self.found >= self.bound

    @property
    def row(self) -> Row:
        """The target as a row of a table."""
        show = (lambda x: f"{100 * x:.2f} %") if self.unit == "%" else (lambda x: f"{x:.3g}")
        verdict = "met" if self.met else "**not met**"
        return {
            "target": self.claim,
            "found": show(self.found),
            "bound": f"{self.side} {show(self.bound)}",
            "": verdict,
        }


def judge(results: dict[str, Any]) -> list[Target]:
    """Every target for which there are numbers."""
    rows = results["rows"]
    trained = [*_peers(rows), *_torch(results), *_unrolled(rows), *_utilisation(results), *_matmul_share(results)]
    return [*_agreement(results), *_compile(results), *trained, *_remat(results)]


def _agreement(results: dict[str, Any]) -> Iterator[Target]:
    if results["agreement"]:
        claim = "losses of all peers over three steps from equal weights, largest relative difference"
        yield Target(claim=claim, found=results["agreement"]["largest_difference"], bound=1e-4)


def _compile(results: dict[str, Any]) -> Iterator[Target]:
    if compiles := results["compile"]:
        shallow, deep = compiles["depths"]
        claim = (
            f"compile time at {deep} layers / at {shallow}, median of {len(compiles['ratios'])} pairs in CPU seconds"
        )
        yield Target(claim=claim, found=statistics.median(compiles["ratios"]), bound=1.15)
        claim = f"equations in the jaxpr at {deep} layers / at {shallow}"
        yield Target(claim=claim, found=compiles["equations"][1] / compiles["equations"][0], bound=1.0)


def _peers(rows: list[Row]) -> Iterator[Target]:
    for group in groups(rows):
        ours = group.get(OWN)
        if ours is None or ours["remat"] not in ("none", "layer"):
            continue
        where = f"{ours['depth']} layers, remat {ours['remat']}"
        if best := best_peer(group, "step_seconds"):
            claim = f"step time / best JAX peer's ({best['peer']}), {where}"
            yield Target(claim=claim, found=ours["step_seconds"] / best["step_seconds"], bound=1.0)
        if best := best_peer(group, "temp_bytes"):
            claim = f"temporary memory / best JAX peer's ({best['peer']}), {where}"
            yield Target(claim=claim, found=ours["temp_bytes"] / best["temp_bytes"], bound=1.0)


def _torch(results: dict[str, Any]) -> Iterator[Target]:
    if results["peak"] is None:
        eager = 0.9 if results["size"]["d_model"] >= WIDE else 1.0
        aims = [(TORCH, "none", eager), (TORCH, "layer", 0.85), ("torch_compile", "none", 1.3)]
    else:
        aims = [(TORCH, "none", 1.0), (TORCH, "layer", 1.0)]
    for group in groups(results["rows"]):
        ours = group.get(OWN)
        for name, remat, bound in aims:
            other = group.get(name)
            if ours and other and ours["remat"] == remat and ours["step_seconds"] and other["step_seconds"]:
                title = {TORCH: "PyTorch eager", "torch_compile": "torch.compile"}[name]
                claim = f"step time / {title}'s, {ours['depth']} layers, remat {remat} (aim)"
                yield Target(claim=claim, found=ours["step_seconds"] / other["step_seconds"], bound=bound)


def _unrolled(rows: list[Row]) -> Iterator[Target]:
    for group in groups(rows):
        ours, other = group.get(OWN), group.get("unrolled")
        if ours and other:
            where = f"{ours['depth']} layers, remat {ours['remat']}"
            for what, field in (("step time", "step_seconds"), ("temporary memory", "temp_bytes")):
                if ours[field] and other[field]:
                    claim = f"{what} of the scan / that of the unrolled layers, {where}"
                    yield Target(claim=claim, found=ours[field] / other[field], bound=1.05)


def _utilisation(results: dict[str, Any]) -> Iterator[Target]:
    timed = [row for row in results["rows"] if row["peer"] == OWN and row["step_seconds"]]
    if results["peak"] and timed:
        best = min(timed, key=lambda row: row["step_seconds"] / row["depth"])
        share = results["model_flops"][str(best["depth"])] / best["step_seconds"] / results["peak"]
        claim = f"model FLOPs utilisation, {best['depth']} layers, remat {best['remat']}"
        yield Target(claim=claim, found=share, bound=0.5, unit="%", side="at least")


def _matmul_share(results: dict[str, Any]) -> Iterator[Target]:
    """Targets of the share of the rate of the matrix products, on a CPU, whose peak is not known."""
    for row in results["rows"]:
        if row["peer"] == OWN and row["remat"] == "none" and row["step_seconds"] and results["peak"] is None:
            flops = results["model_flops"][str(row["depth"])]
            share = flops / row["step_seconds"] / results["matmul_flops_per_second"]
            claim = f"share of the rate of the model's own matrix products, {row['depth']} layers, remat none (aim)"
            yield Target(claim=claim, found=share, bound=0.6, unit="%", side="at least")


def _remat(results: dict[str, Any]) -> Iterator[Target]:
    by_remat = {row["remat"]: row for row in results["remat"]}
    peer = results["remat_peer"]
    for remat, share, slower in (("layer", 0.03, 1.45), ("nested", 0.013, 1.8)):
        if remat not in by_remat or "none" not in by_remat:
            continue
        row, plain = by_remat[remat], by_remat["none"]
        where = f"remat {remat} at {row['depth']} layers"
        if peer:
            claim = f"{where}: temporary memory of the gradient / {peer['peer']}'s without remat"
            yield Target(claim=claim, found=row["gradient_bytes"] / peer["gradient_bytes"], bound=share, unit="%")
        claim = f"{where}: temporary memory of the gradient / its own without remat"
        yield Target(claim=claim, found=row["gradient_bytes"] / plain["gradient_bytes"], bound=share, unit="%")
        if row["step_seconds"] and plain["step_seconds"]:
            claim = f"{where}: step time / that without remat"
            yield Target(claim=claim, found=row["step_seconds"] / plain["step_seconds"], bound=slower)


def groups(rows: list[Row]) -> list[dict[str, Row]]:
    """Rows of one depth and rematerialisation, by peer."""
    by_setting: dict[Any, dict[str, Row]] = {}
    for row in rows:
        by_setting.setdefault((row["depth"], row["remat"]), {})[row["peer"]] = row
    return list(by_setting.values())


def best_peer(group: dict[str, Row], field: str) -> Row | None:
    """The JAX peer, other than stackjax, that has the least of a number; None if stackjax has no such number."""
    if OWN not in group or not group[OWN][field]:
        return None
    rows = [group[name] for name in JAX_PEERS if name in group and group[name][field]]
    return min(rows, key=lambda row: row[field], default=None)
