"""The conditions of an evaluation's samples, labels or captions, as a function of their index."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import Condition, Text
from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import Capabilities, Dataset, label_of
from harness.data.open import from_pixels, images
from harness.errors import UserError
from harness.flow.sampling import Given, sample_labels
from harness.runtime.random_streams import Streams
from harness.text.captions import CaptionConditions, RunCaptions


class Conditions(Protocol):
    """The conditions of samples, which depend on their index alone."""

    @property
    def given(self) -> Given | None:
        """Function from indices (B,) to the clean samples whose given tokens the samples have; None for a
        network without given tokens."""
        ...

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
    given: Given | None = None

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


class SampleLabels(LabelConditions):
    """The labels of held-out samples whose given tokens the samples of an evaluation have.

    `eval.labels = "balanced"` uses all of them equally often, `random` draws them. Without held-out samples,
    those of the training split are used. `only` restricts them to some classes.
    """

    def __init__(
        self,
        spec: EvalSpec,
        dataset: Dataset,
        held_out: np.ndarray | None,
        train: np.ndarray,
        only: tuple[int, ...] = (),
    ) -> None:
        super().__init__(spec, dataset.classes, only)
        self.dataset = dataset
        self.given = given_samples(self, dataset, spec.seed)
        places = train if held_out is None or not len(held_out) else held_out
        self.side = "training" if places is train else "held out"
        self._places = np.array([i for i in places if not only or label_of(dataset, int(i)) in only])
        if not len(self._places):
            raise UserError(
                f"no {self.side} sample has the classes {', '.join(map(str, only))}, so none can give "
                "tokens; choose others"
            )

    def labels(self, index: np.ndarray) -> Tensor:
        return torch.tensor([label_of(self.dataset, int(place)) for place in self.places(index)])

    def places(self, index: np.ndarray) -> np.ndarray:
        count = len(self._places)
        if self.spec.labels == "balanced":
            return self._places[index % count]
        return self._places[Streams(self.spec.seed).integers("eval_given", index, count).numpy()]

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        return {"given": {"side": self.side, "samples": len(self._places)}}


def given_samples(conditions: Conditions, dataset: Dataset, seed: int) -> Given:
    """Return the function from indices of samples to the clean samples whose given tokens they have."""
    return lambda index: clean_samples(dataset, conditions.places(index), seed)


def clean_samples(dataset: Dataset, place: np.ndarray, seed: int) -> Tensor:
    """Return samples at data set indices (B,) as a network is trained on them, float32 (B, ...)."""
    latent = Capabilities(dataset).latent
    if latent is None:
        return from_pixels(images(dataset, place)[0])
    noise = Streams(seed).normal("held_out_posterior", place, dataset.shape)
    return latent.draws(place, None, noise)


def conditions_of(
    spec: EvalSpec,
    classes: int,
    captions: RunCaptions | None,
    held_out: np.ndarray | None,
    train: np.ndarray,
    giving: Dataset | None = None,
) -> Conditions:
    """Return the conditions of an evaluation: captions if the run has them, else labels.

    `giving` is the data set of a run with given tokens, whose labels are those of its samples.
    """
    if captions is None:
        if giving is None:
            return LabelConditions(spec, classes)
        return SampleLabels(spec, giving, held_out, train)
    conditions = CaptionConditions(captions, spec, held_out, train)
    if giving is not None:
        conditions.given = given_samples(conditions, giving, spec.seed)
    return conditions
