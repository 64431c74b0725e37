"""Which metrics there are, what each needs of the two sides, and how its values are called.

A side is what one pass of a network over a set of samples left: features in rows or as moments, and where the network has
them the features of sFID and logits.
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
"""Of n samples: an array (n, d), or the moments of one that was not kept."""


class Side(NamedTuple):
    """The real or the generated samples, as the network saw them."""

    features: Part | None = None
    rows: np.ndarray | None = None
    """The features sample by sample, where a metric needs them so; of fewer samples than `features` in ADM's references."""
    spatial: Part | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None


class Metric(NamedTuple):
    values: tuple[str, ...]
    """What it is called, one name for each value of `compute`."""
    real: str
    """The part of `Side` that it needs of the reference, or nothing."""
    fake: str
    """The part that it needs of the samples."""
    compute: Callable[[Side, Side], Sequence[Value]]
    settings: dict[str, Any] = {}  # noqa: RUF012 (read only)
    """What its values depend on beside the features."""
    least: int = 1
    """Generated samples without which there is no value."""


def _accuracy(_: Side, fake: Side) -> Sequence[Value]:
    if fake.labels is None or fake.logits is None:
        raise MetricError("accuracy needs samples with labels: an array arr_1, or one folder a class")
    return (class_accuracy(fake.logits, fake.labels),)


def _infinity(real: Side, fake: Side) -> Sequence[Value]:
    """As dgm-eval has it: the reference is its moments, whether or not its rows were kept for another metric."""
    whole = real.features if isinstance(real.features, Moments) else moments_of(real.features)
    return (frechet_infinity(whole, fake.rows),)


_KID = {"subsets": 100, "subset_size": 1000, "seed": 2020}
METRICS = (
    Metric(("fd",), "features", "features", lambda r, f: (frechet_distance(r.features, f.features),), least=2),
    Metric(("sfid",), "spatial", "spatial", lambda r, f: (frechet_distance(r.spatial, f.spatial),), least=2),
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
"""Of names and what they need; the distances are in rooms of their own."""
GROUPS = {
    "pr": ("precision", "recall"),
    "prdc": ("precision", "recall", "density", "coverage"),
    "pr_torch_fidelity": ("precision_torch_fidelity", "recall_torch_fidelity"),
}
OWN_NAMES = {
    "inception": {"fd": "fid", "fd_infinity": "fid_infinity"},
    "i3d": {"fd": "fvd", "fd_infinity": "fvd_infinity"},
}
"""Names that a value has with one network alone."""
OWN_NETWORK = {
    "fid": "inception",
    "fid_infinity": "inception",
    "fvd": "i3d",
    "fvd_infinity": "i3d",
    "sfid": "inception",
}
_METRIC_OF = {value: metric for metric in METRICS for value in metric.values}


def metric_names() -> list[str]:
    """All that may be asked for."""
    return sorted({*_METRIC_OF, *GROUPS, *OWN_NETWORK})


def chosen(names: Iterable[str]) -> list[str]:
    """The values that these names ask for, each once, in order; raises `MetricError` for an unknown one."""
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


def check_names(names: Iterable[str], extractor: str) -> None:
    """Raise `MetricError` for a name that belongs to another network than the one that measures."""
    for name in names:
        network = OWN_NETWORK.get(name)
        if network and network != extractor:
            general = "its own network alone has it" if name == "sfid" else f"ask for {_general(name)}"
            raise MetricError(
                f"metric '{name}' is called so only with the original weights of '{network}', "
                f"not with '{extractor}': {general}"
            )


def check_classes(value: str, extractor: str) -> None:
    """Raise `MetricError` for accuracy by Inception: its 1,008 outputs have an order of their own, that of no data set."""
    if value == "accuracy" and extractor == "inception":
        raise MetricError(
            "the 1,008 outputs of 'inception' are in an order of their own, not the classes of these data: for accuracy take a "
            "classifier of them, as 'local'"
        )


def called(value: str, extractor: str) -> str:
    """What a value is called: `fid` and bare names with Inception, `fvd` with I3D, else `<value>:<extractor>`."""
    own = OWN_NAMES.get(extractor, {}).get(value)
    return own or (value if extractor == "inception" and value != "cmmd" else f"{value}:{extractor}")


def metrics_of(values: Iterable[str]) -> list[Metric]:
    """The metrics that compute these values, each once."""
    asked = set(values)
    return [metric for metric in METRICS if asked & set(metric.values)]


def measure(values: Sequence[str], real: Side | None, fake: Side) -> dict[str, Value]:
    """The values, in the order asked for. Raises `MetricError` for features that cannot be measured."""
    found: dict[str, Value] = {}
    for metric in metrics_of(values):
        found.update(zip(metric.values, metric.compute(real or Side(), fake), strict=True))
    return {value: found[value] for value in values}


def settings(value: str) -> dict[str, Any]:
    """What the value depends on beside the features."""
    return _METRIC_OF[value].settings


def least(value: str) -> int:
    """Generated samples without which the value is not defined."""
    return _METRIC_OF[value].least


def _general(name: str) -> str:
    return {"fid": "fd", "fvd": "fd", "fid_infinity": "fd_infinity", "fvd_infinity": "fd_infinity"}.get(
        name, name
    )
