"""Axes of a sweep beyond its grid: any field of the setting."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

from .store import Folder
from .sweep import Sweep


def vary(sweep: Sweep, **axes: Sequence[Any]) -> list[Sweep]:
    """A sweep for each combination of values of fields of the setting, each in a folder of its own below the sweep's.

    Args:
        sweep: what they have in common.
        **axes: {field of `Setting`: its values}, such as d_model=(32, 64), warmup=(0, 20).

    Raises:
        ValueError: no field of the setting, the task (which belongs to the data), no values, or values that do not fit.
    """
    fields = {field.name for field in dataclasses.fields(sweep.setting)} - {"task"}
    if unknown := set(axes) - fields:
        raise ValueError(f"axes are {', '.join(sorted(fields))}; got {', '.join(sorted(unknown))}")
    if empty := [name for name, values in axes.items() if not values]:
        raise ValueError(f"an axis needs at least one value; {', '.join(empty)} has none")
    varied = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        title = re.sub(r"[^A-Za-z0-9_.,=-]", "-", ",".join(f"{name}={value}" for name, value in chosen.items()))
        setting = dataclasses.replace(sweep.setting, **chosen)
        varied.append(dataclasses.replace(sweep, folder=Folder(sweep.folder.path / title), setting=setting))
    return varied
