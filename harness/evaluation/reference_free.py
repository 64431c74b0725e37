"""Reference-free metrics: those of `eval.metrics` that are measured on the samples themselves.

    dynamics                   moving_digits    distance in pixels to the nearest possible path; 0 is perfect
    sync                       bounce           fraction of impacts and clicks that match within one frame
    agreement:local            any video        fraction of frame pairs that a classifier labels alike
    drift:local                any video        feature variation within a video over that between videos
    cer:reader, cer:tesseract  words            character error rate of a trained network or of Tesseract
    obeys:<attribute>          prompts, bounce  share of samples that show what their caption states
    obeys:<attribute>/<part>   bounce           the same of the video or of the sound alone
    clip_score:open_clip:<model>                cosine of picture and caption (caption_scores.py), also
                                                clip_score_hessel and retrieval

Definitions are in metrics/domain: video_consistency.py, audio_video_sync.py, typography.py, obedience.py and
clip_obedience.py.
The noise floor of a metric has two values: that of held-out real samples, and that of the same samples when
spoilt. To spoil them, frames are shuffled or swapped among videos, or samples get another sample's sound,
word or caption.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from harness.backbone.tokens import split_parts
from harness.data.dataset import Capabilities, Dataset, shapes_of
from harness.data.generated.bounce_captions import Bounces
from harness.data.generated.prompts import CELL, Truth
from harness.data.open import images
from harness.errors import UserError
from harness.evaluation.caption_scores import CaptionScore
from harness.evaluation.clip_obedience import ClipReaders
from harness.evaluation.extractors import training_images
from harness.evaluation.kept_features import Kept, kept_features, samples_identity
from harness.evaluation.metric_table import CAPTION_SCORES
from harness.evaluation.obedience import known_cells, wanted_scene
from harness.files.cache import cache_dir
from harness.files.parse import parse_json
from harness.runtime.random_streams import Streams
from metrics import MetricError, Value
from metrics.domain.audio_video_sync import clicks, impacts, synchrony
from metrics.domain.clip_obedience import clip_obedience
from metrics.domain.geneval import TASKS, geneval
from metrics.domain.obedience import SceneReader, obedience, scene_reader
from metrics.domain.typography import error_rate, reader, tesseract
from metrics.domain.video_consistency import agreement, centres, drift, dynamics_error
from metrics.extractors.base import Extractor
from metrics.extractors.registry import load_extractor
from metrics.extractors.video.frames import frames_of

Parts = list[np.ndarray]
"""Samples as one uint8 array (N, *shape) for each part."""
Measure = Callable[[Parts, np.ndarray], Value]
"""Samples and their labels, or data set indices of their captions, (N,) -> the value."""
Captions = Callable[[np.ndarray], Sequence[str]]
"""Data set indices (N,) -> the captions that evaluations show for them."""
READER_TEXTS = 4000
"""Random strings that the reader of `cer:reader` is trained on."""


@dataclass(frozen=True)
class ReferenceFreeMetric:
    """A metric prepared for a data set."""

    name: str
    measure: Measure
    spoil: Callable[[Parts, np.ndarray], tuple[Parts, np.ndarray]]
    """Real samples and labels -> samples and labels that the metric should score badly."""
    about: dict[str, Any]
    """Everything that its values depend on in addition to the samples, for the protocol."""
    captioned: bool = False
    """True if it is given the data set indices of the samples' captions instead of labels."""

    def __call__(self, x: torch.Tensor, shapes: Sequence[tuple[int, ...]], labels: torch.Tensor) -> Value:
        """Measure uint8 samples (N, ...), whose parts have these shapes.

        `labels` (N,) are data set indices for a `captioned` metric.
        Raises `MetricError` if the metric is undefined for these samples.
        """
        return self.measure([part.numpy() for part in split_parts(x, shapes)], labels.numpy())

    def noise_floor(self, dataset: Dataset, index: np.ndarray) -> dict[str, dict[str, Any]]:
        """Return the values of real samples, unchanged and spoilt, as JSON; empty if they are undefined.

        They are kept by content.
        """
        threads = torch.get_num_threads()
        content = ["reference-free floor", self.name, self.about, threads, samples_identity(dataset, index)]
        found = kept_features(content, lambda: Kept(notes={"floor": json.dumps(self._floor(dataset, index))}))
        return parse_json(found.notes["floor"])

    def _floor(self, dataset: Dataset, index: np.ndarray) -> dict[str, dict[str, Any]]:
        x, labels = images(dataset, index)
        labels = index if self.captioned else labels
        parts = [part.numpy() for part in split_parts(torch.from_numpy(x), shapes_of(dataset))]
        sets = {"held_out": (parts, labels), "spoilt": self.spoil(parts, labels)}
        try:
            values = {kind: self.measure(*samples) for kind, samples in sets.items()}
        except MetricError:
            return {}
        return {
            kind: {"mean": value.mean, "n": value.n if self.captioned else len(index), "n_real": 0}
            for kind, value in values.items()
        }


def prepared(
    name: str,
    dataset: Dataset,
    train: np.ndarray,
    device: torch.device,
    *,
    weights: Mapping[str, str] | None = None,
    captions: Captions | None = None,
) -> ReferenceFreeMetric:
    """Prepare a metric for a data set that supports it (see checks.py).

    `weights` are the files of networks by name. `captions` returns the captions of data set indices.
    Raises `UserError` if Tesseract, or the weights of a network, are needed but not on this machine.
    """
    value, _, by = name.partition(":")
    try:
        if value in CAPTION_SCORES and captions is not None:
            score = CaptionScore(value, by, weights or {}, dataset, train, device)
            return _scored(name, score, captions)
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


def _obeys(name: str, by: str, dataset: Dataset, train: np.ndarray, __: torch.device) -> ReferenceFreeMetric:
    truth = Capabilities(dataset).truth
    assert truth is not None
    kind, _, part = by.partition("/")
    of_clips = isinstance(truth(int(train[0])), Bounces)
    measure, about = (
        _of_clips(kind, part, _clip_readers(_Split(id(dataset), train.tobytes(), dataset, train)))
        if of_clips
        else _of_scenes(kind, dataset, truth, train)
    )
    return ReferenceFreeMetric(name, measure, _other_captions, about, captioned=True)


def _of_scenes(
    kind: str, dataset: Dataset, truth: Callable[[int], Truth], train: np.ndarray
) -> tuple[Measure, dict[str, Any]]:
    trained = _scene_reader(dataset, train.astype(np.int64).tobytes())

    def measure(parts: Parts, places: np.ndarray) -> Value:
        captions = [wanted_scene(truth(int(place))) for place in places]
        judge = geneval if kind in TASKS else obedience
        return judge(kind, trained.read(parts[0]), captions)

    return measure, {"sha256": trained.sha256, "accuracy": trained.accuracy}


def _of_clips(kind: str, only: str, readers: ClipReaders) -> tuple[Measure, dict[str, Any]]:
    def measure(parts: Parts, places: np.ndarray) -> Value:
        return clip_obedience(kind, readers.shown(parts, only), readers.stated(places))

    return measure, readers.about(only)


@dataclass(frozen=True)
class _Split:
    """The training split of a data set as the key of a cache; parts of a data set have no hash."""

    identity: int
    content: bytes
    dataset: Dataset = field(compare=False)
    train: np.ndarray = field(compare=False)


@lru_cache(maxsize=1)
def _clip_readers(split: _Split) -> ClipReaders:
    """Return the readers trained on a split, which all kinds share."""
    truth = Capabilities(split.dataset).truth
    assert truth is not None
    return ClipReaders(split.dataset, truth, split.train)


@lru_cache(maxsize=1)
def _scene_reader(dataset: Dataset, train: bytes) -> SceneReader:
    """Return the reader trained on samples with indices int64 `train`, which all kinds share."""
    truth, index = Capabilities(dataset).truth, np.frombuffer(train, np.int64)
    assert truth is not None
    cells = known_cells([truth(int(place)) for place in index])
    return scene_reader(images(dataset, index)[0], cells, CELL, cache=cache_dir("extractors"))


def _scored(name: str, score: CaptionScore, captions: Captions) -> ReferenceFreeMetric:
    def measure(parts: Parts, places: np.ndarray) -> Value:
        return score(parts[0], captions(places))

    return ReferenceFreeMetric(name, measure, _other_captions, score.about(), captioned=True)


def _other_captions(parts: Parts, places: np.ndarray) -> tuple[Parts, np.ndarray]:
    return parts, np.roll(places, 1)


def _reader(dataset: Any) -> tuple[Callable[[np.ndarray], list[str]], dict[str, Any]]:
    trained = reader(*dataset.primer(READER_TEXTS), cache=cache_dir("extractors"))
    return trained.read, {"sha256": trained.sha256, "error": trained.error}


def _tesseract() -> tuple[Callable[[np.ndarray], list[str]], dict[str, Any]]:
    if shutil.which("tesseract") is None:
        raise MetricError("Tesseract is not installed; run: apt install tesseract-ocr, or use cer:reader")
    result = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True)
    return tesseract, {"version": (result.stdout or result.stderr).splitlines()[0]}


def _identity(
    name: str, _: str, dataset: Dataset, train: np.ndarray, device: torch.device
) -> ReferenceFreeMetric:
    classifier = _classifier(dataset, train, device)

    def measure(parts: Parts, _: np.ndarray) -> Value:
        outputs = classifier.outputs(torch.from_numpy(_frames(parts[0])).flatten(0, 1))
        videos_by_frames = parts[0].shape[:1] + parts[0].shape[2:3]
        per_frame = {key: x.cpu().unflatten(0, videos_by_frames) for key, x in outputs.items()}
        if name.startswith("agreement"):
            return agreement(per_frame["logits"].argmax(-1).numpy())
        return drift(per_frame["features"].numpy()).relative

    return ReferenceFreeMetric(name, measure, _frames_swapped, {"sha256": classifier.sha256})


def _classifier(dataset: Dataset, train: np.ndarray, device: torch.device) -> Extractor:
    """Return the classifier of single frames that `video:local` uses, trained on the training split."""
    frames = frames_of(training_images(dataset, train, "video"))
    where = {"cache": cache_dir("extractors"), "device": str(device)}
    return load_extractor("local", classes=dataset.classes, images=frames, **where)


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


_MAKERS = {
    "dynamics": _dynamics,
    "sync": _sync,
    "cer": _cer,
    "agreement": _identity,
    "drift": _identity,
    "obeys": _obeys,
}
