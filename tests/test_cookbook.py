"""The short answers at the heads of modules run, and the README leads to each."""

import doctest
import re
from pathlib import Path

import pytest

import stackjax as sj
from tests.test_contract import MODULES

ROOT = Path(__file__).parents[1]
FINDER = doctest.DocTestFinder(exclude_empty=True)
ANSWERS = {name: tests for name, module in MODULES.items() if (tests := [t for t in FINDER.find(module) if t.examples])}
(TABLE,) = re.findall(r"## How do I \.\.\.\n.*?\n\n(?=## )", (ROOT / "README.md").read_text(), re.DOTALL)
LINKS = re.findall(r"^\| .+ \| \[(\w+)\]\((\S+)\)(?:;.*)? \|$", TABLE, re.MULTILINE)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    said = []
    for test in ANSWERS[name]:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 3


def test_the_readme_leads_to_every_answer():
    assert len(LINKS) >= 11
    assert {f"stackjax.{module}" for module, _ in LINKS} == set(ANSWERS)
    for module, path in LINKS:
        assert Path(getattr(sj, module).__file__) == ROOT / path


def test_a_wrong_answer_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner()
    runner.run(test, out=lambda _: None)
    assert runner.failures == 1
