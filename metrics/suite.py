"""The table of metrics: inputs, settings and function of each, and the names reserved for one network.

A side holds the outputs of one pass of a network over a set of samples: features as rows or as moments and,
if the network has them, sFID's spatial features and logits.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metrics.distances.accuracy import class_accuracy
from metrics.distances.cmmd import cmmd
from metrics.distances.density_coverage import density_coverage
from metrics.distances.frechet import Moments, frechet_distance, moments_of
from metrics.distances.frechet_infinity import LEAST, frechet_infinity
from metrics.distances.inception_score import inception_score, inception_score_shuffled
from metrics.distances.kid import kernel_distance
from metrics.distances.memorisation import memorisation
from metrics.distances.precision_recall import precision_recall
from metrics.value import MetricError, Value

Part = np.ndarray | Moments
"""An array (n, d), or the moments of samples whose rows were not kept."""


class Side(NamedTuple):
    """The outputs of a network for the real or the generated samples."""

    features: Part | None = None
    rows: np.ndarray | None = None
    """Features of individual samples, if a metric needs them.

    An ADM reference has fewer rows than samples in `features`.
    """
    spatial: Part | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None


class Metric(NamedTuple):
    """A function of two sides that returns one or more named values."""

    values: tuple[str, ...]
    """Names of the values that `compute` returns."""
    real: str
    """Field of `Side` required of the real samples; empty for none."""
    fake: str
    """Field of `Side` required of the generated samples."""
    compute: Callable[[Side, Side], Sequence[Value]]
    # Any: JSON values of several types. The shared default is never modified.
    settings: dict[str, Any] = {}  # noqa: RUF012
    """Constants that the values depend on in addition to the features."""
    least: int = 1
    """Smallest number of generated samples for which the values are defined."""
    noise_floor: bool = False
    """True if the same distance between two sets of real samples is reported with the value."""


def _accuracy(_: Side, fake: Side) -> Sequence[Value]:
    if fake.labels is None or fake.logits is None:
        raise MetricError("accuracy needs samples with labels: give an array arr_1, or one folder per class")
    return (class_accuracy(fake.logits, fake.labels),)


def _infinity(real: Side, fake: Side) -> Sequence[Value]:
    """Compare with the moments of all real samples, as dgm-eval does, even if their rows are available."""
    if real.features is None:
        raise MetricError("fd_infinity needs the features of a reference")
    reference = real.features if isinstance(real.features, Moments) else moments_of(real.features)
    return (frechet_infinity(reference, fake.rows),)


_KID = {"subsets": 100, "subset_size": 1000, "seed": 2020}
METRICS = (
    Metric(
        ("fd",), "features", "features",
        lambda r, f: (frechet_distance(r.features, f.features),), least=2, noise_floor=True,
    ),
    Metric(
        ("sfid",), "spatial", "spatial",
        lambda r, f: (frechet_distance(r.spatial, f.spatial),), least=2, noise_floor=True,
    ),
    Metric(("fd_infinity",), "features", "rows", _infinity, {"points": 15, "seed": 0}, least=LEAST),
    Metric(("kid",), "rows", "rows", lambda r, f: (kernel_distance(r.rows, f.rows, **_KID),), _KID, least=4),
    Metric(("cmmd",), "rows", "rows", lambda r, f: (cmmd(r.rows, f.rows),), {"sigma": 10}, least=2),
    Metric(
        ("precision", "recall"), "rows", "rows",
        lambda r, f: precision_recall(r.rows, f.rows), {"k": 3, "rule": "adm"}, least=4,
    ),
    Metric(
        ("precision_torch_fidelity", "recall_torch_fidelity"), "rows", "rows",
        lambda r, f: precision_recall(r.rows, f.rows, rule="torch-fidelity"),
        {"k": 3, "rule": "torch-fidelity"}, least=4,
    ),
    Metric(
        ("density", "coverage"), "rows", "rows",
        lambda r, f: density_coverage(r.rows, f.rows), {"k": 5}, least=2,
    ),
    Metric(("is",), "", "logits", lambda _, f: (inception_score(f.logits),), {"split_size": 5000}),
    Metric(
        ("is_shuffled",), "", "logits",
        lambda _, f: (inception_score_shuffled(f.logits),), {"splits": 10, "seed": 2020}, least=10,
    ),
    Metric(("memorisation",), "rows", "rows", lambda r, f: (memorisation(r.rows, f.rows),), least=2),
    Metric(("accuracy",), "", "logits", _accuracy),
)  # fmt: skip
GROUPS = {
    "pr": ("precision", "recall"),
    "prdc": ("precision", "recall", "density", "coverage"),
    "pr_torch_fidelity": ("precision_torch_fidelity", "recall_torch_fidelity"),
}


class Reserved(NamedTuple):
    """The network that a bare metric name stands for."""

    value: str
    extractor: str
    exclusive: bool = False
    """True if the name is rejected with any other network; otherwise it then names the value only."""


RESERVED = {
    "fid": Reserved("fd", "inception", exclusive=True),
    "fid_infinity": Reserved("fd_infinity", "inception", exclusive=True),
    "sfid": Reserved("sfid", "inception", exclusive=True),
    "is": Reserved("is", "inception"),
    "is_shuffled": Reserved("is_shuffled", "inception"),
    "fvd": Reserved("fd", "i3d", exclusive=True),
    "fvd_infinity": Reserved("fd_infinity", "i3d", exclusive=True),
    "cmmd": Reserved("cmmd", "clip-vit-l-336"),
}
"""Names that stand for a value of one network with its original weights."""
_METRIC_OF = {value: metric for metric in METRICS for value in metric.values}


def metric_names() -> list[str]:
    """Return every name that a user may request, sorted."""
    return sorted({*_METRIC_OF, *GROUPS, *RESERVED})


def chosen(names: Iterable[str]) -> list[str]:
    """Return the values that these names stand for, without duplicates, in order.

    Raises `MetricError` for an unknown name, and if there is no name.
    """
    values: dict[str, None] = {}
    for name in names:
        for value in GROUPS.get(name, (_general(name),)):
            if value not in _METRIC_OF:
                near = difflib.get_close_matches(name, metric_names(), n=1, cutoff=0.5)
                hint = f". Did you mean '{near[0]}'?" if near else ""
                raise MetricError(f"unknown metric '{name}' (known: {', '.join(metric_names())}){hint}")
            values[value] = None
    if not values:
        raise MetricError(f"no metric is named (known: {', '.join(metric_names())})")
    return list(values)


def check_reserved(names: Iterable[str], extractor: str) -> None:
    """Raise `MetricError` for a name that is reserved for another network or for its original weights."""
    for name in names:
        reserved = RESERVED.get(name)
        if reserved is None or not reserved.exclusive or extractor == reserved.extractor:
            continue
        instead = f"; with '{extractor}' write {reserved.value}:{extractor}" if name != "sfid" else ""
        raise MetricError(
            f"the name '{name}' is reserved for the original weights of '{reserved.extractor}'{instead}"
        )


def check_classes(value: str, extractor: str) -> None:
    """Raise `MetricError` for accuracy with Inception, whose 1,008 outputs match no data set's classes."""
    if value == "accuracy" and extractor == "inception":
        raise MetricError(
            "accuracy needs a classifier of this data set's classes (for example 'local'); "
            "the 1,008 outputs of 'inception' do not correspond to them"
        )


def called(value: str, extractor: str) -> str:
    """Return the recorded name of a value: reserved names first, bare names with Inception, else
    `<value>:<extractor>`.
    """
    for name, reserved in RESERVED.items():
        if reserved.exclusive and (value, extractor) == (reserved.value, reserved.extractor):
            return name
    return value if extractor == "inception" and value != "cmmd" else f"{value}:{extractor}"


def metrics_of(values: Iterable[str]) -> list[Metric]:
    """Return the metrics that compute these values, without duplicates."""
    requested = set(values)
    return [metric for metric in METRICS if requested & set(metric.values)]


def metric_of(value: str) -> Metric:
    """Return the metric that computes a value."""
    return _METRIC_OF[value]


def measure(values: Sequence[str], real: Side | None, fake: Side) -> dict[str, Value]:
    """Return the values in the order requested. Raises `MetricError` for unusable features."""
    computed: dict[str, Value] = {}
    for metric in metrics_of(values):
        computed.update(zip(metric.values, metric.compute(real or Side(), fake), strict=True))
    return {value: computed[value] for value in values}


def _general(name: str) -> str:
    """Return the value that a name stands for, independent of the network."""
    return RESERVED[name].value if name in RESERVED else name
