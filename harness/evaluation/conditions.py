"""The conditions of an evaluation's samples, labels or captions, as a function of their index."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import Condition, Text
from harness.config.spec import EvalSpec
from harness.flow.sampling import sample_labels
from harness.runtime.random_streams import Streams
from harness.text.captions import CaptionConditions, RunCaptions


class Conditions(Protocol):
    """The conditions of samples, which depend on their index alone."""

    @property
    def null(self) -> int | Text:
        """The condition of guidance without one: the null label, or the empty caption (1, L, D)."""
        ...

    def condition(self, index: np.ndarray) -> Condition:
        """Return the conditions of samples with indices (B,)."""
        ...

    def labels(self, index: np.ndarray) -> Tensor:
        """Return the labels (B,) of samples with indices (B,), with which metrics compare classes."""
        ...

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the captions of samples with indices (B,); an empty list for labels."""
        ...

    def places(self, index: np.ndarray) -> np.ndarray:
        """Return the data set indices (B,) of the samples whose captions these are; empty for others."""
        ...

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        """Return what values of a metric depend on in addition to `eval`, as JSON."""
        ...

    @property
    def encoder_sha256(self) -> str:
        """The weights of the text encoder; empty for labels."""
        ...


class LabelConditions:
    """Labels as `eval.labels` chooses them, of all classes or of some."""

    encoder_sha256 = ""

    def __init__(self, spec: EvalSpec, classes: int, only: tuple[int, ...] = ()) -> None:
        self.spec, self.null, self.only = spec, classes, only

    def condition(self, index: np.ndarray) -> Tensor:
        return self.labels(index)

    def labels(self, index: np.ndarray) -> Tensor:
        streams = Streams(self.spec.seed)
        if not self.only:
            return sample_labels(self.spec, streams, index, self.null)
        return torch.tensor(self.only)[sample_labels(self.spec, streams, index, len(self.only))]

    def texts(self, index: np.ndarray) -> list[str]:
        return []

    def places(self, index: np.ndarray) -> np.ndarray:
        return np.empty(0, np.int64)

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        return {}


def conditions_of(
    spec: EvalSpec,
    classes: int,
    captions: RunCaptions | None,
    held_out: np.ndarray | None,
    train: np.ndarray,
) -> Conditions:
    """Return the conditions of an evaluation: captions if the run has them, else labels."""
    if captions is None:
        return LabelConditions(spec, classes)
    return CaptionConditions(captions, spec, held_out, train)
