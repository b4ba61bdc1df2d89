"""Documents read from left to right: paths that a decoder may see.

The syntax tree of a whole document tells the future: that `a` stands below a sum is known only once the `+` is there.
Here the path of a byte depends on the bytes up to it and on nothing else. One scan with a stack knows what every
reader knows from the left: which brackets are open and how many commas came since, and, where indentation counts,
under which statement a line stands.

The tree: statements hang below the statement whose line opened their block; the tokens of a statement are its
children, and so are bracketed groups, whose children are the elements between commas, whose children are tokens; and
the bytes of a token are its children. Brackets and commas stand at their group, a newline that ends a statement is
a token of it, and indentation is where a statement would begin that is indented as far.
"""

import re
from dataclasses import dataclass

from .reading import DEEPEST, Reading, Rows

TOKEN = re.compile(rb"[A-Za-z0-9_\x80-\xff]+|[ \t\r\f\v]+|\n|.", re.DOTALL)
WORD, SPACE, NEWLINE, INDENT, STRING, COMMENT, OPEN, CLOSE, COMMA, SIGN = (
    "word",
    "space",
    "newline",
    "indent",
    "string",
    "comment",
    "open",
    "close",
    "comma",
    "sign",
)


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """The rules of a language that the scan has to know.

    Args:
        quotes: that open and close strings; a string ends at the end of its line if it is not closed.
        triple: whether three quotes open a string of many lines.
        comment: what begins a comment, which ends with its line.
        indented: whether lines are statements that nest by indentation.
    """

    quotes: bytes
    triple: bool = False
    comment: bytes = b""
    indented: bool = False


SYNTAXES = {
    "python": Syntax(quotes=b"\"'", triple=True, comment=b"#", indented=True),
    "json": Syntax(quotes=b'"'),
}


@dataclass
class Node:
    """An open node: what it is, the column it began in, and how many children it has."""

    kind: str
    column: int
    children: int = 0


def read(text: bytes, language: str, *, n_steps: int = DEEPEST) -> Reading:
    """The tokens of a document with the paths that are known when they begin.

    `by_byte` of the result gives each byte's path, known from the bytes up to it: the reading of a prefix is the
    prefix of the reading.

    Args:
        text: the document, any bytes, well-formed or not.
        language: one of `SYNTAXES`.
        n_steps: P; nodes deeper than that stand at their ancestor of depth P, with a warning.

    Raises:
        ValueError: an unknown language.
    """
    if language not in SYNTAXES:
        raise ValueError(f"no scan for {language!r}; there are {', '.join(SYNTAXES)}")
    return _Scan(text, SYNTAXES[language], n_steps).run()


class _Scan:
    def __init__(self, text: bytes, syntax: Syntax, n_steps: int):
        self.text, self.syntax = text, syntax
        self.rows = Rows(text, n_steps)
        self.open = [Node("root", -1)]
        self.path: list[int] = []
        self.groups = 0
        if not syntax.indented:
            self._push("element", 0)

    def run(self) -> Reading:
        fresh = self.syntax.indented
        while self.rows.at < len(self.text):
            if fresh:
                self._indentation()
                fresh = False
            else:
                fresh = self._token()
        return self.rows.reading()

    def _indentation(self) -> None:
        """White space at the front of a line, in runs that reach the same statement, and the statement behind it."""
        at, column = self.rows.at, 0
        reached, node = 0, self.open[0]
        while at < len(self.text) and self.text[at] in b" \t\f":
            column += 8 - column % 8 if self.text[at] == ord("\t") else 1
            deeper = reached
            while deeper + 1 < len(self.open) and self.open[deeper + 1].column < column:
                deeper += 1
            if deeper > reached:
                self.rows.add(at, [*self.path[:reached], node.children], INDENT)
                reached, node = deeper, self.open[deeper]
            at += 1
        self.rows.add(at, [*self.path[:reached], node.children], INDENT)
        if at < len(self.text) and self.text[at] not in b"\r\n":
            while self.open[-1].column >= column:
                self._pop()
            self._push("statement", column)

    def _token(self) -> bool:
        """One token; whether a line of its own begins behind it."""
        at = self.rows.at
        first = self.text[at : at + 1]
        if first in (b"(", b"[", b"{"):
            self._push("group", self.open[-1].column)
            self.rows.add(at + 1, self.path, OPEN)
            self._push("element", self.open[-1].column)
        elif self.groups and first in (b")", b"]", b"}"):
            self._pop_to_group()
            self.rows.add(at + 1, self.path, CLOSE)
            self._pop()
        elif self.groups and first == b",":
            self._pop_to_group()
            self.rows.add(at + 1, self.path, COMMA)
            self._push("element", self.open[-1].column)
        elif first in self.syntax.quotes:
            self._child(self._string(at), STRING)
        elif first in self.syntax.comment:
            end = self.text.find(b"\n", at)
            self._child(len(self.text) if end < 0 else end, COMMENT)
        else:
            return self._plain(at)
        return False

    def _plain(self, at: int) -> bool:
        match = TOKEN.match(self.text, at)
        assert match is not None
        word = match.group()
        goes_on = self.rows.kind[-1:] == [SIGN] and self.text[at - 1] == ord("\\")
        if word == b"\n":
            kind = NEWLINE
        elif word.isspace():
            kind = SPACE
        else:
            kind = WORD if word[0] >= 0x80 or word[:1].isalnum() or word[:1] == b"_" else SIGN
        self._child(match.end(), kind)
        return kind == NEWLINE and self.syntax.indented and not self.groups and not goes_on

    def _string(self, at: int) -> int:
        """End of the string that begins here."""
        quote = self.text[at : at + 1]
        if self.syntax.triple and self.text.startswith(3 * quote, at):
            match = re.compile(rb"(?:\\.|[^\\])*?" + 3 * quote, re.DOTALL).match(self.text, at + 3)
            return match.end() if match else len(self.text)
        match = re.compile(rb"(?:\\.|[^\\\n" + quote + rb"])*", re.DOTALL).match(self.text, at + 1)
        end = at + 1 if match is None else match.end()
        return end + (self.text[end : end + 1] in (quote, b"\\"))

    def _push(self, kind: str, column: int) -> None:
        parent = self.open[-1]
        self.path.append(parent.children)
        parent.children += 1
        self.open.append(Node(kind, column))
        self.groups += kind == "group"

    def _pop(self) -> None:
        self.groups -= self.open.pop().kind == "group"
        self.path.pop()

    def _pop_to_group(self) -> None:
        while self.open[-1].kind != "group":
            self._pop()

    def _child(self, end: int, kind: str) -> None:
        """A token below the innermost open node."""
        parent = self.open[-1]
        self.path.append(parent.children)
        self.rows.add(end, self.path, kind)
        self.path.pop()
        parent.children += 1
