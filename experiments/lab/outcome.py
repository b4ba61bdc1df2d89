"""Outcome of a cell: well, diverged or failed, and its numbers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .grid import Setting
from .lanes import Run
from .store import Json
from .train import RECORDED


def summary(setting: Setting, run: Run, lane: int, flops_per_step: int) -> Json:
    """Outcome of a cell: its row in the results, from its curve.

    A cell diverged if a loss or gradient was not finite, or if its validation loss rose above its first one for good;
    `diverged_step` is the first step at which that was seen. `train_loss` is the mean over the last chunk.
    """
    rows = [row for row in run.metrics[lane] if row["step"] > 0]
    losses = [math.nan if row["train_loss"] is None else row["train_loss"] for row in rows]
    valid = {row["step"]: row["valid_loss"] for row in run.metrics[lane] if row["valid_loss"] is not None}
    finite = bool(run.alive[lane]) and rows[-1]["step"] in valid
    diverged_step = above_for_good(valid) if finite else rows[-1]["step"]
    best_step = min(valid, key=lambda step: valid[step], default=None)
    steps = rows[-1]["step"]
    message = ""
    if diverged_step is not None:
        message = "above its first loss for good" if finite else "not finite"
    return {
        "status": "ok" if diverged_step is None else "diverged",
        "message": message,
        "steps": steps,
        "params": run.trainer.task.model.n_params,
        "tokens": steps * setting.batch * setting.context,
        "flops": steps * flops_per_step,
        "train_loss": _finite(np.mean(losses[-run.eval_every :])),
        "valid_loss": valid.get(steps) if finite else None,
        **halves(rows[-1]["valid_losses"] if finite else ()),
        "best_valid_loss": None if best_step is None else valid[best_step],
        "best_step": best_step,
        "metrics": {name: value for name, value in rows[-1].items() if name not in RECORDED} if finite else {},
        "diverged_step": diverged_step,
        "compile_seconds": run.programs.compile_seconds,
        "step_seconds": float(np.median(run.step_seconds)) if run.step_seconds else None,
        "temp_bytes": run.programs.temp_bytes,
    }


def halves(losses: Sequence[float]) -> Json:
    """The two halves of the validation batches: those by which a learning rate is chosen, and those that are reported.

    They alternate, so that both are spread over all of the text, and have no batch in common. Windows are drawn from
    the validation text, so where that is short, tokens of one half are in the other too.

    Args:
        losses: of each validation batch, in order.
    """
    chosen, reported = losses[0::2], losses[1::2]
    means = [float(np.mean(half)) if len(half) and None not in half else None for half in (chosen, reported)]
    return {"choice_loss": means[0], "report_loss": means[1], "report_losses": list(reported)}


def above_for_good(losses: dict[int, float]) -> int | None:
    """The first step from which on every loss is above the first one; None if the last is not.

    Args:
        losses: {step: loss} in order.
    """
    (_, first), *later = losses.items()
    above = list(itertools.takewhile(lambda item: item[1] > first, reversed(later)))
    return above[-1][0] if above else None


def _finite(x: Any) -> float | None:
    return float(x) if math.isfinite(x) else None


def failure(error: Exception) -> Json:
    """Outcome of a cell that raised: what went wrong, in one line."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}".strip(": ")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        text = f"out of memory (try --lanes loop, or --remat nested): {text}"
    return {"status": "failed", "message": text}
