"""What the README shows runs, names what exists and gives the commands that CI gives."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_code_runs():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, names)
    assert np.isfinite(names["squares"]).all() and names["squares"].shape == (101,)
    assert names["layers"]["stream_rms"].shape == (100,)
    assert names["y"].shape == names["x"].shape


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_modules_are_there():
    (table,) = re.findall(r"\| What \|.*?\n\n", TEXT, re.DOTALL)
    for module in re.findall(r"`([a-z0-9_.]+)`", table):
        path = ROOT / "stackjax" / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module


def test_experiments_are_there():
    found = re.findall(r"python -m (experiments\.\w+)", TEXT)
    listed = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert len(listed) > 8
    for module in [*found, *(f"experiments.{name}" for name in listed)]:
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module


def test_commands_are_those_of_ci():
    script = (ROOT / ".ci" / "run").read_text()
    assert "bin/python -m pytest\n" in TEXT and "bin/python -m pytest\n" in script
    assert "bin/python -m experiments.depth_sweep\n" in TEXT and "bin/python -m experiments.depth_sweep" in script
