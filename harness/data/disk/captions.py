"""Captions next to samples: which column or file holds them, and one or several for each sample.

They are read only if `data.caption_key` is set, and are then part of the fingerprint. A sample may have no
caption. Lines of captions are stripped, and nothing else is changed: whatever is missing, empty or long is
counted (harness/data/found.py).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Any: values of JSON and of parquet columns.
from typing import Any

import pyarrow as pa

from harness.data.dataset import USUAL_CAPTIONS
from harness.data.disk.tables import FILE, caption_rows
from harness.errors import UserError, unknown
from harness.files.files import read_text

NAMES = ("captions", "caption", "text", "texts", "prompt", "prompts")
"""Names of columns that hold captions."""
BESIDE = ".txt"
"""Ending of the file with the captions of the image of its name, one a line."""
MOST_CHARACTERS = 100_000
"""Longer captions are refused, because they are no captions."""


@dataclass(frozen=True)
class Captions:
    """The captions of all samples."""

    of: Callable[[int], tuple[str, ...]]
    """A function from an index to the captions of a sample."""
    source: str
    """The column or files that hold them, for messages."""
    count: int
    """Number of samples."""

    def fingerprint(self, images: str) -> str:
        """Return 16 hex digits over the fingerprint of the images and all captions."""
        total = hashlib.sha256(images.encode())
        for index in range(self.count):
            texts = "\0".join(self.of(index))
            total.update(f"{index} {texts}\n".encode(errors="surrogatepass"))
        return total.hexdigest()[:16]


def caption_column(columns: Sequence[str], key: str, where: str) -> str:
    """Return the column of captions; raises `UserError` for no column, or several, with usual names."""
    if key != USUAL_CAPTIONS:
        if key in columns:
            return key
        raise unknown(f"data.caption_key in {where}", key, columns)
    found = [name for name in columns if name.lower() in NAMES]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(found or columns)
    why = "which may each hold captions" if found else f"of which none is named {', '.join(NAMES)}"
    raise UserError(f"{where} has columns {listed}, {why}; choose one with data.caption_key")


def column_captions(columns: Sequence[tuple[pa.ChunkedArray, str]], source: str) -> Captions:
    """Return the captions of the rows of columns of texts, or of lists of texts, one column a file.

    Raises `UserError`, naming the file, for a column of another type.
    """
    for column, where in columns:
        kind = column.type
        inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)):
            raise UserError(
                f"{where} is {kind}, expected texts or lists of texts; choose another with data.caption_key"
            )
    # Files may store different types of texts, so each keeps its column.
    ends = list(itertools.accumulate(len(column) for column, _ in columns))

    def of(index: int) -> tuple[str, ...]:
        number = bisect.bisect_right(ends, index)
        column, where = columns[number]
        row = index - (ends[number - 1] if number else 0)
        return checked(column[row].as_py(), f"{where} row {row}")

    for index in range(ends[-1]):
        of(index)
    return Captions(of, source, ends[-1])


def checked(value: Any, where: str) -> tuple[str, ...]:
    """Return a text or a list of texts as captions, without the empty values of a list.

    Raises `UserError` for anything else, and for a text that is too long.
    """
    values = value if isinstance(value, list | tuple) else [value]
    for text in values:
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{where}: a caption is {str(text)[:40]!r}, expected a text or a list of texts; correct it, "
                "or choose another column with data.caption_key"
            )
        if text is not None:
            check_encodable(text, where)
        if text is not None and len(text) > MOST_CHARACTERS:
            raise UserError(
                f"{where}: a caption has {len(text)} characters, which is no caption; shorten it to at most "
                f"{MOST_CHARACTERS}, or choose another column with data.caption_key"
            )
    return tuple(text.strip() for text in values if text is not None)


def check_encodable(text: str, where: str) -> None:
    """Raise `UserError` for a text with half a character (a lone surrogate), which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {text[:40]!r} has half a character at {error.start}; correct it"
        ) from error


def folder_captions(root: Path, names: Sequence[str], split: str, key: str) -> Captions:
    """Return the captions of files below a folder: of its table, else of `NAME.txt` next to each file.

    Raises `UserError` if a folder has neither, or if they cannot be read.
    """
    if (table := caption_rows(root, split)) is not None:
        file, prefix, rows = table
        columns = list(dict.fromkeys(name for row in rows for name in row))
        if key != USUAL_CAPTIONS or any(name.lower() in NAMES for name in columns):
            column = caption_column([name for name in columns if name != FILE], key, str(file))
            return _of_rows(root, file, prefix, rows, column, names)
    if key != USUAL_CAPTIONS:
        raise UserError(
            f"data.caption_key = {key}, but {root} has no table with columns; leave it out to read NAME.txt"
        )
    _refuse_shared(root, names)
    texts = [_beside(root / name) for name in names]
    if not any(texts):
        raise UserError(
            f"data.root = {root} has no captions; expected a column {NAMES[2]} in metadata.jsonl or "
            "metadata.csv, or NAME.txt next to each image"
        )
    return Captions(texts.__getitem__, f"NAME{BESIDE} files", len(texts))


def _of_rows(
    root: Path, file: Path, prefix: str, rows: Iterable[dict[str, Any]], column: str, names: Sequence[str]
) -> Captions:
    """Return the captions of the rows of a table, which may list a file several times."""
    found: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows):
        name = prefix + str(row.get(FILE, "")).replace("\\", "/").removeprefix("./")
        # A cell without a value is read as an empty text, or as nothing.
        value = row.get(column) or None
        found[name] = found.get(name, ()) + checked(value, f"{file} row {number}")
    texts = [found.get(name, ()) for name in names]
    if not any(texts):
        raise UserError(f"{file} has no caption of any of the {len(names)} files; correct its {FILE}")
    return Captions(
        texts.__getitem__, f"{file.name}, column '{column}'{_absent(root, found, names)}", len(texts)
    )


def _absent(root: Path, listed: Iterable[str], names: Sequence[str]) -> str:
    """Return how many files of a table do not exist, in words; empty if all do."""
    known = set(names)
    # Of a name that is too long for any file, pathlib raises.
    absent = [name for name in listed if name not in known and not os.path.isfile(root / name)]
    return f"; {len(absent)} listed files do not exist (first: {absent[0][:200]})" if absent else ""


def _refuse_shared(root: Path, names: Sequence[str]) -> None:
    """Raise `UserError` for two files of one name, whose text file may belong to either."""
    first: dict[Path, str] = {}
    for name in names:
        text = Path(name).with_suffix(BESIDE)
        other = first.setdefault(text, name)
        if other != name and (root / text).is_file():
            raise UserError(
                f"{root} has {other} and {name}, and {text} may have the captions of either; rename one"
            )


def _beside(image: Path) -> tuple[str, ...]:
    """Return the lines of the text file next to an image; nothing without one."""
    file = image.with_suffix(BESIDE)
    if not file.is_file():
        return ()
    if (size := file.stat().st_size) > 4 * MOST_CHARACTERS:
        raise UserError(
            f"{file} has {size} bytes, which are no captions; shorten it to at most {4 * MOST_CHARACTERS}"
        )
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    # A file without text is an empty caption, not a missing one.
    return checked(lines or [""], str(file))
