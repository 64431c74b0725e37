"""Arrays of NumPy read from bytes of known length: nothing is unpickled, and nothing larger is allocated.

Sources: numpy.lib.format (.npy) and numpy.savez (.npz, a zip file of .npy members).
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from threading import Lock
from tokenize import TokenError
from typing import NamedTuple

import numpy as np

from harness.errors import UserError, first_line

LARGEST = 2**28
"""Bytes of the largest array of one sample that is read."""
HEADER = 2**16
"""Bytes that the header of a .npy file may take in addition to its array."""
STORED = ("float16", "float32")
"""Types in which latents are kept as they are."""
DAMAGED_ZIP = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError,
    struct.error, OverflowError, KeyError, IndexError,
)  # fmt: skip
"""Exceptions that zipfile raises for damaged, encrypted and unsupported files."""
_PARSER = Lock()
_DAMAGED_NPY = (ValueError, SyntaxError, TokenError, TypeError, EOFError, OverflowError, RecursionError)


class Form(NamedTuple):
    """The shape and type that all arrays of a folder share."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype}"


def parse_npy(content: bytes, where: str) -> np.ndarray:
    """Return the array of the bytes of a .npy file. Raises `UserError` if they are damaged or pickled."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _later_header(version)
        # Before Python 3.12 two threads that parse Python source, as a header is, raise SystemError at times.
        with _PARSER:
            shape, fortran, dtype = read(file)
    except _DAMAGED_NPY as error:
        raise damaged(where, "a .npy file", error) from error
    if dtype.hasobject:
        raise UserError(f"{where} holds pickled objects, which are never executed; save plain arrays")
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise damaged(where, "a .npy file", f"its shape is {shape}")
    body, needed = memoryview(content)[file.tell() :], math.prod(shape) * dtype.itemsize
    if len(body) != needed or not dtype.itemsize:
        raise UserError(
            f"{where} has {len(body)} bytes of data, but its header requires {needed}; the file is damaged, "
            "replace it"
        )
    try:
        return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError) as error:
        raise damaged(where, "a .npy file", error) from error


def checked_latents(array: np.ndarray, form: Form | None, where: str, first: str) -> np.ndarray:
    """Return an array (channels, height, width) in native bytes. Raises `UserError` for another form.

    `form` is that of the first array, whose name is `first`.
    """
    if array.dtype.name not in STORED:
        raise UserError(
            f"{where} is of type {array.dtype}, expected latents of type {' or '.join(STORED)}; convert it"
        )
    # REPA saves (1, channels, height, width) in some versions.
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim != 3 or not array.size:
        raise UserError(
            f"{where} has shape {array.shape}, expected latents (channels, height, width) of one sample"
        )
    found = Form(array.shape, array.dtype)
    if form is not None and (found.shape, found.dtype.name) != (form.shape, form.dtype.name):
        raise UserError(f"{where} is {found}, but {first} is {form}; all latents need one shape and type")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def read_file(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes; raises `UserError` if it is larger."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; replace or remove it") from error
    if len(content) > limit:
        raise _too_large(str(path), path.stat().st_size, limit)
    return content


def _read_member(archive: zipfile.ZipFile, name: str, limit: int, where: str) -> bytes:
    """Return a member of at most `limit` bytes, which its entry states before it is decompressed."""
    try:
        entry = archive.getinfo(name)
        if entry.file_size > limit:
            raise _too_large(where, entry.file_size, limit)
        with archive.open(entry) as member:
            content = member.read(entry.file_size + 1)
    except DAMAGED_ZIP as error:
        raise damaged(where, "a member of a zip file", error) from error
    if len(content) != entry.file_size:
        raise damaged(where, "a member of a zip file", "it ends early")
    return content


def read_npz(path: Path, names: tuple[str, ...], limit: int) -> dict[str, np.ndarray]:
    """Return those of the named arrays that an .npz file holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = set(archive.namelist())
            return {
                name: parse_npy(
                    _read_member(archive, f"{name}.npy", limit, f"{path}: '{name}'"), f"{path}: '{name}'"
                )
                for name in names
                if f"{name}.npy" in inside
            }
    except DAMAGED_ZIP as error:
        raise damaged(str(path), "an .npz file", error) from error


def damaged(where: str, kind: str, reason: object) -> UserError:
    """Return the error for a damaged file; `reason` is an exception or a text."""
    return UserError(
        f"{where} is not {kind} that can be read: {first_line(reason)[:200]}; replace or remove it"
    )


# Any: a function of numpy.lib.format.
def _later_header(version: tuple[int, int]):
    if version != (2, 0):
        raise ValueError(f"version {version} of the format is not supported")
    return np.lib.format.read_array_header_2_0


def _too_large(where: str, size: int, limit: int) -> UserError:
    return UserError(
        f"{where} has {size:,} bytes, but a sample of this folder has at most {limit:,}; replace or remove it"
    )
