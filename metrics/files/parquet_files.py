"""The parquet files of a folder: those that hold samples, and tables of labels next to files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metrics.files.listing import Left, Skipped, walk
from metrics.files.numpy_files import bound_of
from metrics.value import MetricError

TABLE = "metadata.parquet"
"""Name of a table of labels next to files (Hugging Face's imagefolder)."""
FILE = "file_name"
"""The column of such a table that names the files."""
BATCH = 64
"""Rows that are read at a time, before the bytes that were read are counted."""
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


# Any: pyarrow, which is imported when a file is read.
def bounded_table(file: Path, columns: list[str]) -> Any:
    """Return columns of a file as a `pyarrow.Table`.

    Raises `MetricError` for a damaged file, for two columns of one name, and for one that takes much
    more memory than its file: encoded images do not shrink further.
    """
    import pyarrow as pa

    batches = list(bounded_batches(file, columns))
    try:
        return pa.Table.from_batches(batches) if batches else schema_of(file, columns).empty_table()
    except pa.ArrowException as error:
        raise MetricError(f"{file} is a damaged parquet file: {error}") from error


def bounded_batches(file: Path, columns: list[str]) -> Iterator[Any]:
    """Yield columns of a file in batches of some rows; see `bounded_table`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    bound, total = bound_of(file), 0
    schema_of(file, columns)
    try:
        content = pq.ParquetFile(file)
        _check_pages(content, columns, bound, file)
        for batch in content.iter_batches(batch_size=BATCH, columns=columns):
            total += batch.nbytes
            if total > bound:
                raise MetricError(f"{file} unpacks to more than {bound:,} bytes")
            yield batch
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise MetricError(f"{file} is a damaged parquet file: {error}") from error


def schema_of(file: Path, columns: Sequence[str] = ()) -> Any:
    """Return the schema of a file, restricted to columns if they are given.

    Raises `MetricError` for a file that is not parquet, and for two columns of one name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        names = schema.names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MetricError(f"{file} is not a readable parquet file: {error}") from error
    for name in columns or names:
        if names.count(name) > 1:
            raise MetricError(f"{file} has two columns of the name '{name}'")
    return pa.schema([schema.field(name) for name in columns]) if columns else schema


def _check_pages(content: Any, columns: list[str], bound: int, file: Path) -> None:
    """Raise `MetricError` for row groups whose pages take more than a bound when they are unpacked."""
    groups = (content.metadata.row_group(number) for number in range(content.metadata.num_row_groups))
    parts = (group.column(number) for group in groups for number in range(group.num_columns))
    total = sum(part.total_uncompressed_size for part in parts if _is_of(part.path_in_schema, columns))
    if total > bound:
        raise MetricError(f"{file} unpacks to {total:,} bytes, more than {bound:,}")


def _is_of(path: str, columns: Sequence[str]) -> bool:
    """Return whether a path in a schema is a column or inside one; names of columns may have dots."""
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def column_names(file: Path) -> list[str]:
    """Return the names of a file's columns. Raises `MetricError` for a file that is not parquet."""
    return schema_of(file).names
