"""Documents read by their grammar, with tree-sitter: leaf tokens and their paths in the syntax tree.

Tree-sitter never fails: what does not parse stands in nodes of its kind ERROR, and everything else keeps its place.
Any bytes will do, UTF-8 or not. Needs the extra `trees`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .reading import DEEPEST, Reading, Rows

GAP = "gap"
"""The kind of bytes between the leaves: white space, and text that the grammar leaves to its node."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A published grammar.

    Args:
        module: that holds it.
        function: that gives it.
        suffixes: of files in the language.
        inside: kinds of nodes whose text another grammar reads, and the name of that grammar.
    """

    module: str
    function: str = "language"
    suffixes: tuple[str, ...] = ()
    inside: tuple[tuple[str, str], ...] = ()


GRAMMARS = {
    "python": Grammar(module="tree_sitter_python", suffixes=(".py", ".pyi")),
    "json": Grammar(module="tree_sitter_json", suffixes=(".json", ".ipynb")),
    "html": Grammar(module="tree_sitter_html", suffixes=(".html", ".htm")),
    "xml": Grammar(module="tree_sitter_xml", function="language_xml", suffixes=(".xml", ".svg", ".xsd")),
    "markdown": Grammar(
        module="tree_sitter_markdown", suffixes=(".md", ".markdown"), inside=(("inline", "markdown_inline"),)
    ),
    "markdown_inline": Grammar(module="tree_sitter_markdown", function="inline_language"),
}


def language_of(suffix: str) -> str | None:
    """The language of files with this suffix, or None."""
    return next((name for name, grammar in GRAMMARS.items() if suffix.lower() in grammar.suffixes), None)


def read(text: bytes, language: str, *, n_steps: int = DEEPEST) -> Reading:
    """The leaves of a document's syntax tree, with the bytes between them.

    A leaf's path holds the child index of every node on the way, so a node's path begins with its parent's. Bytes
    between the leaves stand at the innermost node around them.

    Args:
        text: the document, any bytes.
        language: one of `GRAMMARS`.
        n_steps: P; nodes deeper than that stand at their ancestor of depth P, with a warning.

    Raises:
        ValueError: an unknown language, or the extra `trees` is not installed.
    """
    rows = Rows(text, n_steps)
    _walk(rows, language, 0, len(text), [])
    return rows.reading()


def _walk(rows: Rows, language: str, start: int, stop: int, top: list[int]) -> None:
    """Add the tokens of text[start:stop], whose tree hangs at the path `top`."""
    cursor = _parser(language).parse(rows.text[start:stop]).walk()
    inside = dict(GRAMMARS[language].inside)
    path = list(top)
    while True:
        node = cursor.node
        rows.add(start + node.start_byte, path[:-1] if len(path) > len(top) else top, GAP)
        if node.type in inside:
            _walk(rows, inside[node.type], start + node.start_byte, start + node.end_byte, path)
        elif cursor.goto_first_child():
            path.append(0)
            continue
        else:
            rows.add(start + node.end_byte, path, node.type)
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                rows.add(stop, top, GAP)
                return
            path.pop()
            rows.add(start + cursor.node.end_byte, path, GAP)
        path[-1] += 1


def _parser(language: str) -> Any:
    if language not in GRAMMARS:
        raise ValueError(f"no grammar for {language!r}; there are {', '.join(GRAMMARS)}")
    grammar = GRAMMARS[language]
    try:
        import tree_sitter

        module = import_module(grammar.module)
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed; reading trees needs: pip install 'stackjax[trees]'"
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(getattr(module, grammar.function)()))
