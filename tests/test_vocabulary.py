"""The project's words: docstrings open with a phrase that has a head, and names that were given up stay away."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("stackjax", "experiments")
    for path in ROOT.joinpath(folder).rglob("*.py")
}

HEADLESS = re.compile(
    r"(What|Whether|How|Where|Which|Who|Whose|When|That|Those|Likewise|The same)\b"
    r"|(Of|Its|As|At|By|For|From|In|On|To|With)\b"
)
ONE_WORD = re.compile(r"[\w']+\.?")


def docstrings(tree):
    """(line, text, whether below a field or constant) of all docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for before, statement in zip([None, *body], body, strict=False):
            value = statement.value if isinstance(statement, ast.Expr) else None
            if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
                continue
            below = isinstance(before, (ast.Assign, ast.AnnAssign))
            if below or (before is None and documented):
                yield statement.lineno, value.value, below


def refused(text, below=False):
    """True for a docstring that opens with a clause or preposition, or that is one word and not a field's."""
    opening = text.strip().split("\n")[0]
    headless = HEADLESS.match(opening) and not opening.endswith("?")
    return bool(headless or (not below and ONE_WORD.fullmatch(text.strip())))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is read.", True),
        ("Of the tokens in .bin files.", True),
        ("Attend.", True),
        ("Which of its layers does each recipe use?", False),
        ("The inputs that a sublayer reads beside x.", False),
        ("L, the number of layers.", False),
        ("x + f(norm(x)).", False),
    ],
)
def test_the_rule_for_openings(text, expected):
    assert refused(text) is expected


def test_docstrings_open_with_what_a_thing_is_or_does():
    """A full phrase: "The inputs that a sublayer reads", not "What is read."."""
    found = [
        f"{name}:{line}: {text.strip().splitlines()[0]}"
        for name, source in SOURCES.items()
        for line, text, below in docstrings(ast.parse(source))
        if refused(text, below)
    ]
    assert not found, "\n".join(found)


EVERYWHERE = ("stackjax/", "experiments/", "tests/")
LIBRARY = ("stackjax/",)
CORE = (
    "stackjax/sublayer",
    "stackjax/attention",
    "stackjax/layer",
    "stackjax/stack",
    "stackjax/model",
    "stackjax/recipe/",
)
GIVEN_UP: dict[str, tuple[str, tuple[str, ...]]] = {
    "Given Through Past Schedule Whole Described Out": ("SideInputs, CachedPositions, AbstractModel, Aux", EVERYWHERE),
    "absorb constrain by_constraint dress": ("update_statistics, project, by_projection, with_recipe", EVERYWHERE),
    "law laws": ("default_init", EVERYWHERE),
    "sub subs probes": ("sublayer, sublayers, perturbations", EVERYWHERE),
    "past with_past": ("cached, with_cached", EVERYWHERE),
    "end_norm end_bias end_scale": ("final_norm, head_bias, embed_scale", EVERYWHERE),
    "attend attend_fused": ("dot_product_attention, fused_attention", EVERYWHERE),
    "with_state": ("nothing: the base class of forms owns statistics", EVERYWHERE),
    "given": ("side_inputs", CORE),
    "schedule with_sub block_index": ("coefficients, with_coefficients, layer_index", LIBRARY),
    "wide ends": ("upcast, enter_spec and leave_spec", (*CORE, "stackjax/norm.py")),
    "period": ("pattern", ("stackjax/segment.py", "stackjax/stack.py", "stackjax/scan.py", "stackjax/convert.py")),
    "slot slots _slots": ("index, capacity", ("stackjax/attention.py", "stackjax/cache.py", "stackjax/recipe/base.py")),
}
"""Names for which the field has a word: (that word, files and folders where the old name may not stand)."""

PROSE = re.compile(r"\b(laws?|(un)?dress(ed)?|`(Given|Out|absorb|constrain)`)\b")
"""Old words that the library's sentences may not use either: an initialiser is no law."""


def code_of(path):
    """Python source of a file, or of a notebook's cells."""
    if path.suffix == ".py":
        return path.read_text()
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def names_in(source):
    """(name, line) of every name in Python source, but for attributes of modules from elsewhere: `re.sub`."""
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not (before == "." and token.string in dir(re)):
            yield token.string, token.start[0]
        before = token.string


@pytest.fixture(scope="module")
def names():
    """{file: its names}, notebooks among them."""
    files = [p for folder in EVERYWHERE for p in ROOT.joinpath(folder).rglob("*") if p.suffix in (".py", ".ipynb")]
    return {path.relative_to(ROOT).as_posix(): list(names_in(code_of(path))) for path in files}


@pytest.mark.parametrize("old", GIVEN_UP)
def test_names_that_were_given_up_stay_away(old, names):
    new, places = GIVEN_UP[old]
    found = [
        f"{file}:{line}: {name}"
        for file, used in names.items()
        if file.startswith(places)
        for name, line in used
        if name in old.split()
    ]
    assert not found, f"now {new}:\n" + "\n".join(found)


def test_the_old_words_are_not_in_the_sentences_either():
    found = [f"{file}: {match.group()}" for file, text in SOURCES.items() for match in PROSE.finditer(text)]
    assert not [line for line in found if line.startswith(LIBRARY)]
