"""Folders of the datasets library's `save_to_disk`: Arrow files, memory-mapped, with `state.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.config.data_spec import DataSpec
from harness.data.disk.packed import check_names, train_split
from harness.data.disk.parquet import DAMAGED, ParquetImages, Rows, arrow_stream, rows_of_files
from harness.data.disk.survey import data_path
from harness.errors import UserError, first_line
from harness.files.files import read_text
from harness.files.parse import parse_json
from metrics.files.listing import Skipped

STATE, SPLITS = "state.json", "dataset_dict.json"
PICKLED = b"arrow.py_extension_type"
"""The name of extension types whose Python class is pickled in the schema."""
EXPECTED = "a folder written by save_to_disk of the datasets library, with a column of images"


class ArrowImages(ParquetImages):
    """Rows of a folder written by save_to_disk of Hugging Face datasets; of several splits, only `train`.

    The files are memory-mapped. A sample is decoded each time it is read.
    """

    @staticmethod
    def rows(spec: DataSpec) -> tuple[Path, Rows]:
        path = data_path(spec, EXPECTED)
        if not path.is_dir():
            raise UserError(f"data.root = {path} is a file, expected {EXPECTED}")
        folder, skipped = _split(path)
        files = _files(folder)
        for file in files:
            _refuse_pickled(file)
        return path, rows_of_files(spec, path, files, skipped)


def _split(path: Path) -> tuple[Path, tuple[Skipped, ...]]:
    """Return the folder of the training split of a DatasetDict, or the folder of a Dataset."""
    if not (path / SPLITS).is_file():
        return path, ()
    splits = _json(path / SPLITS).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
        raise UserError(f"{path / SPLITS} lists no splits; save the data set again")
    check_names(splits, path / SPLITS)
    chosen = train_split(path, splits, f"in {SPLITS}")
    left = sorted(set(splits) - {chosen})
    reason = f"outside of the split {chosen}"
    return path / chosen, (Skipped(reason, len(left), left[0]),) if left else ()


def _files(folder: Path) -> list[Path]:
    """Return the Arrow files of a Dataset in their order. Raises `UserError` for a damaged state.json."""
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} has no {STATE}; expected {EXPECTED}")
    state = _json(folder / STATE)
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder} selects rows by an index file; save flatten_indices() of the data set instead"
        )
    rows = state.get("_data_files")
    named = [row.get("filename") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names = [name for name in named if isinstance(name, str) and name.endswith(".arrow")]
    if not names or len(names) != len(named):
        raise UserError(f"{folder / STATE} lists no Arrow files; save the data set again")
    check_names(names, folder / STATE)
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, but {STATE} lists it; copy it too")
    return [folder / name for name in names]


# Any: values of JSON.
def _json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(file, "JSON"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {first_line(error)}; save the data set again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no JSON object; save the data set again")
    return content


def _refuse_pickled(file: Path) -> None:
    """Raise `UserError` if a column has an extension type that is pickled."""
    try:
        schema = arrow_stream(file).schema
    except DAMAGED as error:
        reason = first_line(error)
        raise UserError(f"{file} is not a readable Arrow file: {reason}; expected {EXPECTED}") from error
    for field in schema:
        if (field.metadata or {}).get(b"ARROW:extension:name") == PICKLED:
            raise UserError(
                f"{file}: column '{field.name}' has a pickled type, which is never executed; save it as a "
                "plain column"
            )
