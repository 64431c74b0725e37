"""The table of metrics: what each needs of real and generated samples, and which names belong to which
network.

A side is what one pass of a network over a set of samples left: features as rows or as moments and, if the
network has them, the features of sFID and logits.
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
    """Features sample by sample, if a metric needs them.

    In ADM's references there are fewer rows than samples in `features`.
    """
    spatial: Part | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None


class Metric(NamedTuple):
    values: tuple[str, ...]
    """Names of the values that `compute` returns."""
    real: str
    """The part of `Side` needed of the reference; empty for none."""
    fake: str
    """The part of `Side` needed of the samples."""
    compute: Callable[[Side, Side], Sequence[Value]]
    # Any: as JSON; read only
    settings: dict[str, Any] = {}  # noqa: RUF012
    """What the values depend on in addition to the features."""
    least: int = 1
    """The fewest generated samples for which the values are defined."""
    noise_floor: bool = False
    """Whether the same distance between real samples is reported with the value."""


def _accuracy(_: Side, fake: Side) -> Sequence[Value]:
    if fake.labels is None or fake.logits is None:
        raise MetricError("accuracy needs samples with labels: an array arr_1, or one folder a class")
    return (class_accuracy(fake.logits, fake.labels),)


def _infinity(real: Side, fake: Side) -> Sequence[Value]:
    """As in dgm-eval, the reference is its moments, even if its rows were kept for another metric."""
    if real.features is None:
        raise MetricError("fd_infinity needs the features of a reference")
    whole = real.features if isinstance(real.features, Moments) else moments_of(real.features)
    return (frechet_infinity(whole, fake.rows),)


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
    """Whether the name is refused with any other network. If not, it is then the name of the value alone."""


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
    """Return every name that may be requested."""
    return sorted({*_METRIC_OF, *GROUPS, *RESERVED})


def chosen(names: Iterable[str]) -> list[str]:
    """Return the values that these names stand for, each once, in order.

    Raises `MetricError` for an unknown name.
    """
    found: dict[str, None] = {}
    for name in names:
        for value in GROUPS.get(name, (_general(name),)):
            if value not in _METRIC_OF:
                near = difflib.get_close_matches(name, metric_names(), n=1, cutoff=0.5)
                hint = f". Did you mean '{near[0]}'?" if near else ""
                raise MetricError(f"unknown metric '{name}' (known: {', '.join(metric_names())}){hint}")
            found[value] = None
    if not found:
        raise MetricError(f"no metric is named (known: {', '.join(metric_names())})")
    return list(found)


def check_reserved(names: Iterable[str], extractor: str) -> None:
    """Raise `MetricError` for a name that is reserved for another network, or for its original weights."""
    for name in names:
        reserved = RESERVED.get(name)
        if reserved is None or not reserved.exclusive or extractor == reserved.extractor:
            continue
        instead = f"; with '{extractor}' write {reserved.value}:{extractor}" if name != "sfid" else ""
        raise MetricError(
            f"the name '{name}' is reserved for the original weights of '{reserved.extractor}'{instead}"
        )


def check_classes(value: str, extractor: str) -> None:
    """Raise `MetricError` for accuracy by Inception: the order of its 1,008 outputs is that of no data
    set."""
    if value == "accuracy" and extractor == "inception":
        raise MetricError(
            "accuracy needs a classifier of this data set's classes (for example 'local'); "
            "the 1,008 outputs of 'inception' do not correspond to them"
        )


def called(value: str, extractor: str) -> str:
    """Return the name of a value: `fid` and bare names with Inception, `fvd` with I3D, else
    `<value>:<extractor>`.
    """
    for name, reserved in RESERVED.items():
        if reserved.exclusive and (value, extractor) == (reserved.value, reserved.extractor):
            return name
    return value if extractor == "inception" and value != "cmmd" else f"{value}:{extractor}"


def metrics_of(values: Iterable[str]) -> list[Metric]:
    """Return the metrics that compute these values, each once."""
    asked = set(values)
    return [metric for metric in METRICS if asked & set(metric.values)]


def metric_of(value: str) -> Metric:
    """Return the metric that computes a value."""
    return _METRIC_OF[value]


def measure(values: Sequence[str], real: Side | None, fake: Side) -> dict[str, Value]:
    """Return the values, in the order requested. Raises `MetricError` for unusable features."""
    found: dict[str, Value] = {}
    for metric in metrics_of(values):
        found.update(zip(metric.values, metric.compute(real or Side(), fake), strict=True))
    return {value: found[value] for value in values}


def _general(name: str) -> str:
    """Return the value that a name stands for, whatever the network."""
    return RESERVED[name].value if name in RESERVED else name
