"""Evaluation protocol: the conditions under which two values of a metric are comparable, and their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import Dataset, shapes_of
from harness.evaluation.metric_names import metric_spec
from harness.evaluation.reference import RaceReference
from harness.evaluation.reference_free import ReferenceFreeMetric
from metrics.extractors.base import Extractor
from metrics.suite import metric_of

NOT_PROTOCOL = {"every", "batch_size", "grid", "replicates", "weights", "samples", "reference"}
"""Fields of `eval` that are not conditions, or that are conditions by content under another name."""


def protocol(
    spec: EvalSpec,
    dataset: Dataset,
    train: np.ndarray,
    extractors: Mapping[str, Extractor],
    reference_free: Iterable[ReferenceFreeMetric] = (),
    reference: RaceReference | None = None,
    unsampled: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the conditions under which two values are comparable, as JSON.

    `unsampled` is what metrics without samples depend on, by name. The number of replicates is not part of
    them. The content of a reference is, with its number of samples.
    """
    fields = spec.model_dump(mode="json", exclude=NOT_PROTOCOL | spec.unset)
    fields["guidance"] = spec.scale
    if spec.precision == "float32":
        # Protocols recorded before the precision could be chosen have no such field.
        del fields["precision"]
    prepared = {metric.name: metric.about for metric in reference_free}
    prepared |= {name: dict(about) for name, about in (unsampled or {}).items()}
    named = [metric_spec(name) for name in spec.metrics]
    settings = {m.value: metric_of(m.value).settings for m in named if m.compares_features}
    return {
        **fields,
        "n_fake": spec.samples,
        "n_real": reference.statistics.n if reference else len(train),
        "data": dataset.fingerprint,
        "shape": list(dataset.shape),
        **({"beside": shapes_of(dataset)[1:]} if len(shapes_of(dataset)) > 1 else {}),
        "extractors": {
            name: {"sha256": e.sha256, "dim": e.dim, "preprocessing": e.preprocessing}
            for name, e in extractors.items()
        },
        **({"reference": reference.sha256} if reference else {}),
        **({"truths": prepared} if prepared else {}),
        "settings": {value: settings[value] for value in sorted(settings) if settings[value]},
    }


def digest(about: Mapping[str, Any]) -> str:
    """Return 12 hex digits over a protocol; values with different digests are not comparable."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
