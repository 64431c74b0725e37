"""Mutations of files as hypothesis strategies, which shrink a finding to its smallest edit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from hypothesis import strategies as st

Kind = Literal["replace", "insert", "delete", "repeat", "cut", "token"]

NUMBERS = [
    b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x80\0\0\0",
]  # fmt: skip
"""Integers at which lengths and counts overflow."""
TOKENS = [
    *(
        b"",
        b"0",
        b"-1",
        b"1e308",
        b"1e999",
        b"-1e-999",
        b"nan",
        b"NaN",
        b"inf",
        b"-Infinity",
        b"0x10",
        b"1_000",
    ),
    *(b"9" * 20, b"9" * 5000, b"18446744073709551616", b"true", b"null", b"[]", b"{}"),
    *(b"[" * 2000, b'{"a":' * 2000, b"a." * 2000 + b"a=1"),
    *(
        b'"',
        b"'",
        b'"""',
        b",",
        b";",
        b"\n",
        b"\r",
        b"\t",
        b"#",
        b"=",
        b"\0",
        b"\\u0000",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(b"\xff\xfe", "\u202eé\U0001f600".encode(), b"\x1b[2J"),
    *(b"../../../../escaped", b"/absolute", b"..", b"http://127.0.0.1:9/a", b"%s{0}${x}`id`"),
    *(b"<script>alert(1)</script>", b"=cmd()", b"flow", b"label", b"seed", b"name", b"file_name"),
]
"""Words that have another meaning in some format, or are too long, too deep or too large."""
WORD = re.compile(rb"[\w.+-]+")


class Edit(NamedTuple):
    """One change of one file."""

    file: int
    """Number of the file, modulo the number of files."""
    place: float
    """The place, as a share of the length."""
    kind: Kind
    content: bytes
    length: int


def edits(text: bool) -> st.SearchStrategy[list[Edit]]:
    """Return the strategy of one to five edits; those of text files are mostly complete words."""
    content = st.sampled_from(TOKENS if text else NUMBERS + TOKENS[:10]) | st.binary(max_size=8)
    kinds: list[Kind] = ["replace", "insert", "delete", "repeat", "cut"]
    kind = st.sampled_from([*(["token"] * 5 if text else []), *kinds])
    place = st.floats(0, 1, exclude_max=True) | st.floats(0, 0.02) | st.floats(0.98, 1, exclude_max=True)
    edit = st.builds(Edit, st.integers(0, 7), place, kind, content, st.integers(1, 64))
    return st.lists(edit, min_size=1, max_size=5)


def mutated(files: Mapping[str, bytes], changes: list[Edit]) -> dict[str, bytes]:
    """Return files after some edits, in order."""
    found, names = dict(files), sorted(files)
    for edit in changes:
        name = names[edit.file % len(names)]
        found[name] = _edited(found[name], edit)
    return found


def _edited(content: bytes, edit: Edit) -> bytes:
    start = int(edit.place * len(content))
    end = min(start + edit.length, len(content))
    match edit.kind:
        case "replace":
            return content[:start] + edit.content + content[start + len(edit.content) :]
        case "insert":
            return content[:start] + edit.content + content[start:]
        case "delete":
            return content[:start] + content[end:]
        case "repeat":
            return content[:end] + content[start:end] + content[end:]
        case "cut":
            return content[:start]
        case "token":
            word = WORD.search(content, start) or WORD.search(content)
            first, last = word.span() if word else (start, start)
            return content[:first] + edit.content + content[last:]
