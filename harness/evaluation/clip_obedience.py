"""The clips of the data set `bounce` as the metrics `obeys:*` compare them: frames of each part and facts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from harness.backbone.tokens import kind_of, split_parts
from harness.data.dataset import Dataset, shapes_of
from harness.data.generated.bounce_captions import TEMPI, Bounces
from harness.data.log_mel import PER_FRAME
from harness.data.open import images
from harness.files.cache import cache_dir
from metrics.domain.clip_obedience import KINDS, UNKNOWN, ClipReader, Facts, clip_reader

TEMPO_NAMES = tuple(TEMPI)


class ClipReaders:
    """The readers of a data set's parts, trained on the training split."""

    def __init__(self, dataset: Dataset, truth: Callable[[int], Bounces], train: np.ndarray) -> None:
        """`truth` returns the facts of a sample."""
        self._truth = truth
        self._last: dict[str, tuple[bytes, Facts]] = {}
        self._kinds = [kind_of(shape) for shape in shapes_of(dataset)]
        facts = self.stated(train)
        samples = torch.from_numpy(images(dataset, train)[0])
        parts = [part.numpy() for part in split_parts(samples, shapes_of(dataset))]
        self.of: dict[str, ClipReader] = {
            kind: clip_reader(frames_of_part(part), facts, cache=cache_dir("extractors"))
            for kind, part in zip(self._kinds, parts, strict=True)
        }

    def stated(self, places: np.ndarray) -> Facts:
        """Return what the first captions of data set indices (N,) state."""
        return known_facts([self._truth(int(place)) for place in places])

    def shown(self, parts: Sequence[np.ndarray], only: str = "") -> list[Facts]:
        """Return the facts that each reader finds in its part of samples.

        `only` is the kind of part to read, `video` or `audio`; empty for all.
        """
        found = zip(self._kinds, parts, strict=True)
        return [self._read(kind, part) for kind, part in found if only in ("", kind)]

    # Any: JSON.
    def about(self, only: str = "") -> dict[str, Any]:
        """Return what values of these parts depend on, as JSON."""
        return {
            kind: {"sha256": reader.sha256, "accuracy": reader.accuracy}
            for kind, reader in self.of.items()
            if only in ("", kind)
        }

    def _read(self, kind: str, part: np.ndarray) -> Facts:
        """Return the facts in a part. Those of the last samples are kept, because all metrics need them."""
        content = hashlib.sha256(np.ascontiguousarray(part).data).digest()
        if self._last.get(kind, (b"",))[0] != content:
            self._last[kind] = content, self.of[kind].read(frames_of_part(part))
        return self._last[kind][1]


def known_facts(truths: Sequence[Bounces]) -> Facts:
    """Return the known facts of clips, which are those that their first captions state."""
    rows = [
        (truth.digit, UNKNOWN if truth.count is None else truth.count, _tempo(truth.tempo))
        for truth in truths
    ]
    return Facts(*np.array(rows, dtype=np.int64).reshape(-1, len(KINDS)).T)


def frames_of_part(part: np.ndarray) -> np.ndarray:
    """Return a video uint8 (N, C, T, H, W), or a spectrogram (N, bands, L), as frames (N, T, C, H, W).

    A frame of a spectrogram, (1, bands, `PER_FRAME`), lasts as long as one of the video.
    """
    if part.ndim == 5:
        return part.swapaxes(1, 2)
    count, bands, length = part.shape
    return part.reshape(count, 1, bands, length // PER_FRAME, PER_FRAME).transpose(0, 3, 1, 2, 4)


def _tempo(name: str) -> int:
    return TEMPO_NAMES.index(name) if name else UNKNOWN
