"""Features kept by content: one pass of a network over samples, stored for every process that needs it again.

An entry is named by a hash of everything that its numbers depend on. These are the samples and their order,
the network's weights and preprocessing, the outputs collected, and the kind of device. The hash also covers
the features of the first samples, which are computed at every use. A kernel or a number of threads that
changes one of their bits therefore gets another entry, and a result from the cache has the bits of a fresh
one.

A file lock lets a single process make an entry while the others wait. A process that is killed leaves no
entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from harness.data.dataset import Dataset, content_of, shapes_of
from harness.errors import RunStopped
from harness.evaluation.features import FeatureSet, outputs_of
from harness.files.cache import cache_dir
from harness.files.parse import parse_json
from harness.runtime.distributed import World
from metrics.distances.frechet import Moments
from metrics.files.cache import Saved, kept
from metrics.files.reference_statistics import flat, unflat

VERSION = 2
"""Version of the features; increase it with every change that moves one, to renew the cache."""
PROBE = 8
"""Samples whose features are computed at every use."""
ROWS = "rows"
Note = Callable[[str], None]


class Kept(NamedTuple):
    """The result of a pass: feature sets by name, and text by name."""

    sets: Mapping[str, FeatureSet] = {}
    notes: Mapping[str, str] = {}


def ignore(_: str) -> None:
    """Show no note."""


def kept_features(
    # Any: JSON
    content: Sequence[Any],
    make: Callable[[], Kept],
    world: World | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> Kept:
    """Return an entry of the cache, or make and store it. `content` is what its numbers depend on.

    Every rank calls it. Rank 0 reads the entry; without one, all ranks call `make`, and rank 0 stores
    its result. The other ranks return an empty result. `waiting` is called before a wait for another process.
    Raises whatever `make` raises; if only rank 0 fails, the others raise `RunStopped`.
    """
    world = world or World(0, 1, torch.device("cpu"))
    if not world.main:
        _follow(make, world)
        return Kept()
    file = cache_dir("features") / f"{_hash([VERSION, *content])}.safetensors"
    if world.size == 1:
        return _restored(kept(file, lambda: _saved(make()), waiting=waiting))
    return _restored(_lead(lambda called: kept(file, called, waiting=waiting), make, world))


# Any: an extractor over images, clips or recordings, which share no base class
def network_identity(extract: Any, first: Any) -> list[Any]:
    """Return what the features of a network depend on, as JSON; `first` is the input of its first samples."""
    outputs = outputs_of(extract, first)
    probe = hashlib.sha256()
    for name in sorted(outputs):
        probe.update(f"{name} {tuple(outputs[name].shape)}".encode())
        probe.update(outputs[name].cpu().contiguous().numpy().tobytes())
    return [extract.sha256, extract.dim, extract.preprocessing, extract.device.type, probe.hexdigest()]


def samples_identity(dataset: Dataset, index: np.ndarray) -> list[Any]:
    """Return what samples depend on, as JSON: the content of their data set, their shapes, and which they
    are.
    """
    which = hashlib.sha256(np.asarray(index, dtype=np.int64).tobytes()).hexdigest()
    shapes = [list(shape) for shape in shapes_of(dataset)]
    return [content_of(dataset), dataset.modality, dataset.classes, shapes, len(index), which]


def _hash(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _lead(read: Callable[[Callable[[], Saved]], Saved], make: Callable[[], Kept], world: World) -> Saved:
    """Read an entry on rank 0; announce to all ranks whether it is missing, and whether rank 0 failed."""
    called, failed = False, True

    def together() -> Saved:
        nonlocal called
        called = True
        world.any(True)
        return _saved(make())

    try:
        saved = read(together)
        failed = False
    finally:
        if not called:
            world.any(False)
        stop = world.any(failed)
    if stop:
        raise RunStopped("another process failed and reports the reason")
    return saved


def _follow(make: Callable[[], Kept], world: World) -> None:
    """Take part in the pass of another rank than 0, if the entry is missing."""
    failed = True
    try:
        if world.any(False):
            make()
        failed = False
    finally:
        stop = world.any(failed)
    if stop:
        raise RunStopped("another process failed and reports the reason")


def _saved(found: Kept) -> Saved:
    """Return a result as tensors `<set>/<output>/rows` or `<set>/<output>/<array of its moments>`."""
    tensors = {}
    for part, features in found.sets.items():
        tensors |= {f"{part}/{name}/{ROWS}": torch.from_numpy(rows) for name, rows in features.rows.items()}
        moments = {f"{part}/{name}": moments for name, moments in features.moments.items() if moments.n}
        tensors |= flat(moments)
    return Saved(tensors, {**found.notes, "sets": json.dumps(list(found.sets))})


def _restored(saved: Saved) -> Kept:
    rows: dict[str, dict[str, np.ndarray]] = {}
    arrays: dict[str, torch.Tensor] = {}
    for key, tensor in saved.tensors.items():
        part, name, what = key.split("/")
        if what == ROWS:
            rows.setdefault(part, {})[name] = tensor.numpy()
        else:
            arrays[key] = tensor
    moments: dict[str, dict[str, Moments]] = {}
    for key, found in unflat(arrays).items():
        part, name = key.split("/")
        moments.setdefault(part, {})[name] = found
    notes = dict(saved.meta)
    names = parse_json(notes.pop("sets"))
    sets = {part: FeatureSet.restored(moments.get(part, {}), rows.get(part, {})) for part in names}
    return Kept(sets, notes)
