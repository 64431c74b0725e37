"""The count of mannerisms in prose: words and phrases that plain English avoids, in docs, docstrings,
comments and messages.

    python scripts/prose.py                 the counts by rule and folder; exit code 1 above an allowance
    python scripts/prose.py --list behind   every place of one rule

`prose.toml` contains the rules. Code is not searched: fenced blocks, doctests, `quoted` names and identifiers
are skipped.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "flowrace",
    "harness",
    "methods",
    "metrics",
    "reports",
    "sweeps",
    "benchmarks",
    "scripts",
    "tests",
)
# The words of the rules are in the first three; fixtures belong to other versions.
SKIPPED = ("scripts/prose.py", "scripts/prose.toml", "tests/project/test_prose.py", "tests/fixtures")
PROSE = ("docs", "docstring", "comment", "message", "help")


class Piece(NamedTuple):
    """A text in a file. Its kind is one of `PROSE`, `name` (of a test) or `trailing` (a line that ends with a
    comment)."""

    line: int
    kind: str
    text: str


class Place(NamedTuple):
    """One match of a rule."""

    file: Path
    line: int
    text: str


class Rule(NamedTuple):
    """A pattern to avoid, and the number of places where it is allowed; None for a rule without a limit."""

    pattern: re.Pattern[str]
    allowed: int | None
    instead: str
    kinds: tuple[str, ...]


def read_rules(file: Path = ROOT / "scripts" / "prose.toml") -> dict[str, Rule]:
    """Return the rules of a file by name."""
    found = {}
    for name, row in tomllib.loads(file.read_text(encoding="utf-8")).items():
        pattern = re.compile(row["pattern"], 0 if row.get("case") else re.IGNORECASE)
        found[name] = Rule(pattern, row.get("allowed"), row["instead"], tuple(row.get("kinds", PROSE)))
    return found


def pieces(file: Path) -> Iterator[Piece]:
    """Yield the texts of a Markdown, TOML or Python file. Messages in tests are skipped, because they quote
    those of the code."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield from markdown(source)
    elif file.suffix == ".toml":
        lines = enumerate(source.splitlines(), start=1)
        yield from (Piece(number, "comment", line[1:]) for number, line in lines if line.startswith("#"))
    else:
        quoted = ("message", "help") if "tests" in file.parts else ()
        yield from (piece for piece in python(source) if piece.kind not in quoted)


def markdown(source: str) -> Iterator[Piece]:
    """Yield the lines outside of fenced blocks."""
    fenced = False
    for number, line in enumerate(source.splitlines(), start=1):
        fence = line.lstrip().startswith("```")
        if not (fenced or fence):
            yield Piece(number, "docs", line)
        fenced ^= fence


def python(source: str) -> Iterator[Piece]:
    """Yield comments, docstrings, option help, other strings of three words or more, and the names of
    tests."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Piece(token.start[0], "comment", token.string.lstrip("# "))
            if token.line[: token.start[1]].strip():
                yield Piece(token.start[0], "trailing", token.line.rstrip("\n"))
    nodes = list(ast.walk(ast.parse(source)))
    kinds = {id(node.value): "docstring" for node in nodes if isinstance(node, ast.Expr)}
    kinds |= {
        id(node.value): "help" for node in nodes if isinstance(node, ast.keyword) and node.arg == "help"
    }
    inside = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield Piece(node.lineno, "name", node.name)
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inside:
            text, kind = literal(node), kinds.get(id(node), "message")
            if kind != "message" or text.count(" ") > 1:
                yield Piece(node.lineno, kind, text)


def literal(node: ast.Constant | ast.JoinedStr) -> str:
    """Return the text of a string, "…" for each replacement field; empty for other constants."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(literal(part) if isinstance(part, ast.Constant) else "…" for part in node.values)


def matches(rule: Rule, piece: Piece) -> Iterator[tuple[int, str]]:
    """Yield line and text of every place of a rule in a piece."""
    if piece.kind not in rule.kinds:
        return
    text = piece.text
    if piece.kind in PROSE:
        text = re.sub(r"(?m)^\s*(?:>>>|\.\.\.) .*$", "", re.sub(r"`[^`\n]+`", "`…`", text))
    for found in rule.pattern.finditer(text):
        start, end = text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.end())
        shown = text[start : end if end >= 0 else len(text)]
        yield piece.line + text.count("\n", 0, found.start()), " ".join(shown.split())


def files(root: Path = ROOT) -> Iterator[Path]:
    """Yield every file that is searched."""
    code = [f"{package}/**/*.{suffix}" for package in PACKAGES for suffix in ("py", "toml")]
    for pattern in ("*.md", "docs/**/*.md", *code):
        for file in sorted(root.glob(pattern)):
            if not file.relative_to(root).as_posix().startswith(SKIPPED):
                yield file


def search(rules: dict[str, Rule], searched: Iterable[Path]) -> dict[str, list[Place]]:
    """Return the places of every rule, by its name."""
    found: dict[str, list[Place]] = {name: [] for name in rules}
    for file in searched:
        for piece in pieces(file):
            for name, rule in rules.items():
                found[name] += (Place(file, line, text) for line, text in matches(rule, piece))
    return found


def folder(file: Path) -> str:
    """Return the room of a file: `docs` for pages, else its package and the folder in it."""
    parts = file.relative_to(ROOT).parts
    return "docs" if file.suffix == ".md" else "/".join(parts[: min(2, len(parts) - 1)])


def report(rules: dict[str, Rule], found: dict[str, list[Place]]) -> int:
    """Print the counts by rule, and by folder for rules with matches; return how many exceed their
    allowance."""
    over = 0
    for name, rule in rules.items():
        limit = "reported only" if rule.allowed is None else f"allowed {rule.allowed}"
        print(f"{name:17}{len(found[name]):5}  {limit}; instead: {rule.instead}")
        rooms = Counter(folder(place.file) for place in found[name])
        print(
            *(f"{'':24}{room} {count}" for room, count in sorted(rooms.items())),
            sep="\n",
            end="\n" * bool(rooms),
        )
        over += rule.allowed is not None and len(found[name]) > rule.allowed
    return over


def main() -> int:
    rules = read_rules()
    parser = argparse.ArgumentParser(description="Count mannerisms of prose.")
    parser.add_argument(
        "--list", choices=rules, metavar="RULE", help=f"Places of one rule: {', '.join(rules)}."
    )
    chosen = parser.parse_args().list
    if chosen:
        for place in search({chosen: rules[chosen]}, files())[chosen]:
            print(f"{place.file.relative_to(ROOT)}:{place.line}: {place.text}")
        return 0
    over = report(rules, search(rules, files()))
    if over:
        print(
            f"{over} rules exceed their allowance; to see where: python scripts/prose.py --list RULE",
            file=sys.stderr,
        )
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
