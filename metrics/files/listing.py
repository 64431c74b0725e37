"""The files of a folder, found by one walk for training and for evaluation.

Hidden files, and those that systems and programs leave in folders, are skipped. Linked folders are followed,
unless a link leads back to a folder that contains it. If all folders with files of the kind are named as
splits of a data set, only `train` is used. The listing names everything that was left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from metrics.value import MetricError

LEFT_BY_PROGRAMS = frozenset(
    {
        "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
        "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__",
    }
)  # fmt: skip
"""Names, in lower case, of files and folders that belong to no data set."""
TRAIN = frozenset({"train", "training"})
OTHER_SPLITS = frozenset({"val", "valid", "validation", "dev", "test", "testing", "eval"})

OTHER = "other files"
STEP = 10_000
"""Files after which a walk reports its progress."""


class Skipped(NamedTuple):
    """Files that were left out for one reason."""

    reason: str
    files: int
    example: str
    """The first of them, relative to the root."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.files} ({_printable(self.example)}{', ...' if self.files > 1 else ''})"


@dataclass(frozen=True)
class Listing:
    """The files of a kind in a folder. Names are relative to the root, with forward slashes."""

    names: list[str]
    """Sorted."""
    split: str = ""
    """The folder of the split that was used; empty for all of the root."""
    skipped: tuple[Skipped, ...] = ()
    refused: str = ""
    """The first file in a format of this kind that is not supported."""

    def inside(self, name: str) -> str:
        """Return a name relative to the split."""
        return name.removeprefix(f"{self.split}/") if self.split else name


@dataclass
class Left:
    """The files that a walk left out, by reason."""

    by_reason: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, names: Iterable[str]) -> None:
        """Count names; only the first in order of each reason is kept."""
        for name in names:
            first = self.by_reason.setdefault(reason, [name])
            first[0] = min(first[0], name)
            self.counts[reason] = self.counts.get(reason, 0) + 1

    def skipped(self) -> tuple[Skipped, ...]:
        """Return what was left out, media before other files."""
        found = (Skipped(why, self.counts[why], names[0]) for why, names in self.by_reason.items())
        return tuple(sorted(found, key=lambda skipped: (skipped.reason == OTHER, skipped.reason)))


def list_folder(
    root: Path,
    suffixes: Collection[str],
    refused: Collection[str] = (),
    ignored: Collection[str] = (),
    kinds: Mapping[str, Collection[str]] | None = None,
    advance: Callable[[int], None] = lambda _: None,
    companions: Collection[str] = (),
) -> Listing:
    """Return the files below a folder that end in `suffixes`, in lower case.

    `refused` are suffixes of the kind that are not supported, and `ignored` are names that the caller reads.
    `kinds` are names and suffixes of other kinds, under which their files are reported. `advance` is called
    with the number of further files, every now and then. `companions` are suffixes of files that belong to
    the file of the same name.
    Raises `MetricError` for a folder that cannot be read, a link that leads back to a folder that contains
    it, and for several splits without `train`.
    """
    left, names, unsupported, beside = Left(), [], [], []
    for number, name in enumerate(walk(root, left), 1):
        if number % STEP == 0:
            advance(STEP)
        suffix = os.path.splitext(name)[1].lower()
        if suffix in suffixes:
            names.append(name)
        elif suffix in refused:
            unsupported.append(name)
        elif suffix in companions:
            beside.append(name)
        elif name not in ignored:
            other = next((kind for kind, ends in (kinds or {}).items() if suffix in ends), "")
            left.add(other or OTHER, [name])
    owners = {os.path.splitext(name)[0] for name in names} if beside else set()
    left.add("without a file of their name", (n for n in beside if os.path.splitext(n)[0] not in owners))
    split = _train_folder(root, {name.partition("/")[0] for name in names + unsupported if "/" in name})
    if split and all("/" in name for name in names):
        prefix = f"{split}/"
        left.add(f"outside of the split {split}", (name for name in names if not name.startswith(prefix)))
        names, unsupported = ([n for n in each if n.startswith(prefix)] for each in (names, unsupported))
    else:
        split = ""
    return Listing(sorted(names), split, left.skipped(), min(unsupported, default=""))


def walk(root: Path, left: Left | None = None) -> Iterator[str]:
    """Yield the names of all files below a folder, except those that `is_clutter` names."""
    left = left or Left()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        base = os.path.relpath(folder, root)
        prefix = "" if base == os.curdir else f"{base.replace(os.sep, '/')}/"
        left.add("hidden or left by programs", (prefix + name for name in inner + files if is_clutter(name)))
        inner[:] = sorted(name for name in inner if not is_clutter(name))
        _check_links(root, Path(folder), inner)
        yield from (prefix + name for name in files if not is_clutter(name))


def is_clutter(name: str) -> bool:
    """Return True for a hidden file or folder (`._x`, `.ipynb_checkpoints`), or one that programs leave."""
    return name.startswith(".") or name.lower() in LEFT_BY_PROGRAMS


def _train_folder(root: Path, folders: Collection[str]) -> str:
    """Return the folder of the training split if all folders are named as splits, else nothing."""
    if not folders or any(name.lower() not in TRAIN | OTHER_SPLITS for name in folders):
        return ""
    train = [name for name in folders if name.lower() in TRAIN]
    if len(train) == 1 or len(folders) == 1:
        return (train or list(folders))[0]
    named = ", ".join(sorted(folders))
    raise MetricError(f"{root} holds the splits {named}, and which one to use is ambiguous; give one of them")


def _check_links(root: Path, folder: Path, inner: list[str]) -> None:
    """Raise `MetricError` for a link to a folder that contains it, because its files would count twice."""
    for link in (folder / name for name in inner):
        if link.is_symlink():
            ancestors = (folder, *(p for p in folder.parents if p.is_relative_to(root)))
            if any(p.resolve().is_relative_to(link.resolve()) for p in ancestors):
                raise MetricError(
                    f"{link} links back to {link.resolve()}, which contains it; remove the link"
                )


def _raise_unreadable(error: OSError) -> None:
    raise MetricError(f"cannot read {error.filename}: {error.strerror}") from error


def _printable(name: str) -> str:
    """Return a name that any terminal can show; bytes that are not UTF-8 become question marks."""
    return name.encode(errors="replace").decode()
