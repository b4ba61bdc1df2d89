"""The lines of the library that are a recipe or a position, as its page shows them."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from stackjax.attention import Attention
from stackjax.description import Description
from stackjax.feed_forward import FeedForward
from stackjax.position import Position
from stackjax.recipe import Geometry, Recipe
from stackjax.recipe.around import Around, AroundForm
from stackjax.recipe.form import Form

BASES = (object, Description, Recipe, Around, Form, AroundForm, Position)
"""Classes that no page shows, as they are what all recipes, forms or positions share."""
LEFT_OUT = ("check", "__post_init__")
"""Methods that refuse a user's mistake, and compute nothing; those that a subclass must write go as well."""


def of_recipe(recipe: Recipe) -> str:
    """Source of a recipe's class and of its residual forms, with the functions of their modules that they call."""
    geometry = Geometry(depth=16, d_model=64)
    forms = []
    for layer in range(geometry.depth):
        for index, sublayer in enumerate((Attention(n_heads=4), FeedForward())):
            forms.append(recipe.form(sublayer, index, layer, geometry))
        forms.append(recipe.outer(layer, geometry))
    return _source([type(form) for form in forms if form is not None] + [type(recipe)])


def of_position(position: Position) -> str:
    """Source of a position's class, with the functions of its module that it calls."""
    return _source([type(position)])


def _source(kinds: Iterable[type]) -> str:
    """Classes and what they inherit, each once, bases first, after the functions that they call."""
    things: dict[Any, None] = {}
    for kind in kinds:
        for each in reversed(kind.__mro__):
            if each not in BASES:
                things |= dict.fromkeys(_with_called(each, ()))
    return "\n\n\n".join(_without_words(inspect.getsource(thing)) for thing in things)


def _with_called(thing: Any, callers: tuple[Any, ...]) -> list[Any]:
    """The functions of its module that a class or function calls, directly or through others, and then itself."""
    if thing in callers:
        return []
    tree = ast.parse(_without_words(inspect.getsource(thing)))
    names = dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    members = [getattr(sys.modules[thing.__module__], name, None) for name in names]
    called = [each for each in members if inspect.isfunction(each) and each.__module__ == thing.__module__]
    return [more for each in called for more in _with_called(each, (*callers, thing))] + [thing]


def _without_words(source: str) -> str:
    """Source without docstrings and without the methods of `LEFT_OUT`."""
    lines = textwrap.dedent(source).splitlines()
    dropped: set[int] = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        first = node.body[0]
        if ast.get_docstring(node) is not None:
            dropped |= set(range(first.lineno, (first.end_lineno or 0) + 1))
            if len(node.body) == 1:
                lines[first.lineno - 2] += " ..."
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and (method.name in LEFT_OUT or _is_abstract(method)):
                first = min([method.lineno, *(each.lineno for each in method.decorator_list)])
                dropped |= set(range(first, (method.end_lineno or 0) + 1))
    kept = [line for number, line in enumerate(lines, 1) if number not in dropped]
    return _single_blank_lines(kept)


def _is_abstract(method: ast.FunctionDef) -> bool:
    return ast.unparse(method.body[-1]).startswith("raise NotImplementedError")


def _single_blank_lines(lines: list[str]) -> str:
    """The lines without blank ones at either end, after a header, or twice in a row."""
    text: list[str] = []
    for line in lines:
        if line.strip() or (text and text[-1].strip() and not text[-1].rstrip().endswith(":")):
            text.append(line.rstrip())
    return "\n".join(text).strip("\n")
