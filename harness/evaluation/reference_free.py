"""Reference-free metrics: `eval.metrics` names that are measured on the samples themselves.

    dynamics                      moving_digits     pixels from the nearest possible path of a digit; 0 is
    perfect sync                          bounce            share of impacts and clicks with a partner within
    one frame; 1 is perfect agreement:local               videos, classes   share of pairs of a video's frames
    given the same class by a classifier drift:local                   videos, classes   variation of features
    within a video, over that between videos cer:reader, cer:tesseract     words             character error
    rate, read by a locally trained network or by Tesseract

Definitions are in metrics/domain/video_consistency.py, audio_video_sync.py and typography.py. The noise floor
of each value is what held-out real samples score, and what they score spoilt: frames out of order or swapped
among videos, another video's sound, another word's picture.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.backbone.tokens import split_parts
from harness.data.dataset import Dataset, shapes_of
from harness.data.open import images
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.runtime.random_streams import Streams
from metrics import MetricError, Value
from metrics.domain.audio_video_sync import clicks, impacts, synchrony
from metrics.domain.typography import error_rate, reader, tesseract
from metrics.domain.video_consistency import agreement, centres, drift, dynamics_error
from metrics.extractors.base import Extractor
from metrics.extractors.registry import load_extractor

Parts = list[np.ndarray]
"""uint8 samples, one array (N, *shape) a part."""
Measure = Callable[[Parts, np.ndarray], Value]
"""Samples and their labels (N,) -> the value."""
READER_TEXTS = 4000
"""Random strings that the reader of `cer:reader` learns from."""


@dataclass(frozen=True)
class ReferenceFreeMetric:
    """A metric prepared for a data set."""

    name: str
    measure: Measure
    spoil: Callable[[Parts, np.ndarray], tuple[Parts, np.ndarray]]
    """Real samples -> samples that the metric should score badly."""
    about: dict[str, Any]
    """What its values depend on in addition to the samples."""

    def __call__(self, x: torch.Tensor, shapes: Sequence[tuple[int, ...]], labels: torch.Tensor) -> Value:
        """Measure uint8 samples (N, ...) of parts with these shapes; raises `MetricError` if it is not
        defined.
        """
        return self.measure([part.numpy() for part in split_parts(x, shapes)], labels.numpy())

    def noise_floor(self, dataset: Dataset, index: np.ndarray) -> dict[str, dict[str, Any]]:
        """Return what real samples score, as they are and spoilt; empty if they are too few or too alike for
        a value.
        """
        x, labels = images(dataset, index)
        parts = [part.numpy() for part in split_parts(torch.from_numpy(x), shapes_of(dataset))]
        found = {"held_out": (parts, labels), "spoilt": self.spoil(parts, labels)}
        try:
            means = {who: float(self.measure(*given)) for who, given in found.items()}
        except MetricError:
            return {}
        return {who: {"mean": mean, "n": len(index), "n_real": 0} for who, mean in means.items()}


def prepared(name: str, dataset: Dataset, train: np.ndarray, device: torch.device) -> ReferenceFreeMetric:
    """Prepare the metric for a data set that has it (checks.py); raises `UserError` for a reader that is not
    installed.
    """
    value, _, by = name.partition(":")
    try:
        return _MAKERS[value](name, by, dataset, train, device)
    except MetricError as error:
        raise UserError(f"eval.metrics '{name}': {error}") from error


def _dynamics(name: str, _: str, dataset: Any, *__: Any) -> ReferenceFreeMetric:
    world = dict(dataset.motion)

    def measure(parts: Parts, _: np.ndarray) -> Value:
        return dynamics_error(centres(parts[0][:, 0]), **world)

    return ReferenceFreeMetric(name, measure, _frames_out_of_order, world)


def _sync(name: str, _: str, dataset: Any, *__: Any) -> ReferenceFreeMetric:
    per_frame = dataset.sound_frames

    def measure(parts: Parts, _: np.ndarray) -> Value:
        visible, audible = impacts(parts[0][:, 0]), clicks(parts[1], per_frame=per_frame)
        return synchrony(visible, audible, frames=parts[0].shape[2]).share

    def spoil(parts: Parts, labels: np.ndarray) -> tuple[Parts, np.ndarray]:
        return [parts[0], np.roll(parts[1], 1, axis=0)], labels

    return ReferenceFreeMetric(name, measure, spoil, {"per_frame": per_frame, "within": 1.0})


def _cer(name: str, by: str, dataset: Any, *_: Any) -> ReferenceFreeMetric:
    read, about = _reader(dataset) if by == "reader" else _tesseract()

    def measure(parts: Parts, labels: np.ndarray) -> Value:
        return error_rate(read(parts[0][:, 0]), [dataset.words[label] for label in labels])

    return ReferenceFreeMetric(name, measure, lambda parts, labels: (parts, np.roll(labels, 1)), about)


def _reader(dataset: Any) -> tuple[Callable[[np.ndarray], list[str]], dict[str, Any]]:
    found = reader(*dataset.primer(READER_TEXTS), cache=cache_dir("extractors"))
    return found.read, {"sha256": found.sha256, "error": found.error}


def _tesseract() -> tuple[Callable[[np.ndarray], list[str]], dict[str, Any]]:
    if shutil.which("tesseract") is None:
        raise MetricError("Tesseract is not installed; run: apt install tesseract-ocr, or use cer:reader")
    said = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True)
    return tesseract, {"version": (said.stdout or said.stderr).splitlines()[0]}


def _identity(
    name: str, _: str, dataset: Dataset, train: np.ndarray, device: torch.device
) -> ReferenceFreeMetric:
    classifier = _classifier(dataset, train, device)

    def measure(parts: Parts, _: np.ndarray) -> Value:
        found = classifier.outputs(torch.from_numpy(_frames(parts[0])).flatten(0, 1))
        each = {
            key: x.cpu().unflatten(0, parts[0].shape[:1] + parts[0].shape[2:3]) for key, x in found.items()
        }
        if name.startswith("agreement"):
            return agreement(each["logits"].argmax(-1).numpy())
        return drift(each["features"].numpy()).relative

    return ReferenceFreeMetric(name, measure, _frames_swapped, {"sha256": classifier.sha256})


def _classifier(dataset: Dataset, train: np.ndarray, device: torch.device) -> Extractor:
    """Return the classifier of single frames, the network inside `video:local`."""
    x, labels = images(dataset, train)
    video = next(part for part in split_parts(torch.from_numpy(x), shapes_of(dataset)) if part.ndim == 5)
    frames = np.ascontiguousarray(_frames(video.numpy()))
    given = {"images": frames.reshape(-1, *frames.shape[2:]), "labels": np.repeat(labels, frames.shape[1])}
    where = {"cache": cache_dir("extractors"), "device": str(device)}
    return load_extractor("local", classes=dataset.classes, **given, **where)


def _frames(videos: np.ndarray) -> np.ndarray:
    """Turn (N, C, T, H, W) into (N, T, C, H, W)."""
    return np.ascontiguousarray(videos.swapaxes(1, 2))


def _frames_out_of_order(parts: Parts, labels: np.ndarray) -> tuple[Parts, np.ndarray]:
    x = parts[0]
    order = Streams(0).uniform("truths/order", range(len(x)), (x.shape[2],)).numpy().argsort(1)
    return [np.take_along_axis(x, order[:, None, :, None, None], axis=2), *parts[1:]], labels


def _frames_swapped(parts: Parts, labels: np.ndarray) -> tuple[Parts, np.ndarray]:
    """Replace frame t of video i by that of video i + t."""
    x = parts[0]
    rolled = [np.roll(x[:, :, t], -t, axis=0) for t in range(x.shape[2])]
    return [np.stack(rolled, axis=2), *parts[1:]], labels


_MAKERS = {"dynamics": _dynamics, "sync": _sync, "cer": _cer, "agreement": _identity, "drift": _identity}
