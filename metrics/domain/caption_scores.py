"""Agreement of pictures with captions in the joint space of a network with an image and a text tower.

    clip_score          mean of max(100 cos(picture, caption), 0)
    clip_score_hessel   mean of 2.5 max(cos, 0), the scale of Hessel et al. 2021 (arXiv 2104.08718)
    retrieval           share of pictures whose own caption is the nearest among 32

The two scores differ by a factor of 40, so they have different names.
"""

from __future__ import annotations

import math

import numpy as np

from metrics.intervals import around, share
from metrics.value import MetricError, Value

AMONG = 32
"""Captions that `retrieval` chooses among, the own one included."""
_SEED = 2020


def clip_score(pictures: np.ndarray, captions: np.ndarray) -> Value:
    """Return the mean of max(100 cos, 0) over pairs of embeddings (N, D), with its interval over pairs."""
    return _mean(np.maximum(100 * _cosines(pictures, captions), 0))


def clip_score_hessel(pictures: np.ndarray, captions: np.ndarray) -> Value:
    """Return the mean of 2.5 max(cos, 0) over pairs of embeddings (N, D), with its interval over pairs."""
    return _mean(2.5 * np.maximum(_cosines(pictures, captions), 0))


def retrieval(pictures: np.ndarray, captions: np.ndarray, names: list[str]) -> Value:
    """Return the share of pictures whose own caption is nearer than 31 others, with Wilson's interval.

    `names` are the captions themselves. The others have different words: they are those that follow the own
    one in a fixed random order of all captions. A tie is not a success. Raises `MetricError` for fewer than
    32 different captions.
    """
    distinct = {name: row for row, name in enumerate(names)}
    if len(distinct) < AMONG:
        raise MetricError(f"retrieval needs {AMONG} different captions, but there are {len(distinct)}")
    order = np.random.Generator(np.random.Philox(_SEED)).permutation(len(distinct))
    listed = [sorted(distinct)[i] for i in order]
    place = {name: i for i, name in enumerate(listed)}
    rows = np.array([distinct[name] for name in listed])
    pictures, texts = _unit(pictures), _unit(captions)
    right = []
    for picture, name in zip(pictures, names, strict=True):
        among = rows[(place[name] + np.arange(AMONG)) % len(rows)]
        nearness = texts[among] @ picture
        right.append(nearness[0] > nearness[1:].max())
    return share(np.array(right), len(right))


def _cosines(pictures: np.ndarray, captions: np.ndarray) -> np.ndarray:
    return (_unit(pictures) * _unit(captions)).sum(axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return rows scaled to length 1, in float64; raises `MetricError` for rows that have no direction."""
    x = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise MetricError("an embedding is zero or not finite, so it has no cosine")
    return x / lengths


def _mean(scores: np.ndarray) -> Value:
    count = len(scores)
    if count < 2:
        return Value(float(scores.mean()), n=count)
    return around(float(scores.mean()), float(scores.std(ddof=1)) / math.sqrt(count), count)
