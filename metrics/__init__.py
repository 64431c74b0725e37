"""One distance a file over features (N, d), numpy or torch; `features` names the extractors.

Every distance takes the real features first, the generated ones second, and returns a `Value`. Imports nothing of the
other packages; importing this one imports no torch, a distance is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from metrics.value import MetricError, Value

if TYPE_CHECKING:
    from metrics.accuracy import class_accuracy
    from metrics.alignment import cknna
    from metrics.copies import memorisation
    from metrics.density import DensityCoverage, density_coverage
    from metrics.entropy import inception_score, inception_score_shuffled
    from metrics.extractor import Extractor
    from metrics.features import extractor_names, extractors, load_extractor
    from metrics.frechet import Moments, frechet_distance
    from metrics.infinity import frechet_infinity
    from metrics.kernel import kernel_distance
    from metrics.manifolds import PrecisionRecall, precision_recall
    from metrics.mmd import cmmd

_ROOMS = {
    "accuracy": ("class_accuracy",),
    "alignment": ("cknna",),
    "copies": ("memorisation",),
    "density": ("DensityCoverage", "density_coverage"),
    "entropy": ("inception_score", "inception_score_shuffled"),
    "extractor": ("Extractor",),
    "features": ("extractor_names", "extractors", "load_extractor"),
    "frechet": ("Moments", "frechet_distance"),
    "infinity": ("frechet_infinity",),
    "kernel": ("kernel_distance",),
    "manifolds": ("PrecisionRecall", "precision_recall"),
    "mmd": ("cmmd",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "DensityCoverage",
    "Extractor",
    "MetricError",
    "Moments",
    "PrecisionRecall",
    "Value",
    "cknna",
    "class_accuracy",
    "cmmd",
    "density_coverage",
    "extractor_names",
    "extractors",
    "frechet_distance",
    "frechet_infinity",
    "inception_score",
    "inception_score_shuffled",
    "kernel_distance",
    "load_extractor",
    "memorisation",
    "precision_recall",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'metrics' has no attribute '{name}'")
    return getattr(importlib.import_module(f"metrics.{_ROOM_OF[name]}"), name)
