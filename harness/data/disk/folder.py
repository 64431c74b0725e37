"""Images in a folder, one subfolder per class."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.captions import BESIDE, folder_captions
from harness.data.disk.labels import NONE, Labels, named_classes, unlabelled
from harness.data.disk.pixels import decode, fit
from harness.data.disk.survey import Encoded, common_shape, data_path, fingerprint, survey
from harness.data.disk.tables import READERS, find_table, in_table_order, labels_of
from harness.data.stored import stored_images
from harness.errors import UserError
from harness.files.progress import progress_bar
from metrics.files.listing import Listing, Skipped, is_clutter
from metrics.files.media import IMAGE, Kind, listing
from metrics.value import MetricError


class ImageFolder:
    """Images in a folder, `root/<class>/.../image.png`; classes are the names of its subfolders.

    Names that are all numbers are in numeric order, others in alphabetical order. A table of labels
    (`metadata.csv`, `.jsonl` or `.parquet`, or EDM's `dataset.json`) comes before subfolders. Without both
    there is one class. Of the folders `train`, `val` and `test`, only `train` is read. Hidden files and files
    of other kinds are skipped. Images in an unsupported format raise an error. Linked folders are followed,
    unless they form a cycle, which raises an error.

    With `data.caption_key`, captions are a column of the table, or `NAME.txt` next to each image with one
    caption a line.
    """

    modality = "image"
    reads = ("root", "resolution", "channels", "label_key", "caption_key")

    def __init__(self, spec: DataSpec) -> None:
        root = data_path(spec, IMAGE.expected)
        if not root.is_dir():
            raise UserError(f"data.root = {root} is a file, expected {IMAGE.expected}")
        self._root = root
        files = list_files(root, IMAGE, spec)
        self._names, self._labels, self.files = files.names, files.labels, len(files.names)
        self.classes, self.class_names = files.classes, files.class_names
        self.label_source, self.label_problem, self.skipped = files.label_source, files.problem, files.skipped
        try:
            surveys = survey(root, self._names, self._one)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        self.stored = stored_images((s.width, s.height) for s in surveys)
        self.shape = common_shape(spec, surveys, lambda i: str(root / self._names[i]))
        self._keys = [bytes.fromhex(s.sha256) for s in surveys]
        self.fingerprint = fingerprint((s.sha256 for s in surveys), self._labels)
        if spec.caption_key:
            captions = folder_captions(root, self._names, files.split, spec.caption_key)
            self.captions, self.caption_source = captions.of, captions.source
            self.fingerprint = captions.fingerprint(self.fingerprint)

    def _one(self, name: str) -> list[Encoded]:
        path = self._root / name
        return [Encoded(path.read_bytes, str(path))]

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

    def sample_name(self, index: int) -> str:
        return self._names[index]


ROLES = frozenset(
    {
        "images", "image", "img", "imgs", "jpegimages", "masks", "mask", "annotations", "labels",
        "segmentations", "segmentation", "segmentationclass", "depth", "normals", "edges", "sketches",
        "conditions", "conditioning", "sources", "targets", "inputs", "outputs",
    }
)  # fmt: skip
"""Names, in lower case, of folders that hold one part of each sample, for example its mask."""
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")


class LabelledFiles(NamedTuple):
    """The files of a kind below a root, sorted by name, with their labels."""

    names: list[str]
    """Relative to the root, with forward slashes."""
    labels: list[int]
    classes: int
    class_names: list[str]
    """Empty for data without labels."""
    label_source: str
    problem: str
    """Why existing labels cannot be used; empty if they can."""
    skipped: tuple[Skipped, ...]
    split: str = ""
    """The folder of the training split, relative to the root."""


def list_files(root: Path, kind: Kind, spec: DataSpec) -> LabelledFiles:
    """Return the files of a kind, labelled by a table if the folder has one, else by class folders.

    Raises `UserError` for a folder without files of the kind, for files in unsupported formats, and if
    splits, tables or class folders are ambiguous.
    """
    try:
        captions = (BESIDE,) if spec.caption_key else ()
        with progress_bar(None, f"listing {root.name}", unit="files") as advance:
            found = listing(root, kind, tuple(READERS), advance, captions)
    except MetricError as error:
        raise UserError(
            f"{error}; set data.root to one" if "ambiguous" in str(error) else str(error)
        ) from error
    if not found.names:
        left = f" ({'; '.join(map(str, found.skipped))})" if found.skipped else ""
        raise UserError(f"data.root = {root} has no {kind.plural}{left}, expected {kind.expected}")
    labels, source, names = _labels(root, kind, spec, found)
    return LabelledFiles(
        names, labels.labels.tolist(), labels.classes, list(labels.names), source, labels.problem,
        found.skipped, found.split,
    )  # fmt: skip


def _labels(root: Path, kind: Kind, spec: DataSpec, found: Listing) -> tuple[Labels, str, list[str]]:
    """Return the labels of the files of a listing, where they are from, and the files in their order."""
    names = found.names
    if spec.label_key == NONE:
        return unlabelled(len(names)), f"none: data.label_key = {NONE}", names
    table = find_table(root, spec, found.split)
    if table is not None and not table.labels:
        return unlabelled(len(names)), table.source, names
    if table is not None:
        names = in_table_order(table, names)
        return labels_of(root, table, names, kind.plural, found.split), table.source, names
    if spec.label_key:
        raise UserError(
            f"data.label_key = {spec.label_key}, but {root} has no table ({', '.join(READERS)}); add one, or "
            "leave it out to use class folders"
        )
    return *_by_folder(root, kind, found), names


def _by_folder(root: Path, kind: Kind, found: Listing) -> tuple[Labels, str]:
    """Return the labels of files in class folders, all 0 for files without."""
    base = root / found.split
    inside = [found.inside(name) for name in found.names]
    loose = [name for name in inside if "/" not in name]
    if loose and len(loose) < len(inside):
        raise UserError(f"{base / loose[0]} is next to class folders; move it into one of them")
    if loose:
        return unlabelled(len(inside)), f"none: no class folders and no table of labels{_unread(base)}"
    _refuse_parts(base, inside, kind)
    labels = named_classes([name.partition("/")[0] for name in inside])
    empty = {p.name for p in base.iterdir() if p.is_dir() and not is_clutter(p.name)} - set(labels.names)
    for name in sorted(empty)[:1]:
        raise UserError(f"class folder {base / name} has no {kind.plural}; fill or remove it")
    return labels, f"class folders{f' of {found.split}' if found.split else ''}"


def _refuse_parts(base: Path, inside: list[str], kind: Kind) -> None:
    """Raise `UserError` for folders that hold parts of the same samples instead of classes."""
    parts: dict[str, set[str]] = {}
    for name in inside:
        folder, _, rest = name.partition("/")
        parts.setdefault(folder, set()).add(rest.rpartition(".")[0])
    (first, stems), *others = parts.items()
    if others and all(folder.lower() in ROLES and stems == other for folder, other in parts.items()):
        raise UserError(
            f"{base} holds folders with the same names of files ({', '.join(sorted(parts))}), which are "
            f"parts of the same samples, not classes; set data.root to the folder of {kind.plural}, for "
            f"example {base / first}"
        )


def _unread(base: Path) -> str:
    """Return the tables next to the files that are not read, in words; empty without one."""
    names = {file.name for file in base.iterdir()}
    stems = {name.rpartition(".")[0] for name in names if not name.endswith(BESIDE)}
    # NAME.txt next to NAME.jpg has its captions.
    own = {name for name in names if name.removesuffix(BESIDE) in stems and name.endswith(BESIDE)}
    files = (name for name in names - own if Path(name).suffix.lower() in TABLES)
    tables = sorted(name for name in files if not is_clutter(name) and name not in READERS)[:3]
    if not tables:
        return ""
    known = ", ".join(READERS)
    return f" ({', '.join(tables)} not read: tables are {known}, with columns file_name and label)"
