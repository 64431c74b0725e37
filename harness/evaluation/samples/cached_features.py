"""Cached features of a source: rows if there are few samples or a metric needs them, else moments.

They are kept by content, as those of races are (kept_features.py). Names of files and data sets do not
matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from harness.evaluation.features import FeaturePass, FeatureSet, Masked
from harness.evaluation.kept_features import PROBE, Kept, kept_features, network_identity
from harness.evaluation.samples.sources import Batch, Source
from harness.files.progress import progress_bar
from metrics.distances.frechet import SMALL, Moments

SEED = 0
"""Seed of the random subset of the reference in a noise floor."""


class SourceFeatures(NamedTuple):
    """The features of a source, and of its two parts between which the noise floor is measured."""

    n: int
    all: FeatureSet
    subset: FeatureSet
    """Moments of a random subset, for outputs that are not stored row by row."""
    rest: FeatureSet
    """Moments of the other samples."""

    def halves(self, name: str, size: int) -> tuple[np.ndarray | Moments, np.ndarray | Moments]:
        """Return an output's values for a random subset of `size` samples, and for the others."""
        rows = self.all.rows.get(name)
        if rows is None:
            return self.subset.moments[name], self.rest.moments[name]
        mask = subset_mask(self.n, size)
        # Moments need less memory than copies of many rows.
        if size > max(SMALL, rows.shape[1]):
            return _moments(rows, mask), _moments(rows, ~mask)
        return rows[mask], rows[~mask]


def subset_mask(n: int, size: int) -> np.ndarray:
    """Return a mask, bool (n,), of a fixed random subset of that size."""
    mask = np.zeros(n, dtype=bool)
    mask[np.random.default_rng(SEED).permutation(n)[:size]] = True
    return mask


# Any: an extractor over images, clips or recordings, which share no base class
def source_features(
    source: Source, extract: Any, wanted: set[str], *, rows: bool, subset: int, batch: int
) -> SourceFeatures:
    """Return the wanted outputs of a source, from the cache or by one pass of the network.

    `rows` requests the features row by row; those of few samples, of videos and of recordings always are.
    `subset` is the number of samples whose moments are stored separately if the others are only streamed.
    Raises `MetricError` and `UserError` as network and source do.
    """
    few = source.count is None or source.count <= max(SMALL, extract.dim)
    keep = {"logits", "labels"} | ({"features"} if rows or few else set()) | ({"spatial"} if few else set())
    split = 0 if {"features", "spatial"} & wanted <= keep else subset
    first = next(source.batches(extract, PROBE), None)
    network = network_identity(extract, first.inputs) if first else []
    content = [
        "source", source.fingerprint, source.count, *network, sorted(wanted),
        sorted(keep & wanted), split,
    ]  # fmt: skip
    if "logits" in wanted and extract.counted:
        content.append(extract.counted)
    return _restored(kept_features(content, lambda: _extract(source, extract, wanted, keep, split, batch)))


def _extract(source: Source, extract: Any, wanted: set[str], keep: set[str], split: int, batch: int) -> Kept:
    """Run the network on all samples of a source."""
    streamed = wanted - keep
    stored = FeatureSet(rows=wanted & keep, count=source.count)
    subset, rest = FeatureSet(streamed), FeatureSet(streamed)
    sets = [Masked(stored), Masked(rest)]
    if split and source.count is not None:
        mask = subset_mask(source.count, split)
        sets = [Masked(stored), Masked(subset, mask), Masked(rest, ~mask)]
    features = FeaturePass(extract, sets)
    for inputs, labels in _batches_with_progress(source, extract, batch):
        features.add(inputs, labels if "labels" in wanted else None)
    features.finish()
    if features.error:
        raise features.error
    return Kept({"rows": stored, "subset": subset, "rest": rest}, {"n": str(features.n)})


def _restored(found: Kept) -> SourceFeatures:
    subset, rest = found.sets["subset"], found.sets["rest"]
    everything = FeatureSet.restored(rest.merged(subset).moments, found.sets["rows"].rows)
    return SourceFeatures(int(found.notes["n"]), everything, subset, rest)


def _moments(rows: np.ndarray, mask: np.ndarray, block: int = 4096) -> Moments:
    """Return the moments of the rows under a mask."""
    moments = Moments()
    for start in range(0, len(rows), block):
        moments.add(rows[start : start + block][mask[start : start + block]])
    return moments


def _batches_with_progress(source: Source, extract: Any, size: int) -> Iterator[Batch]:
    """Yield the batches, with a progress bar."""
    with progress_bar(source.count, source.where) as advance:
        for batch in source.batches(extract, size):
            yield batch
            advance(len(batch.inputs))
