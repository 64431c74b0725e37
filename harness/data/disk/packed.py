"""Images inside of container files, read in place: zip files, tar files and MDS shards.

A container is indexed once; a sample is then read by its position. Nothing is extracted or unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.captions import Captions
from harness.data.disk.labels import Labels
from harness.data.disk.media import Clips
from harness.data.disk.pixels import decode, fit
from harness.data.disk.survey import Encoded, common_shape, data_path, fingerprint, survey_files
from harness.data.stored import stored_images
from harness.errors import UserError
from metrics.files.listing import Skipped

LARGEST_IMAGE = 2**28
"""Bytes of the largest encoded image that is read from a container."""
PICKLED = frozenset({"pkl", "pickle", "pyd", "pyc", "pt", "pth"})
"""Endings and encodings of pickled objects."""


@dataclass(frozen=True)
class Packed:
    """The encoded images of some container files, in order."""

    files: list[Path]
    counts: Sequence[int]
    """Number of images in each file."""
    labels: Labels
    label_source: str
    read: Callable[[int, int], bytes]
    """Returns an image by the number of its file and its number in the file."""
    name: Callable[[int, int], str]
    """Returns its name for messages."""
    key: str = ""
    """The column or ending of the images, if there are several."""
    skipped: tuple[Skipped, ...] = ()
    captions: Captions | None = None
    """None if captions are not read."""


class PackedImages:
    """Images inside of container files; a subclass opens one kind."""

    modality = "image"
    reads: tuple[str, ...] = ("root", "resolution", "channels", "image_key", "label_key")
    expected = ""

    def __init__(self, spec: DataSpec) -> None:
        path = data_path(spec, self.expected)
        self._held = held = self.open(spec, path)
        self._place = Clips(held.counts)
        if not sum(held.counts):
            raise UserError(f"data.root = {path} holds no images; expected {self.expected}")
        labels = held.labels
        self.classes, self.class_names, self.files = labels.classes, list(labels.names), len(held.files)
        self.label_source, self.label_problem, self.skipped = held.label_source, labels.problem, held.skipped
        numbers = {file: number for number, file in enumerate(held.files)}
        surveys = survey_files(path, held.files, lambda file: self._inside(numbers[file]), held.key)
        self.stored = stored_images((one.width, one.height) for one in surveys)
        self.shape = common_shape(spec, surveys, lambda index: held.name(*self._place[index]))
        self._keys = [bytes.fromhex(one.sha256) for one in surveys]
        self.fingerprint = fingerprint((one.sha256 for one in surveys), labels.labels.tolist())
        if held.captions is not None:
            self.captions, self.caption_source = held.captions.of, held.captions.source
            self.fingerprint = held.captions.fingerprint(self.fingerprint)

    @staticmethod
    def open(spec: DataSpec, path: Path) -> Packed:
        """Index the containers of a path. Raises `UserError` for damaged or ambiguous ones."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._keys)

    def sample(self, index: int) -> Sample:
        place = self._place[index]
        image = decode(self._held.read(*place), self._held.name(*place))
        return Sample(fit(image, self.shape), self.label(index))

    def label(self, index: int) -> int:
        return int(self._held.labels.labels[index])

    def key(self, index: int) -> bytes:
        return self._keys[index]

    def sample_name(self, index: int) -> str:
        return self._held.name(*self._place[index])

    def _inside(self, file: int) -> list[Encoded]:
        held = self._held
        return [
            Encoded(lambda row=row: held.read(file, row), held.name(file, row))
            for row in range(held.counts[file])
        ]


def read_span(path: Path, start: int, size: int, where: str, limit: int = LARGEST_IMAGE) -> bytes:
    """Return `size` bytes of a file. Raises `UserError` if it ends before, cannot be read, or has more bytes
    than `limit`."""
    if size > limit:
        raise UserError(f"{where} has {size:,} bytes, but at most {limit:,} are read; remove it")
    try:
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(size)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) != size:
        raise UserError(f"{where} is cut short: {len(content)} of {size} bytes; replace {path}")
    return content


def check_names(names: Sequence[str], archive: Path) -> None:
    """Raise `UserError` for a member whose name leaves the archive, and for names that occur twice."""
    seen: set[str] = set()
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
            raise UserError(f"{archive} holds {name!r}, which is outside of the archive; remove it")
        if name in seen:
            raise UserError(f"{archive} holds {name!r} twice; remove one")
        seen.add(name)


def refuse_pickled(names: Sequence[str], where: str, field: str) -> None:
    """Raise `UserError` if some columns or members are pickled."""
    if names:
        raise UserError(
            f"{where} holds pickled objects ({', '.join(names)}), which are never executed; remove them, or "
            f"choose what to read with {field}"
        )


def decompressed_by(name: str) -> str:
    """Return the shell command that decompresses files with the ending of a name; empty for other endings."""
    ending = name.rpartition(".")[2].lower()
    commands = {
        "gz": "gunzip FILE", "tgz": "gunzip --suffix=.tgz FILE", "bz2": "bunzip2 FILE", "xz": "unxz FILE",
        "br": "brotli --decompress FILE", "zst": "zstd --decompress FILE",
        "zstd": "zstd --decompress FILE -o NAME",
    }  # fmt: skip
    if ending not in commands:
        return ""
    return commands[ending].replace("FILE", name).replace("NAME", name.rpartition(".")[0])


def train_split(root: Path, splits: Sequence[str], where: str) -> str:
    """Return the split to read: the only one, or `train`. Raises `UserError` for a choice without it."""
    if len(splits) == 1 or "train" in splits:
        return "train" if "train" in splits else splits[0]
    raise UserError(
        f"{root} holds the splits {', '.join(sorted(splits))} ({where}), and which one to use is ambiguous; "
        "set data.root to one of them"
    )
