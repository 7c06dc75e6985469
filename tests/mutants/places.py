"""Where a mutant strikes: within a definition, found by its dotted name, a run of tokens, found by what they say.

A place is "network.body:Body.pull", or "network.body" for anything in that file. Spaces, line breaks,
indentation, comments and the comma before a closing bracket do not matter, so a mutant outlives a move,
another layout and a change of the lines around it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

__all__ = ["Source", "find", "module_of", "same", "source_of"]

_SKIPPED = r"[ \t\f\r\n]+|\\\n|\#[^\n]*"
_STRING = r"(?i:\b(?:[rbuf]|[rf]b|b[rf]|fr|rf))?(?:'''(?:\\.|[^\\])*?'''|\"{3}(?:\\.|[^\\])*?\"{3}"
_STRING += r"|'(?:\\.|[^\\'\n])*'|\"(?:\\.|[^\\\"\n])*\")"
_OPERATOR = r"\*\*=|//=|>>=|<<=|\.\.\.|!=|->|:=|\*\*|//|<<|>>|[-+*/%&|^@=<>]=|."
_TOKEN = re.compile(rf"(?P<skipped>{_SKIPPED})|{_STRING}|\w+|{_OPERATOR}", re.DOTALL)
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Token:
    """Something between two spaces, or that could be: `text` begins at the character `start` of a source."""

    text: str
    start: int

    @property
    def stop(self) -> int:
        return self.start + len(self.text)


def tokens_of(code: str) -> list[Token]:
    """What `code` says, whole or a fragment, without spaces, comments and commas that a formatter sets."""
    matches = [match for match in _TOKEN.finditer(code) if match["skipped"] is None]
    following = [*(match[0] for match in matches[1:]), ""]
    return [
        Token(match[0], match.start())
        for match, after in zip(matches, following, strict=False)
        if match[0] != "," or after not in (*")]}",)
    ]


def same(code: str, other: str) -> bool:
    """Whether both say the same, however they are laid out."""
    return [token.text for token in tokens_of(code)] == [token.text for token in tokens_of(other)]


class Source:
    """A file of Python: its tokens and its definitions."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens_of(text)

    @cached_property
    def definitions(self) -> dict[str, list[range]]:
        """Qualified names, and the characters that each takes, decorators included: several if it is defined twice."""
        begins = [0]
        for line in self.text.splitlines(keepends=True):
            begins.append(begins[-1] + len(line))
        found: dict[str, list[range]] = {}

        def collect(node: ast.AST, outer: str) -> None:
            for child in ast.iter_child_nodes(node):
                name = outer
                if isinstance(child, _DEFINITIONS):
                    name = f"{outer}.{child.name}".lstrip(".")
                    first = min(one.lineno for one in (child, *child.decorator_list))
                    found.setdefault(name, []).append(range(begins[first - 1], begins[child.end_lineno or first]))
                collect(child, name)

        collect(ast.parse(self.text), "")
        return found

    def runs(self, old: str) -> list[tuple[Token, Token]]:
        """Where the tokens of `old` follow each other, as (first, last)."""
        wanted = [token.text for token in tokens_of(old)]
        texts = [token.text for token in self.tokens]
        starts = (at for at, text in enumerate(texts) if wanted and text == wanted[0])
        return [
            (self.tokens[at], self.tokens[at + len(wanted) - 1])
            for at in starts
            if texts[at : at + len(wanted)] == wanted
        ]

    def within(self, name: str, old: str) -> list[tuple[Token, Token]]:
        """The runs of `old` within the definition `name`, or in the whole file if that is empty."""
        if not name:
            return self.runs(old)
        ranges = self.definitions[name]
        return [(one, last) for one, last in self.runs(old) if any(one.start in r and last.start in r for r in ranges)]

    def around(self, first: Token, last: Token) -> str:
        """The innermost definition that holds a run, or "" for none."""
        holding = [
            (len(chars), name)
            for name, ranges in self.definitions.items()
            for chars in ranges
            if first.start in chars and last.start in chars
        ]
        return min(holding, default=(0, ""))[1]

    def replaced(self, first: Token, last: Token, new: str) -> str:
        """The text with `new` in the place of a run; its first line stands where the statement of `first` begins."""
        lines = new.splitlines()
        base = _indent(lines[0]) - self._column(first) if lines else 0
        # Nothing but the indentation of further lines is adapted: there are no strings of several lines here.
        further = [f"{' ' * max(_indent(line) - base, 0)}{line.lstrip()}" for line in lines[1:]]
        return (
            self.text[: first.start]
            + "\n".join([*(line.lstrip() for line in lines[:1]), *further])
            + self.text[last.stop :]
        )

    def _column(self, token: Token) -> int:
        """How far the statement line of `token` is indented: its first line where brackets hold several together."""
        depth, column = 0, 0
        for one in self.tokens:
            line = self.text.rfind("\n", 0, one.start) + 1
            if depth == 0 and not self.text[line : one.start].strip():
                column = one.start - line
            if one is token:
                break
            depth += (one.text in (*"([{",)) - (one.text in (*")]}",))
        return column


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


@lru_cache
def source_of(path: Path) -> Source:
    """The file at `path`, read once."""
    return Source(path.read_text(encoding="utf-8"))


def module_of(package: Path, place: str) -> Path:
    """The file of a place, which need not exist."""
    path = package.joinpath(*place.partition(":")[0].split("."))
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def find(package: Path, name: str, old: str) -> Iterator[str]:
    """Places where a lost run may be now: definitions called `name` that hold it, or else any that holds it."""
    named, holding = [], []
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        source = source_of(path)
        if name in source.definitions and len(source.within(name, old)) == 1:
            named.append(f"{module}:{name}")
        holding += [f"{module}:{source.around(*run)}".removesuffix(":") for run in source.runs(old)]
    yield from named or holding
