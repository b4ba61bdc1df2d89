"""All claims, in the order of the page, and the loop that runs what has not been run."""

import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..lab import environment
from ..lab.store import Json, read, write
from . import (
    corrections,
    depth_helps,
    keeps_input,
    memory,
    non_linear,
    norms_faster,
    norms_rates,
    order,
    per_token,
    position_wise,
    positions,
    product,
    skip_alone,
    staircase,
    tree,
    warm_up,
)
from .claim import Claim, Rows, Unit

CLAIMS: tuple[Claim, ...] = tuple(
    module.CLAIM
    for module in (
        product,
        skip_alone,
        keeps_input,
        corrections,
        per_token,
        norms_rates,
        norms_faster,
        warm_up,
        position_wise,
        non_linear,
        memory,
        order,
        positions,
        staircase,
        depth_helps,
        tree,
    )
)
"""Claims in the order of the page."""

RUN_ORDER = (
    product,
    per_token,
    position_wise,
    order,
    skip_alone,
    keeps_input,
    corrections,
    staircase,
    non_linear,
    warm_up,
    depth_helps,
    memory,
    positions,
    norms_rates,
    norms_faster,
    tree,
)
"""Claims in the order in which they are run where time is short: the cheap and telling ones first."""


def named(only: Sequence[str]) -> list[Claim]:
    """The claims of these names, or all of them, in the order in which they are run.

    Raises:
        ValueError: a name that no claim has.
    """
    known = {module.CLAIM.name: module.CLAIM for module in RUN_ORDER}
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"--only {' '.join(unknown)}: no such claim; known are {', '.join(c.name for c in CLAIMS)}")
    return [claim for name, claim in known.items() if not only or name in only]


def done(out: Path, claim: Claim, quick: bool) -> dict[str, Json]:
    """The records of a claim's units that have been run with their present setting: {unit: record}.

    Raises:
        ValueError: the file that holds them is damaged.
    """
    stored = read(out / "raw" / f"{claim.name}.json") or {}
    wanted = {unit.name: json.loads(json.dumps(unit.setting)) for unit in claim.units(quick)}
    return {name: stored[name] for name in wanted if name in stored and stored[name]["setting"] == wanted[name]}


def rows(records: dict[str, Json]) -> Rows:
    """The numbers alone."""
    return {name: record["numbers"] for name, record in records.items()}


def run(out: Path, claims: Sequence[Claim], quick: bool) -> list[str]:
    """Run every unit that has not been run, one after another, and save each as it ends.

    One that fails says so and stays undone; the others go on.

    Args:
        out: the folder of the result.
        claims: in the order in which they are run.
        quick: whether sizes are those of a quick run.

    Returns:
        The units that failed.
    """
    missing = [
        (claim, unit) for claim in claims for unit in claim.units(quick) if unit.name not in done(out, claim, quick)
    ]
    versions, device = environment.versions(), environment.device()
    failed = []
    for i, (claim, unit) in enumerate(missing, 1):
        print(f"[{i}/{len(missing)}] {claim.name}: {unit.name} ...", flush=True)
        try:
            record = measured(unit)
        except Exception:
            traceback.print_exc()
            failed.append(f"{claim.name}: {unit.name}")
            continue
        record |= {"versions": versions, "device": device}
        records = {**(read(out / "raw" / f"{claim.name}.json") or {}), unit.name: record}
        write(out / "raw" / f"{claim.name}.json", json.dumps(records, indent=1, allow_nan=False) + "\n")
        print(f"    {record['seconds']:.0f} s ({record['cpu_seconds']:.0f} s of CPU)", flush=True)
    return failed


def measured(unit: Unit) -> Json:
    """A unit's numbers, with what they cost."""
    began, worked = time.perf_counter(), time.process_time()
    numbers = unit.run(**unit.setting)
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
    return {"setting": unit.setting, "numbers": numbers, **{name: round(value, 2) for name, value in spent.items()}}
