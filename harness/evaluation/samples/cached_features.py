"""Features of a source, cached: as rows if few samples or a metric need them, else as moments.

A cache entry is named by what decides its content: the source's fingerprint, the network's weights and
preprocessing, and what was kept. File and data set names play no part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness.evaluation.features import FeaturePass, FeatureSet, Masked
from harness.evaluation.samples.sources import Batch, Source
from harness.files.cache import cache_dir
from metrics.distances.frechet import SMALL, Moments
from metrics.files.cache import Saved, kept
from metrics.files.reference_statistics import flat, unflat

VERSION = 1
"""Raised with every change that moves a feature, which empties the cache."""
SEED = 0
"""Of the random subset of the reference in a noise floor."""


class SourceFeatures(NamedTuple):
    """The features of a source, and of the two parts of it that make a noise floor."""

    n: int
    whole: FeatureSet
    subset: FeatureSet
    rest: FeatureSet
    """Moments of outputs that were not kept row by row."""

    def halves(self, name: str, size: int) -> tuple[np.ndarray | Moments, np.ndarray | Moments]:
        """Return an output's values for a random subset of `size` samples, and for the others."""
        rows = self.whole.rows.get(name)
        if rows is None:
            return self.subset.moments[name], self.rest.moments[name]
        inside = subset_mask(self.n, size)
        # A copy of the rows would be as large as they are.
        if size > max(SMALL, rows.shape[1]):
            return _moments(rows, inside), _moments(rows, ~inside)
        return rows[inside], rows[~inside]


def subset_mask(n: int, size: int) -> np.ndarray:
    """Return bool (n,): a random subset of that size, always the same."""
    inside = np.zeros(n, dtype=bool)
    inside[np.random.default_rng(SEED).permutation(n)[:size]] = True
    return inside


# Any: an extractor over images, clips or recordings, which share no base class
def source_features(
    source: Source, extract: Any, wanted: set[str], *, rows: bool, subset: int, batch: int
) -> SourceFeatures:
    """Return the wanted outputs of a source, from the cache or by one pass of the network.

    `rows` asks for the features row by row; of few samples and of media they are kept so anyway. `subset` is
    the number of samples of a streamed source whose moments are kept separately. Raises `MetricError` and
    `UserError` as network and source do.
    """
    few = source.count is None or source.count <= max(SMALL, extract.dim)
    keep = {"logits", "labels"} | ({"features"} if rows or few else set()) | ({"spatial"} if few else set())
    split = 0 if {"features", "spatial"} & wanted <= keep else subset
    what = [
        VERSION, source.fingerprint, source.count, extract.sha256, extract.dim, extract.preprocessing,
        sorted(wanted), sorted(keep & wanted), split,
    ]  # fmt: skip
    if "logits" in wanted and extract.counted:
        what.append(extract.counted)
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    file = cache_dir("features") / f"{key}.safetensors"
    return _restored(kept(file, lambda: _extract(source, extract, wanted, keep, split, batch)))


def _extract(source: Source, extract: Any, wanted: set[str], keep: set[str], split: int, batch: int) -> Saved:
    """Pass a source through the network."""
    streamed = wanted - keep
    whole = FeatureSet(rows=wanted & keep, count=source.count)
    subset, rest = FeatureSet(streamed), FeatureSet(streamed)
    sets = [Masked(whole), Masked(rest)]
    if split and source.count is not None:
        inside = subset_mask(source.count, split)
        sets = [Masked(whole), Masked(subset, inside), Masked(rest, ~inside)]
    features = FeaturePass(extract, sets)
    for inputs, labels in _watched(source, extract, batch):
        features.add(inputs, labels if "labels" in wanted else None)
    features.finish()
    if features.error:
        raise features.error
    tensors = {name: torch.from_numpy(rows) for name, rows in whole.rows.items()}
    moments = {
        f"{side}/{name}": found
        for side, kept_set in (("subset", subset), ("rest", rest))
        for name, found in kept_set.moments.items()
        if found.n
    }
    return Saved(tensors | flat(moments), {"n": str(features.n)})


def _restored(saved: Saved) -> SourceFeatures:
    rows = {name: tensor.numpy() for name, tensor in saved.tensors.items() if "/" not in name}
    moments = unflat({name: tensor for name, tensor in saved.tensors.items() if "/" in name})
    subset, rest = (
        FeatureSet.restored({n.partition("/")[2]: m for n, m in moments.items() if n.startswith(side)}, {})
        for side in ("subset", "rest")
    )
    whole = FeatureSet.restored(rest.merged(subset).moments, rows)
    return SourceFeatures(int(saved.meta["n"]), whole, subset, rest)


def _moments(rows: np.ndarray, some: np.ndarray, block: int = 4096) -> Moments:
    """Return the moments of some of the rows."""
    moments = Moments()
    for start in range(0, len(rows), block):
        moments.add(rows[start : start + block][some[start : start + block]])
    return moments


def _watched(source: Source, extract: Any, batch: int) -> Iterator[Batch]:
    """Yield the batches, with a progress bar if standard error is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(source.where, total=source.count)
        for found in source.batches(extract, batch):
            yield found
            bar.advance(task, len(found.inputs))
