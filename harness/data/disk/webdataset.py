"""webdataset's tar files: consecutive members KEY.jpg, KEY.cls, KEY.json, KEY.txt are one sample.

Captions are the lines of KEY.txt, else a field of KEY.json; they are in the index of a file. Tar files are
read in place, by the positions of their members. Source: webdataset tariterators.py
(`base_plus_ext`, `group_by_keys`).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import USUAL_CAPTIONS
from harness.data.disk.captions import MOST_CHARACTERS, NAMES, Captions, checked
from harness.data.disk.labels import NONE, Labels, label_column, unlabelled, usable_labels
from harness.data.disk.packed import (
    PICKLED,
    Packed,
    PackedImages,
    check_names,
    decompressed_by,
    read_span,
    refuse_pickled,
    train_split,
)
from harness.data.disk.survey import Encoded, survey_files
from harness.errors import UserError, first_line, unknown
from harness.files.parse import parse_json
from metrics.files.listing import Skipped, walk
from metrics.files.media import IMAGE
from metrics.value import MetricError

MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""Key and ending of a member: the name is cut at the first dot after the last slash."""
SPLIT = re.compile(r"(?:^|[/_-])(train|test|validation|valid|val|dev)(?![a-z])")
"""The split in the name of a tar file, for example `imagenet-train-0000.tar`."""
CLASS, JSON, TEXT = "cls", "json", "txt"
CLASS_BYTES, JSON_BYTES = 1024, 2**20
"""Bytes of the largest members with labels."""
TEXT_BYTES = 4 * MOST_CHARACTERS
"""Bytes of the largest member with captions."""
HEADER_BYTES = 2**20
"""Bytes of the largest extended header, for example of a long name."""
NO_IMAGE = "samples without image"


class TarImages(PackedImages):
    """Images of webdataset tar files: KEY.jpg (png, webp, ...) with KEY.cls or a label in KEY.json.

    A folder's tar files are read in the order of their names; of several splits, only `train` is used. With
    `data.caption_key`, captions are the lines of KEY.txt, or a field of KEY.json.
    """

    reads = (*PackedImages.reads, "caption_key")
    expected = "a .tar file or a folder of them, with members KEY.jpg and KEY.cls or KEY.json"

    @staticmethod
    def open(spec: DataSpec, path: Path) -> Packed:
        files, skipped = tar_files(path)
        wanted = _Wanted(spec.image_key, spec.label_key, spec.caption_key)
        rows = survey_files(path, files, whole, f"index of tar {wanted}", wanted.indexed)
        shards = [_Shard(*row[1:]) for row in rows]
        _check_alike(files, shards)
        labels, source = _labels(spec, path, shards)

        def read(file: int, row: int) -> bytes:
            start, size = shards[file].spans[row]
            return read_span(files[file], start, size, name(file, row))

        def name(file: int, row: int) -> str:
            return f"{files[file]}: {shards[file].keys[row]}.{shards[file].image}"

        return Packed(
            files, [len(shard.spans) for shard in shards], labels, source, read, name, f"tar {wanted}",
            skipped=(*skipped, *_skipped(files, shards)),
            captions=_captions(path, shards) if spec.caption_key else None,
        )  # fmt: skip


class _Shard(NamedTuple):
    """The index of a tar file, as it is kept in the cache."""

    image: str
    """The ending of the images."""
    label: str
    """Source of the labels: `cls`, a field of `json`, or nothing."""
    keys: list[str]
    spans: list[list[int]]
    """Position and size of each image."""
    labels: list[Any]
    left: dict[str, list[Any]]
    """Reason -> number of members that were left out, and the first of them."""
    text: str = ""
    """Source of the captions: `txt`, a field of `json`, or nothing."""
    captions: Sequence[Sequence[str]] = ()
    """The captions of each image, if they are read."""


@dataclass
class _Group:
    """The members of one sample."""

    key: str
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wanted:
    """The members that are read of each sample."""

    image_key: str
    label_key: str
    caption_key: str = ""

    def __str__(self) -> str:
        # Without captions it is that of earlier versions, whose indices are still read.
        return f"{self.image_key} {self.label_key}" + (f" {self.caption_key}" if self.caption_key else "")

    def indexed(self, item: Encoded) -> tuple[Any, ...]:
        """Return the index of a tar file as a row of the cache."""
        file = Path(item.where)
        left: dict[str, list[Any]] = {}
        groups = list(_groups(file, left))
        image = self._image(file, groups)
        kept = [group for group in groups if image in group.spans]
        for group in groups:
            if image not in group.spans:
                entry = left.setdefault(NO_IMAGE, [0, group.key])
                entry[0] += 1
        self._refuse(file, kept)
        label = self._label(file, kept)
        values = [_value(file, group, label) for group in kept] if label else []
        text = self._text(file, kept)
        captions = [list(_captions_of(file, group, text)) for group in kept] if text else []
        return (
            "", image, label, [group.key for group in kept], [list(group.spans[image]) for group in kept],
            values, left, *((text, captions) if self.caption_key else ()),
        )  # fmt: skip

    def _image(self, file: Path, groups: Sequence[_Group]) -> str:
        """Return the ending of the images of a file."""
        endings = dict.fromkeys(ending for group in groups for ending in group.spans)
        if self.image_key:
            if self.image_key not in endings:
                raise unknown(f"data.image_key in {file}", self.image_key, endings)
            return self.image_key
        for ending in endings:
            if f".{ending.rpartition('.')[2].lower()}" in IMAGE.not_read:
                raise UserError(
                    f"{file} holds .{ending} images, which are not supported; convert them to PNG"
                )
        images = [e for e in endings if f".{e.rpartition('.')[2].lower()}" in IMAGE.suffixes]
        if len(images) > 1:
            raise UserError(f"{file} holds images {', '.join(images)}; choose one with data.image_key")
        if not images:
            held = ", ".join(list(endings)[:6]) or "nothing"
            raise UserError(f"{file} holds no images, but {held}; expected {TarImages.expected}")
        return images[0]

    def _refuse(self, file: Path, groups: Sequence[_Group]) -> None:
        """Raise `UserError` for pickled members, unless the user has chosen what to read."""
        if self.image_key:
            return
        pickled = {e for group in groups for e in group.spans if e.rpartition(".")[2].lower() in PICKLED}
        refuse_pickled([f".{ending}" for ending in sorted(pickled)], str(file), "data.image_key")

    def _label(self, file: Path, groups: Sequence[_Group]) -> str:
        """Return where the labels are from: a member's ending, or `json` and a field."""
        first = groups[0].spans if groups else {}
        if self.label_key == NONE or not groups:
            return ""
        if self.label_key in first and self.label_key != JSON:
            return self.label_key
        if CLASS in first and not self.label_key:
            return CLASS
        if JSON not in first:
            if self.label_key:
                raise unknown(f"data.label_key in {file}", self.label_key, first)
            return ""
        fields = _json(file, groups[0])
        found = label_column(list(fields), f"{file}: .{JSON} has {', '.join(fields)}", self.label_key)
        if found and found not in fields:
            raise unknown(f"data.label_key in {file}", found, [*first, *fields])
        return f"{JSON} {found}" if found else ""

    def _text(self, file: Path, groups: Sequence[_Group]) -> str:
        """Return where the captions are from: a member's ending, or `json` and a field; empty for neither."""
        if not self.caption_key:
            return ""
        endings = dict.fromkeys(ending for group in groups for ending in group.spans)
        wanted = (TEXT, *NAMES) if self.caption_key == USUAL_CAPTIONS else (self.caption_key,)
        for ending in wanted:
            if ending in endings and ending != JSON:
                return ending
        first = next((group for group in groups if JSON in group.spans), None)
        fields = {} if first is None else _json(file, first)
        found = [
            name
            for name in fields
            if name in wanted or (self.caption_key == USUAL_CAPTIONS and name.lower() in NAMES)
        ]
        if len(found) > 1:
            raise UserError(
                f"{file}: .{JSON} has {', '.join(found)}, which may each hold captions; choose one with "
                "data.caption_key"
            )
        if not found and self.caption_key != USUAL_CAPTIONS:
            raise unknown(f"data.caption_key in {file}", self.caption_key, [*endings, *fields])
        return f"{JSON} {found[0]}" if found else ""


def tar_files(path: Path) -> tuple[list[Path], tuple[Skipped, ...]]:
    """Return the tar files of a path in order, or those of `train` if their names contain several splits."""
    if not path.is_dir():
        _refuse_compressed(path)
        return [path], ()
    try:
        names = sorted(name for name in walk(path) if name.lower().endswith(".tar"))
    except MetricError as error:
        raise UserError(f"data.root = {error}") from error
    if not names:
        for file in sorted(file for file in path.iterdir() if ".tar." in file.name or file.suffix == ".tgz"):
            _refuse_compressed(file)
        raise UserError(f"data.root = {path} holds no .tar files; expected {TarImages.expected}")
    splits = {name: match[1] if (match := SPLIT.search(name)) else "" for name in names}
    if len(set(splits.values())) < 2:
        return [path / name for name in names], ()
    chosen = train_split(path, sorted(set(splits.values())), "in the names of its tar files")
    left = [name for name in names if splits[name] != chosen]
    skipped = Skipped(f"outside of the split {chosen}", len(left), left[0])
    return [path / name for name in names if splits[name] == chosen], (skipped,)


def _refuse_compressed(file: Path) -> None:
    """Raise `UserError` for a compressed tar file, in which no sample can be reached without all before."""
    if command := decompressed_by(str(file)):
        raise UserError(
            f"{file} is a compressed tar file, whose samples cannot be read in place; run {command}"
        )


class _Headers(io.FileIO):
    """A tar file of which headers are read; tarfile reads extended ones at once, of any size they state."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise OSError(f"a header of {size} bytes is larger than {HEADER_BYTES:,}")
        return super().read(size) or b""


def members(file: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file in order; none is kept. Raises `UserError` if it is damaged."""
    try:
        with _Headers(file) as content, tarfile.open(fileobj=content, mode="r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                # A negative size leads back to a member that was read.
                if member.size < 0 or archive.offset <= end:
                    raise ValueError(f"the size of {member.name!r} is negative")
                end = archive.offset
                # Members are kept by tarfile otherwise.
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                yield member
            end = archive.offset
        _check_end(file, end)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        reason = first_line(error)
        raise UserError(
            f"{file} is not a tar file that can be read: {reason}; replace it, or decompress it if it is "
            "compressed"
        ) from error


def _check_end(file: Path, end: int) -> None:
    """Raise `UserError` if a tar file continues after the last member that could be read."""
    with open(file, "rb") as content:
        content.seek(end)
        while block := content.read(2**20):
            if block.strip(b"\0"):
                raise UserError(f"{file} is damaged after byte {end}: no header of a member; replace it")


def _groups(file: Path, left: dict[str, list[Any]]) -> Iterator[_Group]:
    """Yield the samples of a tar file in order; count what is left out."""
    group, keys = None, set()
    size = file.stat().st_size
    for member in members(file):
        if member.isdir():
            continue
        match = MEMBER.fullmatch(member.name)
        check_names([member.name], file)
        if not member.isreg() or member.sparse is not None or match is None:
            entry = left.setdefault("other members", [0, member.name])
            entry[0] += 1
            continue
        if member.offset_data + member.size > size:
            raise UserError(f"{file}: {member.name} is cut short; replace the file")
        key, ending = match.groups()
        if group is None or group.key != key:
            if group is not None:
                yield group
            if key in keys:
                raise UserError(f"{file} holds the key {key!r} twice, with other members between; rename one")
            keys.add(key)
            group = _Group(key)
        if ending in group.spans:
            raise UserError(f"{file} holds {member.name!r} twice; remove one")
        group.spans[ending] = member.offset_data, member.size
    if group is not None:
        yield group


def whole(file: Path) -> list[Encoded]:
    """Return a tar file as one item of a survey, whose content is not read."""
    return [Encoded(bytes, str(file))]


def _value(file: Path, group: _Group, label: str) -> Any:
    """Return the label of a sample as its file states it: a number or a text."""
    ending, _, name = label.partition(" ")
    where = f"{file}: {group.key}.{ending}"
    if ending not in group.spans:
        raise UserError(
            f"{where} is missing, and other samples have it; add it, or set data.label_key={NONE}"
        )
    if name:
        fields = _json(file, group)
        if not isinstance(fields.get(name), int | str | float):
            raise UserError(f"{where} has no number or text '{name}'; add it, or set data.label_key={NONE}")
        return fields[name]
    text = _text(file, group, ending, CLASS_BYTES).strip()
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else text


def _captions_of(file: Path, group: _Group, text: str) -> tuple[str, ...]:
    """Return the captions of a sample: the lines of a text, or a field; nothing if it has none."""
    ending, _, name = text.partition(" ")
    if ending not in group.spans:
        return ()
    where = f"{file}: {group.key}.{ending}"
    if name:
        return checked(_json(file, group).get(name), f"{where}, field '{name}'")
    lines = [line for line in _text(file, group, ending, TEXT_BYTES).splitlines() if line.strip()]
    # A file without text is an empty caption, not a missing one.
    return checked(lines or [""], where)


def _json(file: Path, group: _Group) -> dict[str, Any]:
    try:
        fields = parse_json(_text(file, group, JSON, JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {group.key}.{JSON} is not JSON: {first_line(error)}; correct it") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file}: {group.key}.{JSON} is no JSON object; replace it")
    return fields


def _text(file: Path, group: _Group, ending: str, limit: int) -> str:
    start, size = group.spans[ending]
    where = f"{file}: {group.key}.{ending}"
    if size > limit:
        raise UserError(f"{where} has {size:,} bytes, expected at most {limit:,}; replace it")
    try:
        return read_span(file, start, size, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8; save it as UTF-8") from error


def _check_alike(files: Sequence[Path], shards: Sequence[_Shard]) -> None:
    """Raise `UserError` if tar files of a set have other images, labels or captions than the first."""
    for file, shard in zip(files, shards, strict=True):
        for what, one, other in (
            ("image", shard.image, shards[0].image), ("label", shard.label, shards[0].label),
            ("caption", shard.text, shards[0].text),
        ):  # fmt: skip
            if one != other:
                raise UserError(
                    f"{file} has {what}s '{one or NONE}', but {files[0]} has '{other or NONE}'; choose with "
                    f"data.{what}_key"
                )


def _labels(spec: DataSpec, path: Path, shards: Sequence[_Shard]) -> tuple[Labels, str]:
    n, label = sum(len(shard.spans) for shard in shards), shards[0].label
    if not label:
        reason = f"data.label_key = {NONE}" if spec.label_key == NONE else "no .cls, and no label in .json"
        return unlabelled(n), f"none: {reason}"
    values = [value for shard in shards for value in shard.labels]
    column = as_column(values)
    ending, _, name = label.partition(" ")
    source = f"member .{ending}" + (f", field '{name}'" if name else "")
    return usable_labels(column, n, f"{path}: .{ending}", chosen=bool(spec.label_key)), source


def _captions(path: Path, shards: Sequence[_Shard]) -> Captions:
    """Return the captions of all samples. Raises `UserError` if no sample has one."""
    texts = [tuple(captions) for shard in shards for captions in shard.captions]
    if not any(texts):
        raise UserError(
            f"data.root = {path} has no captions; expected members KEY.txt, or a field {NAMES[1]} in KEY.json"
        )
    ending, _, name = shards[0].text.partition(" ")
    return Captions(
        texts.__getitem__, f"member .{ending}" + (f", field '{name}'" if name else ""), len(texts)
    )


def as_column(values: Sequence[Any]) -> np.ndarray:
    """Return numbers as integers or fractions, and texts, also mixed with numbers, as objects."""
    if all(isinstance(value, int) and abs(value) < 2**62 for value in values):
        return np.array(values, dtype=np.int64)
    if all(isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**62) for value in values):
        return np.array(values, dtype=np.float64)
    return np.array([str(value) for value in values], dtype=object)


def _skipped(files: Sequence[Path], shards: Sequence[_Shard]) -> list[Skipped]:
    """Return what was left out of all tar files, by reason."""
    found: dict[str, Skipped] = {}
    for file, shard in zip(files, shards, strict=True):
        for reason, (count, first) in shard.left.items():
            before = found.get(reason)
            example = before.example if before else f"{file.name}: {first}"
            found[reason] = Skipped(reason, count + (before.files if before else 0), example)
    return list(found.values())
