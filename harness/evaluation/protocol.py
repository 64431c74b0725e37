"""What makes two values of a metric comparable, as data and as a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from harness.config.spec import EvalSpec
from harness.data.dataset import Dataset, shapes_of
from harness.evaluation.metric_names import TRUTHS, yardstick
from harness.evaluation.reference_free import Truth
from metrics.extractors.base import Extractor
from metrics.suite import settings


def protocol(
    spec: EvalSpec,
    dataset: Dataset,
    train: np.ndarray,
    extractors: Mapping[str, Extractor],
    truths: Iterable[Truth] = (),
) -> dict[str, Any]:
    """Everything that makes two values comparable, as JSON. How often a value was measured does not belong to it."""
    fields = spec.model_dump(
        mode="json", exclude={"every", "batch_size", "grid", "replicates", "weights", "samples"}
    )
    if spec.precision == "float32":
        del fields["precision"]  # as protocols were before there was a choice
    known = {truth.name: truth.about for truth in truths}
    values = {yardstick(name).value for name in spec.metrics if name not in TRUTHS}
    return {
        **fields,
        "n_fake": spec.samples,
        "n_real": len(train),
        "data": dataset.fingerprint,
        "shape": list(dataset.shape),
        **({"beside": shapes_of(dataset)[1:]} if len(shapes_of(dataset)) > 1 else {}),
        "extractors": {
            name: {"sha256": e.sha256, "dim": e.dim, "preprocessing": e.preprocessing}
            for name, e in extractors.items()
        },
        **({"truths": known} if known else {}),
        "settings": {value: settings(value) for value in sorted(values) if settings(value)},
    }


def digest(about: Mapping[str, Any]) -> str:
    """12 hex digits over a protocol: numbers with different ones must not be compared."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
