"""Committed results have one name each, can be read, and lead where they say."""

import csv
import json
import re
from pathlib import Path

import pytest

from experiments.lab.results import COLUMNS

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
PAGES = {"recipes", "positions"}
"""Pages made from the results of all experiments; `test_pages` holds them."""
FOLDERS = sorted(path.name for path in RESULTS.iterdir() if path.is_dir() and path.name not in PAGES)


def test_there_are_results():
    assert len(FOLDERS) >= 10


@pytest.mark.parametrize("name", FOLDERS)
def test_a_result_is_a_page_and_a_file_for_programs(name):
    folder = RESULTS / name
    assert {"finding.md", "result.json"} <= {path.name for path in folder.iterdir()}
    assert not {"README.md", "results.json"} & {path.name for path in folder.iterdir()}
    result = json.loads((folder / "result.json").read_text())
    assert any(result.get(part) for part in ("rows", "claims", "decode", "sweep"))


@pytest.mark.parametrize("name", sorted({*FOLDERS, *PAGES}))
def test_a_result_names_its_origin(name):
    result = json.loads((RESULTS / name / "result.json").read_text())
    assert result["command"].startswith("python -m experiments.") and isinstance(result["seeds"], list)
    assert re.match(r"[0-9a-f]{12}", result["commit"]) and isinstance(result["clean_tree"], bool)
    assert result["device"] and {"python", "jax", "jaxlib", "numpy"} <= set(result["versions"])


@pytest.mark.parametrize("page", sorted(RESULTS.rglob("*.md")), ids=lambda path: str(path.relative_to(RESULTS)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("results.csv")), ids=lambda path: path.parent.name)
def test_every_cell_can_be_read(path):
    with open(path) as file:
        cells = list(csv.DictReader(file))
    assert cells and set(cells[0]) <= set(COLUMNS)
    for cell in cells:
        pattern = rf"{re.escape(cell['recipe'])}-L{cell['depth']}-lr\S+-s{cell['seed']}-[0-9a-f]{{10}}"
        assert re.fullmatch(pattern, cell["cell"])
        assert cell["status"] in ("ok", "diverged", "failed") and (
            cell["status"] != "ok" or float(cell["valid_loss"]) > 0
        )
