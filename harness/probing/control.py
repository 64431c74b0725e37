"""Control probe: state and action, decoded from a run's layers by ridge regression.

It is a proxy for a robot's success (`metrics/domain/control.py`). The videos are held-out ones of a data set
that records object positions, with noise and without labels as in every probe. There are two baselines.
`pixels` is the noisy input itself. `untrained` is the network at the run's initial weights, where with
adaLN-Zero every block returns its input.

    B  videos    T  tokens    F  time patches    D  features
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import Text
from harness.backbone.config import BackboneConfig
from harness.backbone.initialize import initialize
from harness.backbone.kinds import network_of
from harness.backbone.network import Backbone
from harness.backbone.times import Times
from harness.backbone.tokens import kind_of
from harness.data.dataset import Capabilities, Dataset
from harness.data.open import from_pixels, images
from harness.errors import UserError
from harness.files.progress import tracked
from harness.probing.layers import BATCH, Tokens, layers, measuring, noised
from harness.runtime.random_streams import Streams
from metrics.domain.control import Decoded, decoded

LEAST = 20
"""Minimum number of videos: the regression holds out a quarter of them, five, for the interval."""


@dataclass(frozen=True)
class Scene:
    """Videos with their states and actions, in rows: one for each time patch of a video except its last."""

    index: np.ndarray
    """(N,) indices in the data set."""
    state: np.ndarray
    """(N (F - 1), 2): position as row and column in pixels, the mean over the frames of a time patch."""
    action: np.ndarray
    """(N (F - 1), 2): displacement in pixels to the next time patch."""

    @property
    def videos(self) -> np.ndarray:
        """Return the video number of each row, (N (F - 1),)."""
        return np.repeat(np.arange(len(self.index)), len(self.state) // len(self.index))


class Row(NamedTuple):
    """The decoding of one representation."""

    name: str
    state: Decoded
    action: Decoded


def scene_of(dataset: Dataset, held_out: np.ndarray, config: BackboneConfig, samples: int) -> Scene:
    """Choose at most `samples` held-out videos, the same for all networks on the same data.

    Raises `UserError` for data without positions, for clips of one time patch, and for fewer than `LEAST`
    held-out videos.
    """
    position = _positions(dataset)
    frames, extent = config.grid[0], config.parts[0].patch[0]
    if frames < 2:
        raise UserError(
            f"backbone.patch_time = {extent} makes a clip one time patch, but an action needs two; "
            "probe a run with shorter patches or longer clips"
        )
    if len(held_out) < LEAST:
        raise UserError(
            f"data.held_out leaves {len(held_out)} videos, but control needs at least {LEAST}; "
            "probe a run that holds out more"
        )
    index = held_out[Streams(0).permutation("probe/held_out", 0, len(held_out))[:samples]]
    state = position[index].reshape(len(index), frames, extent, -1).mean(2)
    action = np.diff(state, axis=1)
    return Scene(index, *(target.reshape(-1, state.shape[-1]) for target in (state[:, :-1], action)))


def _positions(dataset: Dataset) -> np.ndarray:
    """Return the positions (videos, frames, 2) of a data set.

    If it is the video of a joint data set, they are those of the joint one.
    """
    positions = Capabilities(dataset).position
    if positions is None or kind_of(dataset.shape) != "video":
        raise UserError(
            f"this data set ({dataset.modality}) records no positions in a video; "
            "probe a run on moving_digits, or on bounce with its video"
        )
    return positions


def measured(
    sources: Sequence[Tokens], scene: Scene, dataset: Dataset, device: torch.device, what: str = "videos"
) -> list[Row]:
    """Decode state and action from all features of the sources, in one pass over the videos."""
    features = _features(sources, scene, dataset, device, what)
    results = {}
    for name, target in (("state", scene.state), ("action", scene.action)):
        with measuring(name):
            results[name] = decoded(features, target, scene.videos)
    return [Row(name, results["state"][name], results["action"][name]) for name in features]


def of_layers(model: Backbone, time: float, device: torch.device, null: Text | None = None) -> Tokens:
    """Return a function to the features (B, F, D) of every layer at a time of the path (0 is clean)."""
    inner = layers(model, time, device, null)
    return lambda index, x0: {n: per_frame(h, model.config) for n, h in inner(index, x0).items()}


def of_pixels(config: BackboneConfig, time: float) -> Tokens:
    """Return a function to the noised pixels of each time patch, (B, F, C patch_time H W)."""

    def tokens(index: np.ndarray, x0: Tensor) -> dict[str, Tensor]:
        times = Times.per_sample(torch.full((len(index),), time, device=x0.device))
        video = config.split_parts(noised(index, x0, times, config))[0]
        return {"pixels": video.unflatten(2, (config.grid[0], -1)).transpose(1, 2).flatten(2)}

    return tokens


def of_initial(
    config: BackboneConfig, seed: int, time: float, device: torch.device, null: Text | None = None
) -> Tokens:
    """Return a function to the features of a network at its initial weights.

    There every layer equals the embedded tokens, so the last one stands for all.
    """
    model = network_of(config).requires_grad_(False).eval()
    initialize(model, Streams(seed))
    inner = of_layers(model.to(device), time, device, null)
    return lambda index, x0: {"untrained": list(inner(index, x0).values())[-1]}


def per_frame(hidden_BTD: Tensor, config: BackboneConfig) -> Tensor:
    """Average the tokens of each time patch of a video, (B, F, D); later tokens, of its sound, are
    ignored.
    """
    video = hidden_BTD[:, : math.prod(config.grid)]
    return video.unflatten(1, (config.grid[0], -1)).mean(2)


def _features(
    sources: Sequence[Tokens], scene: Scene, dataset: Dataset, device: torch.device, what: str
) -> Mapping[str, np.ndarray]:
    """Return features (N (F - 1), D) by name, without the last time patch, which has no action."""
    parts: dict[str, list[np.ndarray]] = {}
    for start in tracked(range(0, len(scene.index), BATCH), what):
        index = scene.index[start : start + BATCH]
        x0 = from_pixels(images(dataset, index)[0]).to(device)
        for source in sources:
            for name, features_BFD in source(index, x0).items():
                rows = features_BFD[:, :-1].flatten(0, 1)
                parts.setdefault(name, []).append(rows.float().cpu().numpy())
    return {name: np.concatenate(rows) for name, rows in parts.items()}
