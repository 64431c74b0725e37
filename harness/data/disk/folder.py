"""Images in a folder, one subfolder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.pixels import decode, fit
from harness.data.disk.survey import Encoded, common_shape, data_path, fingerprint, survey
from harness.errors import UserError


class Kind(NamedTuple):
    """A kind of files, recognised by suffix."""

    plural: str
    read: tuple[str, ...]
    not_read: tuple[str, ...]
    """Suffixes that raise an error, because ignoring such files would lose data silently."""
    convert: str
    """The format to convert those to."""

    @property
    def expected(self) -> str:
        return f"a folder of {self.plural} ({', '.join(self.read)}), one subfolder per class"


IMAGES = Kind(
    "images",
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp"),
    (
        ".gif", ".apng", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".ppm",
        ".pgm", ".pbm", ".pnm", ".dib", ".ico", ".tga", ".psd", ".svg", ".exr",
    ),
    "PNG",
)  # fmt: skip


class ImageFolder:
    """Images in a folder, `root/<class>/.../image.png`; classes are the sorted names of its subfolders.

    Without subfolders there is one class. Hidden files and files of other kinds are ignored. Images in an
    unsupported format raise an error. Linked folders are followed, unless they form a cycle, which raises an
    error.
    """

    modality = "image"
    reads = ("root", "resolution", "channels")

    def __init__(self, spec: DataSpec) -> None:
        root = data_path(spec, IMAGES.expected)
        if not root.is_dir():
            raise UserError(f"data.root = {root} is a file, expected {IMAGES.expected}")
        self._root = root
        self.class_names, self._names, self._labels = list_files(root, IMAGES)
        self.classes = max(1, len(self.class_names))
        try:
            surveys = survey(root, [root / name for name in self._names], _one)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        self.shape = common_shape(spec, surveys, lambda i: str(root / self._names[i]))
        self._keys = [bytes.fromhex(s.sha256) for s in surveys]
        self.fingerprint = fingerprint((s.sha256 for s in surveys), self._labels)

    def __len__(self) -> int:
        return len(self._names)

    def sample(self, index: int) -> Sample:
        path = self._root / self._names[index]
        try:
            return Sample(fit(decode(path.read_bytes(), str(path)), self.shape), self.label(index))
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; it existed when the run started"
            ) from error

    def label(self, index: int) -> int:
        return self._labels[index]

    def key(self, index: int) -> bytes:
        return self._keys[index]


def list_files(root: Path, kind: Kind) -> tuple[list[str], list[str], list[int]]:
    """Return class names, and the relative name and the label of every file of a kind, sorted by name."""
    names = sorted(find_files(root, kind))
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = [name for name in names if "/" not in name]
    if not names:
        raise UserError(f"data.root = {root} has no {kind.plural}, expected {kind.expected}")
    if loose and len(loose) < len(names):
        raise UserError(f"{root / loose[0]} is next to class folders; move it into one of them")
    if loose:
        return [], names, [0] * len(names)
    label = {name: number for number, name in enumerate(folders)}
    labels = [label[name.partition("/")[0]] for name in names]
    for number in sorted(set(label.values()) - set(labels))[:1]:
        raise UserError(f"class folder {root / folders[number]} has no {kind.plural}; fill or remove it")
    return folders, names, labels


def find_files(root: Path, kind: Kind) -> Iterator[str]:
    """Yield the names of all files of a kind relative to the root, with forward slashes."""
    for folder, inner, files in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        inner[:] = [name for name in inner if not name.startswith(".")]
        _check_links(root, Path(folder), inner)
        for name in files:
            path, suffix = Path(folder, name), Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in kind.not_read:
                raise UserError(
                    f"{path}: {suffix} {kind.plural} are not supported; convert them to {kind.convert}, or "
                    "move "
                    "them out of the folder"
                )
            if suffix in kind.read:
                yield path.relative_to(root).as_posix()


def _check_links(root: Path, folder: Path, inner: list[str]) -> None:
    """Raise `UserError` for a link to a folder that contains it, because its files would count twice."""
    for link in (folder / name for name in inner):
        if link.is_symlink():
            ancestors = (folder, *(p for p in folder.parents if p.is_relative_to(root)))
            if any(p.resolve().is_relative_to(link.resolve()) for p in ancestors):
                raise UserError(f"{link} links back to {link.resolve()}, which contains it; remove the link")


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _one(path: Path) -> list[Encoded]:
    return [Encoded(path.read_bytes, str(path))]
