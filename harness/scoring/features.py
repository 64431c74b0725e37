"""One pass of a network over a source: features in rows where they are needed so, else streamed into moments; cached.

An entry of the cache is named by what decides its content: the source's fingerprint, the network's weights and
preprocessing, and what was kept. A name of a file or of a data set plays no part.
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

from harness.files.cache import cache_dir
from harness.scoring.sources import Source
from metrics.distances.frechet import SMALL, Moments
from metrics.files.cache import Saved, kept
from metrics.files.reference_statistics import flat, unflat

VERSION = 1
"""Raised with every change that moves a feature, so that the cache forgets."""
SEED = 0
"""Of the subset of the reference that stands against the rest."""


class Seen(NamedTuple):
    """What a network made of a source."""

    n: int
    rows: dict[str, np.ndarray]
    """`features`, `spatial`, `logits`, `labels`: those that were kept sample by sample."""
    subset: dict[str, Moments]
    rest: dict[str, Moments]
    """Of the parts that were not kept, moments of the subset that makes the floor, and of the others."""

    def part(self, name: str) -> np.ndarray | Moments | None:
        """The rows of a part, or its moments; None where the network has none."""
        if name in self.rows:
            return self.rows[name]
        if name not in self.rest:
            return None
        whole = Moments()
        for moments in (self.rest, self.subset):
            if name in moments:
                whole.merge(moments[name])
        return whole

    def halves(self, name: str, size: int) -> tuple[Any, Any]:
        """The part of a random subset of `size` samples, and of the others: rows or moments."""
        if name in self.rows:
            inside, rows = chosen(self.n, size), self.rows[name]
            if size > max(SMALL, rows.shape[1]):  # a copy of the rows would be as large as they are
                return _moments(rows, inside), _moments(rows, ~inside)
            return rows[inside], rows[~inside]
        return self.subset[name], self.rest[name]


def _moments(rows: np.ndarray, some: np.ndarray, block: int = 4096) -> Moments:
    """Moments of some of the rows."""
    moments = Moments()
    for start in range(0, len(rows), block):
        moments.add(rows[start : start + block][some[start : start + block]])
    return moments


def chosen(n: int, size: int) -> np.ndarray:
    """bool (n,): a random subset of that size, always the same."""
    inside = np.zeros(n, dtype=bool)
    inside[np.random.default_rng(SEED).permutation(n)[:size]] = True
    return inside


def extracted(source: Source, extract: Any, wanted: set[str], *, rows: bool, subset: int, batch: int) -> Seen:
    """The wanted parts of a source, from the cache or by one pass of the network.

    `rows` asks for the features one by one, which few samples and media are anyway; `subset` is how many samples of a
    streamed source are counted apart. Raises `MetricError` and `UserError` as network and source do.
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
    saved = kept(file, lambda: _run(source, extract, wanted, keep, split, batch))
    tensors = {name: tensor for name, tensor in saved.tensors.items() if "/" not in name}
    moments = unflat({name: tensor for name, tensor in saved.tensors.items() if "/" in name})
    sides = {
        side: {n.partition("/")[2]: m for n, m in moments.items() if n.startswith(side)}
        for side in ("subset", "rest")
    }
    return Seen(int(saved.meta["n"]), {n: t.numpy() for n, t in tensors.items()}, **sides)


def _run(source: Source, extract: Any, wanted: set[str], keep: set[str], split: int, batch: int) -> Saved:
    inside = chosen(source.count, split) if split else None
    rows: dict[str, _Rows] = {}
    moments: dict[str, Moments] = {}
    n = 0
    for parts in _watched(source, extract, batch):
        count = len(parts["features"])
        for name in wanted & parts.keys():
            found = parts[name].cpu().numpy()
            if name in keep:
                rows.setdefault(name, _Rows(source.count)).add(found)
                continue
            mask = np.zeros(count, bool) if inside is None else inside[n : n + count]
            for side, some in (("subset", found[mask]), ("rest", found[~mask])):
                if len(some):
                    moments.setdefault(f"{side}/{name}", Moments()).add(some)
        n += count
    tensors = {name: torch.from_numpy(found.whole()) for name, found in rows.items()}
    return Saved(tensors | flat(moments), {"n": str(n)})


class _Rows:
    """Rows that come in parts; where their number is known, they are written into one array as they come."""

    def __init__(self, count: int | None) -> None:
        self.count, self.n = count, 0
        self.parts: list[np.ndarray] = []

    def add(self, part: np.ndarray) -> None:
        if self.count is None:
            self.parts.append(part)
            return
        if not self.parts:
            self.parts.append(np.empty((self.count, *part.shape[1:]), part.dtype))
        self.parts[0][self.n : self.n + len(part)] = part
        self.n += len(part)

    def whole(self) -> np.ndarray:
        return self.parts[0] if self.count is not None else np.concatenate(self.parts)


def _watched(source: Source, extract: Any, batch: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches, with a bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(source.where, total=source.count)
        for parts in source.batches(extract, batch):
            yield parts
            bar.advance(task, len(parts["features"]))
