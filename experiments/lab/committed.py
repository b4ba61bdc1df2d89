"""The committed results, for pages and notebooks that state what long runs found."""

import functools
import json
import textwrap
from pathlib import Path

from .store import Json

RESULTS = Path(__file__).parents[1] / "results"


@functools.cache
def result(name: str) -> Json:
    """`result.json` of an experiment."""
    return json.loads((RESULTS / name / "result.json").read_text())


def claim(name: str) -> str:
    """A claim of `experiments.claims` with its verdict and what was found, in lines of 100 characters."""
    found = next(claim for claim in result("claims")["claims"] if claim["name"] == name)
    return textwrap.fill(f"{found['title']}: {found['verdict'].upper()}. {found['paragraph']}", 100)
