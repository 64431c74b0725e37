"""The parquet files of a folder: those that hold samples, and tables of labels next to files."""

from __future__ import annotations

import re
from pathlib import Path

from metrics.files.listing import Left, Skipped, walk
from metrics.value import MetricError

TABLE = "metadata.parquet"
"""Name of a table of labels next to files (Hugging Face's imagefolder)."""
FILE = "file_name"
"""The column of such a table that names the files."""
IN_NAME = re.compile(r"(?:^|/)(train|test|validation|valid|val|dev)(?![a-z])")
"""The split in the name of a parquet file or its folder, for example `data/train-00000-of-00002.parquet` or
`train/0000.parquet`."""


def is_content(file: Path) -> bool:
    """Return whether a file is parquet, and no table of labels next to files."""
    return file.suffix.lower() == ".parquet" and not is_table(file)


def is_table(file: Path) -> bool:
    """Return whether a file is a table of labels next to files. Raises `MetricError` for a damaged one."""
    return file.name.lower() == TABLE and FILE in column_names(file)


def parquet_files(folder: Path) -> tuple[list[Path], tuple[Skipped, ...]]:
    """Return the parquet files of a folder, or only those of `train` if their names contain several splits.

    Raises `MetricError` for several splits without `train`.
    """
    left = Left()
    names = sorted(name for name in walk(folder, left) if is_content(folder / name))
    splits = {name: match[1] if (match := IN_NAME.search(name)) else "" for name in names}
    if len(set(splits.values())) < 2:
        return [folder / name for name in names], left.skipped()
    train = [name for name in names if splits[name] == "train"]
    if not train:
        raise MetricError(
            f"{folder} holds several splits and no train split: {Path(names[0]).name}, "
            f"{Path(names[-1]).name}; give one file"
        )
    left.add("outside of the split train", (name for name in names if splits[name] != "train"))
    return [folder / name for name in train], left.skipped()


def column_names(file: Path) -> list[str]:
    """Return the names of a file's columns. Raises `MetricError` for a file that is not parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file).names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MetricError(f"{file} is not a parquet file: {error}") from error
