"""Metrics of generated samples: distances between features (N, d), numpy or torch, and feature extractors.

Every distance takes the real features first and the generated ones second, and returns a `Value`. Importing
this package does not import torch; each distance is loaded on first use. No other package of the project is
imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from metrics.value import MetricError, Value

if TYPE_CHECKING:
    from metrics.distances.accuracy import class_accuracy
    from metrics.distances.cknna import cknna
    from metrics.distances.cmmd import cmmd
    from metrics.distances.density_coverage import DensityCoverage, density_coverage
    from metrics.distances.frechet import Moments, frechet_distance
    from metrics.distances.frechet_infinity import frechet_infinity
    from metrics.distances.inception_score import inception_score, inception_score_shuffled
    from metrics.distances.kid import kernel_distance
    from metrics.distances.memorisation import memorisation
    from metrics.distances.precision_recall import PrecisionRecall, precision_recall
    from metrics.extractors.base import Extractor
    from metrics.extractors.registry import extractor_names, load_extractor

_NAMES = {
    "distances.accuracy": ("class_accuracy",),
    "distances.cknna": ("cknna",),
    "distances.memorisation": ("memorisation",),
    "distances.density_coverage": ("DensityCoverage", "density_coverage"),
    "distances.inception_score": ("inception_score", "inception_score_shuffled"),
    "extractors.base": ("Extractor",),
    "extractors.registry": ("extractor_names", "load_extractor"),
    "distances.frechet": ("Moments", "frechet_distance"),
    "distances.frechet_infinity": ("frechet_infinity",),
    "distances.kid": ("kernel_distance",),
    "distances.precision_recall": ("PrecisionRecall", "precision_recall"),
    "distances.cmmd": ("cmmd",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

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
    "frechet_distance",
    "frechet_infinity",
    "inception_score",
    "inception_score_shuffled",
    "kernel_distance",
    "load_extractor",
    "memorisation",
    "precision_recall",
]


# Any: a function or a class.
def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'metrics' has no attribute '{name}'")
    return getattr(importlib.import_module(f"metrics.{_MODULE_OF[name]}"), name)
