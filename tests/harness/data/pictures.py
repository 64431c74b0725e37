"""Small images, and writers of the formats they are stored in, for tests of data sets on disk."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.dataset import Dataset

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2])


def pixels(n: int = len(LABELS), height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """Return random images uint8 (n, height, width, channels) of a fixed seed."""
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def png(image: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, form, **options)
    return buffer.getvalue()


def folder_of(root: Path, images: np.ndarray, labels: np.ndarray = LABELS) -> Path:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / f"class{label}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return root


def table_of(encoded: list[Any], labels: Any, column: str = "image", label: str = "label") -> pa.Table:
    rows = [row if isinstance(row, dict | None) else {"bytes": row, "path": None} for row in encoded]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({column: pa.array(rows, kind), label: labels})


def with_classes(table: pa.Table, **columns: list[str]) -> pa.Table:
    features = {name: {"names": names, "_type": "ClassLabel"} for name, names in columns.items()}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet_of(path: Path, images: np.ndarray, labels: np.ndarray = LABELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of([png(image) for image in images], labels), path)
    return path


def opened(name: str, root: Path | str, **fields: Any) -> Dataset:
    """Return a newly opened data set, bypassing the cache of `open_dataset`."""
    return registry.load("dataset", name)(DataSpec(name=name, root=str(root), **fields))


def all_pixels(data: Dataset) -> np.ndarray:
    """Return all samples, (n, height, width, channels)."""
    return np.stack([data.sample(i).x for i in range(len(data))]).transpose(0, 2, 3, 1)
