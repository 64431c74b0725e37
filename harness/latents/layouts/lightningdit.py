"""LightningDiT's and iREPA's safetensors: `latents`, `latents_flip` and `labels` in files of many samples.

A latent is a draw of the posterior, (32, 16, 16) for VA-VAE at 256x256 pixels; `latents_flip` is one for the
mirrored image. `latents_stats.pt` holds mean and standard deviation of each channel. Source:
hustvl/LightningDiT extract_features.py, datasets/img_latent_dataset.py.
"""

from __future__ import annotations

import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from harness.data.disk.labels import Labels, unlabelled, usable_labels
from harness.data.disk.npy import damaged
from harness.errors import UserError
from harness.latents.layouts.source import LatentSource, identity_of
from metrics.files.listing import Skipped, is_clutter

SUFFIX, STATISTICS = ".safetensors", "latents_stats.pt"
LATENTS, FLIPPED, LABELS = "latents", "latents_flip", "labels"
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<f4"}
"""Types of latents, and those they are kept in; bfloat16 widens to float32 exactly."""
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STATISTICS_BYTES = 2**24
EXPECTED = "safetensors with latents (N, channels, height, width) and labels (N,)"
_DAMAGED = (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError, OverflowError)


def is_lightningdit(root: Path) -> bool:
    """Return whether a path is a .safetensors file or a folder of them."""
    return root.suffix == SUFFIX if root.is_file() else any(root.glob(f"*{SUFFIX}"))


def open_lightningdit(root: Path, *, labelled: bool) -> LatentSource:
    """Open the safetensors of a folder in the order of their names."""
    folder = root if root.is_dir() else root.parent
    files, skipped = _files(root)
    records = _Shards(files)
    labels, source = _labels(records, labelled)
    statistics = folder / STATISTICS
    return LatentSource(
        "lightningdit", root, records, _Names(records), labels, source, "sample", len(files),
        identity_of((file.name, file.stat().st_size) for file in files), skipped,
        statistics=read_statistics(statistics) if statistics.is_file() else None,
    )  # fmt: skip


def lightningdit_files(root: Path) -> list[Path]:
    """Return the safetensors of a root, and the file of statistics next to them."""
    folder = root if root.is_dir() else root.parent
    return [*_files(root)[0], *(file for file in (folder / STATISTICS,) if file.is_file())]


def read_statistics(file: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel. Nothing is unpickled but tensors.

    Raises `UserError` for another content.
    """
    try:
        _check_size(file)
        with warnings.catch_warnings():
            # Of torch, about the protocol of a pickle that it then refuses.
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds pickled objects other than tensors, which are never executed; save mean and std "
            "as tensors"
        ) from error
    # A damaged or hostile file can raise any error inside the reader.
    except Exception as error:
        raise damaged(str(file), "a file of statistics", error) from error
    mean, std = (
        _channels(content.get(name)) if isinstance(content, dict) else () for name in ("mean", "std")
    )
    if not mean or len(mean) != len(std):
        raise UserError(f"{file} has no 'mean' and 'std' of each channel; replace it, or give --scale")
    if not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise UserError(f"{file} has statistics that are not finite or not positive; replace it")
    return mean, std


def _check_size(file: Path) -> None:
    """Raise `ValueError` if a file, or the content of a zip file, is larger than statistics are."""
    sizes = [file.stat().st_size]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            sizes.append(sum(entry.file_size for entry in archive.infolist()))
    if max(sizes) > STATISTICS_BYTES:
        raise ValueError(f"it has more than {STATISTICS_BYTES:,} bytes")


class _Shards:
    """The records of several files, memory-mapped; one file is open at a time."""

    uncompressed = True

    def __init__(self, files: list[Path]) -> None:
        self.files, self._open = files, (-1, None)
        forms = [self._form(number) for number in range(len(files))]
        for file, (form, _, flipped) in zip(files, forms, strict=True):
            if (form, flipped) != (forms[0][0], forms[0][2]):
                raise UserError(
                    f"{file} holds {_described(form, flipped)}, but {files[0]} holds "
                    f"{_described(forms[0][0], forms[0][2])}; all files need the same"
                )
        (self.shape, kind), _, flipped = forms[0]
        self.dtype, self.copies = np.dtype(STORED[kind]), 1 + flipped
        self.stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
        self.ends = np.cumsum([rows for _, rows, _ in forms])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Return the file and the row of a sample."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return number, index - (int(self.ends[number - 1]) if number else 0)

    def read(self, start: int, stop: int) -> np.ndarray:
        parts = [self._rows(number, first, last) for number, first, last in self._pieces(start, stop)]
        return np.concatenate(parts)

    @property
    def paths(self) -> list[Path]:
        """The files, for positions."""
        return self.files

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return file and first byte of each record, int64 (stop - start, copies, 2)."""
        found = np.empty((stop - start, self.copies, 2), dtype=np.int64)
        size = math.prod(self.shape) * BYTES[self.stored]
        done = 0
        for number, first, last in self._pieces(start, stop):
            for copy, name in enumerate((LATENTS, FLIPPED)[: self.copies]):
                begin = _tensor_begin(self.files[number], name)
                found[done : done + last - first, copy, 0] = number
                found[done : done + last - first, copy, 1] = begin + size * np.arange(first, last)
            done += last - first
        return found

    def labels(self, number: int) -> np.ndarray | None:
        """Return the labels of a file, None if it has none."""
        opened = self._opened(number)
        if LABELS not in opened.keys():  # noqa: SIM118
            return None
        try:
            return opened.get_tensor(LABELS).numpy()
        except _DAMAGED as error:
            raise self._damaged(number, error) from error

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the file and the rows of consecutive samples."""
        while start < stop:
            number, row = self.place(start)
            count = min(stop - start, int(self.ends[number]) - start)
            yield number, row, row + count
            start += count

    def _rows(self, number: int, first: int, last: int) -> np.ndarray:
        opened = self._opened(number)
        try:
            copies = [opened.get_slice(name)[first:last] for name in (LATENTS, FLIPPED)[: self.copies]]
        except _DAMAGED as error:
            raise self._damaged(number, error) from error
        stacked = torch.stack(copies, dim=1)
        return (stacked.float() if stacked.dtype == torch.bfloat16 else stacked).numpy()

    def _form(self, number: int) -> tuple[tuple[tuple[int, ...], str], int, bool]:
        """Return (shape, type) of a latent, the number of rows, and whether there are mirrored ones."""
        opened, file = self._opened(number), self.files[number]
        names = set(opened.keys())
        if LATENTS not in names:
            raise UserError(
                f"{file} has no '{LATENTS}'; it has {', '.join(sorted(names)[:6])}; expected {EXPECTED}"
            )
        try:
            found = {name: opened.get_slice(name) for name in names & {LATENTS, FLIPPED, LABELS}}
            shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
            kinds = {name: part.get_dtype() for name, part in found.items()}
        except _DAMAGED as error:
            raise self._damaged(number, error) from error
        rows, *shape = shapes[LATENTS] or (0,)
        if len(shape) != 3 or not all((rows, *shape)):
            raise UserError(f"{file}: '{LATENTS}' has shape {shapes[LATENTS]}; expected {EXPECTED}")
        if kinds[LATENTS] not in STORED:
            raise UserError(f"{file}: '{LATENTS}' is {kinds[LATENTS]}; expected {', '.join(STORED)}")
        if FLIPPED in names and (shapes[FLIPPED], kinds[FLIPPED]) != (shapes[LATENTS], kinds[LATENTS]):
            raise UserError(
                f"{file}: '{FLIPPED}' is {kinds[FLIPPED]} {shapes[FLIPPED]}, but '{LATENTS}' is "
                f"{kinds[LATENTS]} {shapes[LATENTS]}; replace the file"
            )
        if LABELS in names and shapes[LABELS] not in ((rows,), (rows, 1)):
            raise UserError(
                f"{file}: '{LABELS}' has shape {shapes[LABELS]}, expected ({rows},), one per latent"
            )
        return (tuple(shape), kinds[LATENTS]), rows, FLIPPED in names

    # Any: a handle of safetensors.
    def _opened(self, number: int) -> Any:
        if self._open[0] != number:
            try:
                self._open = number, safe_open(self.files[number], framework="pt")
            except _DAMAGED as error:
                raise self._damaged(number, error) from error
        return self._open[1]

    def _damaged(self, number: int, error: Exception) -> UserError:
        return damaged(str(self.files[number]), "a safetensors file", error)


def _tensor_begin(file: Path, name: str) -> int:
    """Return the first byte of a tensor: uint64 length of a JSON header, the header, the tensors."""
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(length))
    return 8 + length + header[name]["data_offsets"][0]


class _Names(Sequence[str]):
    """Names of samples: the file and its row."""

    def __init__(self, shards: _Shards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, row = self._shards.place(index)
        return f"{self._shards.files[number].name} row {row}"


def _files(root: Path) -> tuple[list[Path], tuple[Skipped, ...]]:
    if root.is_file():
        return [root], ()
    files = sorted(file for file in root.glob(f"*{SUFFIX}") if not is_clutter(file.name))
    if not files:
        raise UserError(f"{root} holds no {SUFFIX} files; expected {EXPECTED}")
    left = sorted(p.name for p in root.iterdir() if p not in files and p.name != STATISTICS)
    return files, (Skipped("other files", len(left), left[0]),) if left else ()


def _labels(records: _Shards, labelled: bool) -> tuple[Labels, str]:
    if not labelled:
        return unlabelled(len(records)), "none: --no-labels"
    parts = []
    for number, file in enumerate(records.files):
        part = records.labels(number)
        if part is None:
            raise UserError(f"{file} has no '{LABELS}'; add them, or import with --no-labels")
        parts.append(part.reshape(-1))
    values = np.concatenate(parts)
    return usable_labels(values, len(values), str(records.files[0].parent)), f"tensor '{LABELS}'"


def _described(form: tuple[tuple[int, ...], str], flipped: bool) -> str:
    shape, kind = form
    return f"latents {'x'.join(map(str, shape))} {kind} {'with' if flipped else 'without'} mirrored copies"


# Any: a value of a file.
def _channels(value: Any) -> tuple[float, ...]:
    if not isinstance(value, torch.Tensor) or value.numel() != max(value.shape, default=0):
        return ()
    return tuple(value.double().flatten().tolist())
