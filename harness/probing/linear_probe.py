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
"""Of REPA's linear probe."""
STEPS_PER_EPOCH, LEAST_BATCH = 78, 64
"""Steps that its batch makes of ImageNet's 1 281 167 images; and our smallest batch, below which its moments
are noise.
"""


class Labelled(NamedTuple):
    features: Tensor
    """(N, d)."""
    labels: Tensor
    """(N,) int64 in 0 .. C - 1."""


def linear_probe(train: Labelled, held_out: Labelled, classes: int, *, ridge: float = RIDGE) -> Value:
    """Return the share of held-out samples that a linear classifier gets right, with Wilson's interval.

    Ridge regression of one-hot labels on features that are standardised with the training side's mean and
    deviation (a constant feature counts as zero), with an intercept that is not shrunk; the largest output is
    the answer:

        W = argmin |Y - X W|^2 + ridge |W|^2 = (X^T X + ridge I)^-1 X^T Y

    in closed form, in d or N dimensions, whichever is less. Raises `MetricError` for features that are not
    finite.
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
    """Return the share of held-out samples that REPA's linear classifier gets right, with Wilson's interval.

    As published (arXiv 2410.06940, appendix; the authors in issue 32 of sihyun-yu/REPA): batch normalisation
    without parameters and a linear layer on features averaged over tokens, 90 epochs in batches of 16384,
    Adam at 1e-3 with a cosine. Where we differ: `fitted_head`. Raises `MetricError` for features that are not
    finite.
    """
    head = fitted_head(train, classes, seed=seed).eval()
    with torch.no_grad():
        right = head(_finite(held_out.features)).argmax(1) == held_out.labels
    return share(right.numpy(), len(right))


def fitted_head(train: Labelled, classes: int, *, seed: int = 0, epochs: int = EPOCHS) -> nn.Sequential:
    """Train REPA's classifier in float64.

    REPA published the protocol for ImageNet. With fewer images the batch shrinks to keep its 78 steps an
    epoch, down to 64 images: at 16384, a small data set would give only a few dozen steps, too few for the
    classifier to converge. The following is unpublished and our choice: cross-entropy from zero weights (the
    problem is convex), a cosine to zero by steps without warm-up, no weight decay, an epoch's incomplete last
    batch left out, no augmentation. Normalisation is MAE's (main_linprobe.py, which the authors name as their
    set-up): eps 1e-6, a batch's own moments in training, running ones (momentum 0.1) afterwards. `seed` only
    draws the order.
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
    """Return the centred kernel alignment, in [0, 1], of features (N, d1) and (N, d2) of the same N samples.

        |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F),   X and Y centred over samples

    With linear kernels (Kornblith et al. 2019, arXiv 1905.00414, equation 4 and section 3). Invariant to
    rotations and to an overall scale, not to the scales of single features. Biased upwards unless d is small
    against N. Pairs are not independent, so one set of samples gives no interval. Raises `MetricError` for
    different N and for features that do not vary.
    """
    if len(first) != len(second):
        raise MetricError(
            f"CKA compares features of the same samples; given {len(first)} and {len(second)} rows"
        )
    x, y = (_finite(part) - part.double().mean(0) for part in (first, second))
    own = _gram_norm(x) * _gram_norm(y)
    if not own > 0:
        raise MetricError("CKA is not defined for features that are the same for all samples")
    return Value(float((y.T @ x).square().sum() / own), n=len(x))


def local_distant(tokens: Tensor, grid: Sequence[int], *, far: int | None = None) -> Tensor:
    """Return the similarity of neighbouring tokens less that of distant ones: (N,), one number an image.

    The mean cosine over all pairs of tokens that are 4-neighbours, less that over all pairs at a Manhattan
    distance of `far` or more. This is "LDS" of iREPA (arXiv 2512.10794) as its authors' code has it, where
    far = 6 on 16x16 tokens; by default `far` keeps that share of other grids, 3/8 of the longer side, and at
    least 2. tokens: (N, T, d).
    """
    far = max(2, round(3 / 8 * max(grid))) if far is None else far
    distance = manhattan(grid)
    if not (distance >= far).any():
        raise MetricError(f"no two tokens of a {grid[0]}x{grid[1]} grid are {far} or more apart")
    cosine = _cosines(tokens)
    near, apart = cosine[:, distance == 1].mean(1), cosine[:, distance >= far].mean(1)
    return near - apart


def spatial_decay(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Return how strictly similarity falls with distance: (N,), one number an image.

    Minus Pearson's correlation, over all pairs of two tokens, between their cosine and their Manhattan
    distance on the grid; 1 is a linear decay, 0 no spatial order. (iREPA's "CDS" is the slope of that fall; a
    correlation does not depend on how large cosines are.) An image whose cosines are all equal counts as 0.
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
    """Return the mean of one number an image, (N,), with Student's t interval; images are independent."""
    return of_replicates(values.tolist(), len(values))


def manhattan(grid: Sequence[int]) -> Tensor:
    """Return (T, T) int64: rows plus columns between two tokens."""
    place = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    return (place[:, None] - place[None]).abs().sum(-1)


def _cosines(tokens: Tensor) -> Tensor:
    """(N, T, d) -> (N, T, T)."""
    unit = F.normalize(_finite(tokens), dim=-1)
    return unit @ unit.mT


def _gram_norm(x: Tensor) -> Tensor:
    """|X^T X|_F, equal to |X X^T|_F."""
    return torch.linalg.norm(x.T @ x if x.shape[1] <= len(x) else x @ x.T)


def _finite(features: Tensor) -> Tensor:
    if not features.isfinite().all():
        raise MetricError("features are not finite")
    return features.double()
