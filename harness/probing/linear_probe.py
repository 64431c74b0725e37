"""Linear probes, linear CKA and spatial self-similarity of features.

CKNNA is in metrics.distances.cknna. All sums run in float64.

    N  samples    T  tokens, rows x columns, row by row    d  features    C  classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.runtime.random_streams import Streams
from metrics import MetricError, Value
from metrics.intervals import of_replicates, share

RIDGE = 1.0
EPOCHS, BATCH, LEARNING_RATE = 90, 16_384, 1e-3
"""Settings of REPA's linear probe."""
STEPS_PER_EPOCH, LEAST_BATCH = 78, 64
"""Steps in an epoch of ImageNet's 1 281 167 images with that batch; and our smallest batch.

In smaller batches the moments of the batch normalisation are too noisy.
"""


class Labelled(NamedTuple):
    """Features with labels."""

    features: Tensor
    """(N, d)."""
    labels: Tensor
    """(N,) int64 in 0 .. C - 1."""


def linear_probe(train: Labelled, held_out: Labelled, classes: int, *, ridge: float = RIDGE) -> Value:
    """Return a linear classifier's accuracy on held-out samples, with Wilson's interval.

    The classifier is a ridge regression of one-hot labels, in closed form; the largest output is its answer:

        W = argmin |Y - X W|^2 + ridge |W|^2 = (X^T X + ridge I)^-1 X^T Y

    Features are standardised with the training set's mean and deviation, and a constant feature counts as
    zero. The intercept is not shrunk. The system is solved in d or N dimensions, whichever is less. Raises
    `MetricError` for features that are not finite.
    """
    x, y = _finite(train.features), F.one_hot(train.labels, classes).double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    x, test = (x - mean) / scale, (_finite(held_out.features) - mean) / scale
    prior = y.mean(0)
    n, d = x.shape
    if d <= n:
        weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(d, dtype=x.dtype), x.T @ (y - prior))
    else:
        # The same W by the dual form, X^T (X X^T + ridge I)^-1 Y.
        weights = x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(n, dtype=x.dtype), y - prior)
    right = (test @ weights + prior).argmax(1) == held_out.labels
    return share(right.numpy(), len(right))


def repa_probe(train: Labelled, held_out: Labelled, classes: int, *, seed: int = 0) -> Value:
    """Return the accuracy of REPA's linear classifier on held-out samples, with Wilson's interval.

    As published (arXiv 2410.06940, appendix; the authors in issue 32 of sihyun-yu/REPA), it has batch
    normalisation without parameters and a linear layer on features averaged over tokens. Training takes 90
    epochs in batches of 16384, with Adam at 1e-3 and a cosine. `fitted_head` lists our differences. Raises
    `MetricError` for features that are not finite.
    """
    head = fitted_head(train, classes, seed=seed).eval()
    with torch.no_grad():
        right = head(_finite(held_out.features)).argmax(1) == held_out.labels
    return share(right.numpy(), len(right))


def fitted_head(train: Labelled, classes: int, *, seed: int = 0, epochs: int = EPOCHS) -> nn.Sequential:
    """Train REPA's classifier in float64.

    REPA published the protocol for ImageNet. With fewer images the batch shrinks, to 64 images at least, to
    keep 78 steps an epoch. With batches of 16384 a small data set would have a few dozen steps in all, too
    few to converge.

    The following is unpublished and our choice. The loss is cross-entropy from zero weights (the problem is
    convex). The cosine falls to zero in steps, without warm-up. There is no weight decay and no augmentation,
    and an incomplete last batch of an epoch is left out.

    Normalisation is that of MAE (main_linprobe.py, which the authors name as their set-up). Its eps is 1e-6.
    It uses a batch's moments in training and running ones (momentum 0.1) afterwards. `seed` determines only
    the order of samples.
    """
    x, y = _finite(train.features), train.labels
    n, d = x.shape
    linear = nn.utils.skip_init(nn.Linear, d, classes)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    head = nn.Sequential(nn.BatchNorm1d(d, eps=1e-6, affine=False), linear).double()
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    batch = batch_size(n)
    per_epoch = n // batch
    steps = epochs * per_epoch
    order = torch.arange(n)
    with torch.enable_grad():
        for step in range(steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                order = torch.from_numpy(Streams(seed).permutation("probe/order", epoch, n))
            chosen = order[place * batch : (place + 1) * batch]
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            F.cross_entropy(head(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return head


def batch_size(n: int) -> int:
    """Return the batch size of REPA's linear probe on n samples; see `fitted_head`."""
    return min(n, max(LEAST_BATCH, min(BATCH, n // STEPS_PER_EPOCH)))


PROBES = {"ridge": linear_probe, "repa": repa_probe}


def linear_cka(first: Tensor, second: Tensor) -> Value:
    """Return the linear centred kernel alignment, in [0, 1], of features (N, d1) and (N, d2) of N samples.

        |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F),   X and Y centred over samples

    The definition is that of Kornblith et al. 2019 (arXiv 1905.00414, equation 4 and section 3). It is
    invariant to rotations and to an overall scale, not to the scales of single features. It is biased upwards
    unless d is small compared with N. Pairs are not independent, so one set of samples gives no interval.
    Raises `MetricError` for different N and for features that do not vary.
    """
    if len(first) != len(second):
        raise MetricError(
            f"CKA compares features of the same samples; given {len(first)} and {len(second)} rows"
        )
    x, y = (_finite(part) - part.double().mean(0) for part in (first, second))
    norm = _gram_norm(x) * _gram_norm(y)
    if not norm > 0:
        raise MetricError("CKA is not defined for features that are the same for all samples")
    return Value(float((y.T @ x).square().sum() / norm), n=len(x))


def local_distant(tokens: Tensor, grid: Sequence[int], *, far: int | None = None) -> Tensor:
    """Return the similarity of neighbouring tokens minus that of distant ones, (N,), one value per image.

    It is the mean cosine over all pairs of tokens that are 4-neighbours, minus that over all pairs at a
    Manhattan distance of at least `far`. This is "LDS" of iREPA (arXiv 2512.10794) as in its authors' code,
    with far = 6 on 16x16 tokens. By default `far` is the same fraction of other grids, 3/8 of the longer
    side, and at least 2. tokens: (N, T, d). Raises `MetricError` for a grid without such a distance.
    """
    far = max(2, round(3 / 8 * max(grid))) if far is None else far
    distance = manhattan(grid)
    if not (distance >= far).any():
        raise MetricError(f"no two tokens of a {grid[0]}x{grid[1]} grid have a distance of at least {far}")
    cosine = _cosines(tokens)
    near, distant = cosine[:, distance == 1].mean(1), cosine[:, distance >= far].mean(1)
    return near - distant


def spatial_decay(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Return how consistently similarity decreases with distance, (N,), one value per image.

    It is minus Pearson's correlation, over all pairs of tokens, between their cosine and their Manhattan
    distance on the grid. A linear decay gives 1, no spatial order gives 0, and so do equal cosines. (iREPA's
    "CDS" is the slope of that decay; a correlation does not depend on the size of cosines.)
    tokens: (N, T, d).
    """
    distance = manhattan(grid)
    pairs = distance > 0
    d = distance[pairs].double()
    d = d - d.mean()
    c = _cosines(tokens)[:, pairs]
    c = c - c.mean(1, keepdim=True)
    norm = c.norm(dim=1) * d.norm()
    # Below this level, differences of cosines are rounding errors.
    level = norm > 1e-9 * d.norm()
    return (-(c @ d) / norm).where(level, 0.0)


def over_images(values: Tensor) -> Value:
    """Return the mean of per-image values, (N,), with Student's t interval, as images are independent."""
    return of_replicates(values.tolist(), len(values))


def manhattan(grid: Sequence[int]) -> Tensor:
    """Return the Manhattan distance on the grid between all pairs of tokens, (T, T) int64."""
    place = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    return (place[:, None] - place[None]).abs().sum(-1)


def _cosines(tokens: Tensor) -> Tensor:
    """Return the cosines, (N, T, T), between tokens (N, T, d)."""
    unit = F.normalize(_finite(tokens), dim=-1)
    return unit @ unit.mT


def _gram_norm(x: Tensor) -> Tensor:
    """Return |X^T X|_F, which equals |X X^T|_F."""
    return torch.linalg.norm(x.T @ x if x.shape[1] <= len(x) else x @ x.T)


def _finite(features: Tensor) -> Tensor:
    if not features.isfinite().all():
        raise MetricError("features are not finite")
    return features.double()
