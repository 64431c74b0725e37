"""Container files of images, written by tarfile, zipfile, pyarrow and numpy alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.harness.data.pictures import LABELS, png

Members = Sequence[tuple[str, bytes]]


def tar_of(path: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar file with these members, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(images: np.ndarray, labels: Sequence[Any] = LABELS, ends: str = "png") -> list[tuple[str, bytes]]:
    """Return the members of webdataset's samples: KEY.cls and KEY.png."""
    members = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        members += [
            (f"train/{number:05d}.cls", str(label).encode()),
            (f"train/{number:05d}.{ends}", png(image)),
        ]
    return members


ENCODERS = {
    "int": lambda value: np.int64(value).tobytes(),
    "uint8": lambda value: np.uint8(value).tobytes(),
    "str": lambda value: str(value).encode(),
    "str_int": lambda value: str(value).encode(),
    "float32": lambda value: np.float32(value).tobytes(),
    "jpeg": lambda value: png(value, "JPEG", quality=95),
    "png": png,
    "bytes": lambda value: value if isinstance(value, bytes) else png(value),
    "pkl": lambda value: value,
    "pil": lambda value: (
        np.array([value.shape[1], value.shape[0], 3], "<u4").tobytes() + b"RGB" + value.tobytes()
    ),
}  # fmt: skip
SIZES = {"int": 8, "uint8": 1, "float32": 4}


def mds_of(root: Path, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], each: int = 3) -> Path:
    """Write MDS shards as mosaicml-streaming's MDSWriter does: columns sorted by name."""
    root.mkdir(parents=True, exist_ok=True)
    names = sorted(columns)
    kinds = [columns[name] for name in names]
    sizes = [SIZES.get(kind) for kind in kinds]
    config = {
        "version": 2, "format": "mds", "compression": None, "hashes": [], "size_limit": 1 << 26,
        "column_names": names, "column_encodings": kinds, "column_sizes": sizes,
    }  # fmt: skip
    text, shards = json.dumps(config, sort_keys=True).encode(), []
    for number, start in enumerate(range(0, len(rows), each)):
        encoded = []
        for row in rows[start : start + each]:
            cells = [
                ENCODERS[kind.partition(":")[0]](row[name]) for name, kind in zip(names, kinds, strict=True)
            ]
            heads = [len(cell) for cell, size in zip(cells, sizes, strict=True) if size is None]
            encoded.append(np.array(heads, "<u4").tobytes() + b"".join(cells))
        offsets = np.cumsum([0, *map(len, encoded)]) + 4 * (len(encoded) + 2) + len(text)
        content = np.array([len(encoded), *offsets], "<u4").tobytes() + text + b"".join(encoded)
        name = f"shard.{number:05d}.mds"
        (root / name).write_bytes(content)
        raw = {"basename": name, "bytes": len(content), "hashes": {}}
        shards.append(config | {"samples": len(encoded), "raw_data": raw, "zip_data": None})
    (root / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return root


def mds_rows(images: np.ndarray, labels: Sequence[Any] = LABELS) -> list[dict[str, Any]]:
    return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]


def saved(root: Path, table: pa.Table, files: int = 2, split: str = "train") -> Path:
    """Write a table as Dataset.save_to_disk does: Arrow streams, state.json and dataset_info.json."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    cuts = np.linspace(0, len(table), files + 1).astype(int)
    for name, begin, end in zip(names, cuts, cuts[1:], strict=False):
        with pa.OSFile(str(root / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table[begin:end], max_chunksize=2)
    state = {
        "_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None,
        "_split": split,
    }  # fmt: skip
    (root / "state.json").write_text(json.dumps(state))
    (root / "dataset_info.json").write_text(json.dumps({"splits": {split: {"num_examples": len(table)}}}))
    return root
