"""The API reference: built without a warning, complete, readable without a network, and faithful to the docstrings."""

import html
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import stackjax as sj
from stackjax.interop import hf
from tests.test_contract import MODULES, PUBLIC


class Page(HTMLParser):
    """One page of the reference: its anchors, what it loads, and the text of its docstrings."""

    def __init__(self, source: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.loads: list[str] = []
        self.docstrings: list[str] = []
        self._depth = 0
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id") or "")
        if tag != "a":
            self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag == "div":
            inside = self._depth or values.get("class") == "docstring"
            if inside and not self._depth:
                self.docstrings.append("")
            self._depth += bool(inside)

    def handle_endtag(self, tag):
        self._depth -= tag == "div" and self._depth > 0

    def handle_data(self, text):
        if self._depth:
            self.docstrings[-1] += text


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{module: its page}, made by the command of the guide with warnings as errors."""
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::RuntimeWarning", "-m", "pdoc"]
    done = subprocess.run([*command, "-d", "google", "stackjax", "-o", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stderr
    files = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.html")}
    return {name: Page(path.read_text()) for name, path in files.items() if name != "index"}


def listed(module):
    """True for a module that its package shows; what is in the others is public where the package exports it."""
    parent, _, child = module.rpartition(".")
    return child in getattr(MODULES.get(parent, sj), "__all__", (child,))


SHOWN = {name: module for name, module in MODULES.items() if listed(name)}


def place(name):
    """Module and qualified name of something public."""
    module = max((module for module in MODULES if name.startswith(f"{module}.")), key=len)
    return module, name[len(module) + 1 :]


def characters(text):
    """A docstring without what Markdown may take from it: white space, back quotes, asterisks."""
    return re.sub(r"[\s`*]", "", html.unescape(text))


@pytest.mark.thorough
def test_every_public_name_has_its_page(pages):
    assert set(SHOWN) <= set(pages)
    assert all(
        name in SHOWN for name in MODULES if name.count(".") == 1 or name.split(".")[1] in ("recipe", "position")
    )
    names = [name for name in PUBLIC if place(name)[0] in SHOWN]
    assert [name for name in names if place(name)[1] not in pages[place(name)[0]].anchors] == []
    for package in (sj, hf, *(module for module in SHOWN.values() if hasattr(module, "__all__"))):
        values = {name: getattr(package, name) for name in package.__all__}
        for name, value in values.items():
            shown = value.__name__ in pages if inspect.ismodule(value) else name in pages[package.__name__].anchors
            assert shown, name


@pytest.mark.thorough
def test_no_page_loads_anything_from_outside(pages):
    loaded = {address for page in pages.values() for address in page.loads}
    assert [address for address in loaded if not address.startswith(("data:", "../", "./", "#"))] == []


@pytest.mark.thorough
def test_equations_and_prose_survive_the_rendering(pages):
    """Every line before the sections of a docstring stands in the page, character for character."""
    shown = {name: characters(" ".join(page.docstrings)) for name, page in pages.items()}
    documented = [(name, module.__doc__) for name, module in SHOWN.items()]
    documented += [(place(name)[0], inspect.getdoc(thing)) for name, thing in PUBLIC.items() if place(name)[0] in SHOWN]
    lost = []
    for module, docstring in documented:
        prose = re.split(r"\n\s*(?:Args|Returns|Raises|Source|Yields)\b", docstring)[0]
        lost += [line for line in prose.splitlines() if characters(line) not in shown[module]]
    assert lost == []
