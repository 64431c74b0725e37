"""CLAP over windows of 10 s (or 7 s) that begin at every second, as in fadtk.

`clap-laion-audio` and `clap-laion-music` are LAION's networks in transformers' layout: a folder with
config.json, preprocessor_config.json and model.safetensors, for example the hub's `laion/clap-htsat-unfused`
and `laion/larger_clap_music`. A window is rounded to 16-bit samples, then converted to log-mel bands, then to
512 features of length 1. The recorded checksum identifies the weights.

`clap-2023` is Microsoft's network, which transformers does not have: a TorchScript file of msclap's audio
encoder. It maps waveforms (B, 308,700) at 44.1 kHz (windows of 7 s) to features, or to a tuple whose first
item is the features.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.extractors.audio.base import AudioExtractor, split_options
from metrics.extractors.torchscript import open_script
from metrics.files.hashing import file_sha256
from metrics.files.media import package
from metrics.files.weights import pretrained
from metrics.value import MetricError


class Variant(NamedTuple):
    """A published network."""

    rate: int
    """Samples per second."""
    seconds: int
    """Length of a window."""
    source: str
    """Description of the file or folder that the user must provide."""


VARIANTS = {
    "clap-2023": Variant(44_100, 7, "a TorchScript file of the audio encoder of msclap, version 2023"),
    "clap-laion-audio": Variant(48_000, 10, "a folder with the files of laion/clap-htsat-unfused"),
    "clap-laion-music": Variant(48_000, 10, "a folder with the files of laion/larger_clap_music"),
}


def load(
    where: str | Path | None, family: str, *, device: torch.device, sha256: str = "", **_: Any
) -> AudioExtractor:
    """Load the variant `family` from a folder or file, or from `<folder>?dither=-60`."""
    path, options = split_options(where, None, "every")
    variant = VARIANTS[family]
    if not path:
        raise MetricError(
            f"extractor '{family}' needs {variant.source}; give its path as weights or as {family}:<path>"
        )
    file = Path(path) if family == "clap-2023" else Path(path, "model.safetensors")
    checksum = file_sha256(file, expected=sha256, missing=f"expected {variant.source}")
    make = _scripted if family == "clap-2023" else _transformers
    network, front = make(Path(path), variant, device)
    return AudioExtractor(
        name=family,
        dim=_width(network, Path(path), variant, device),
        sha256=checksum,
        front=front,
        rate=variant.rate,
        window=variant.seconds * variant.rate,
        hop=variant.rate,
        least=1,
        device=device,
        network=network,
        **options._asdict(),
    )


load_2023 = partial(load, family="clap-2023")
load_laion_audio = partial(load, family="clap-laion-audio")
load_laion_music = partial(load, family="clap-laion-music")


def _scripted(file: Path, _: Variant, device: torch.device) -> tuple[Any, str]:
    """Return the network of a TorchScript file and the description of its front end."""
    script = open_script(file, device)

    def network(waves: Tensor) -> Tensor:
        returned = script(waves)
        return returned[0] if isinstance(returned, tuple | list) else returned

    return network, "the front end in the file"


def _transformers(folder: Path, variant: Variant, device: torch.device) -> tuple[Any, str]:
    """Return transformers' ClapModel with the front end that its folder describes, and a description."""
    transformers = package("transformers", "audio")
    model = pretrained("ClapModel", folder, extra="audio", used="audio_")
    try:
        front = transformers.ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(
            f"{folder} has no valid preprocessor_config.json of CLAP's front end: {first}"
        ) from error
    _check_front(front, folder, variant)
    model.to(device).requires_grad_(False).eval()

    def network(waves: Tensor) -> Tensor:
        given = front(
            list(_sixteen_bits(waves)),
            sampling_rate=variant.rate,
            truncation="rand_trunc",
            return_tensors="pt",
        )
        return model.get_audio_features(given["input_features"].float().to(device)).pooler_output

    words = f"16 bits, {front.feature_size} log-mel bands {front.frequency_min:g}-{front.frequency_max:g} Hz"
    return network, f"{words}, features of length 1"


def _check_front(front: Any, folder: Path, variant: Variant) -> None:
    """Raise `MetricError` unless the front end takes exactly one window.

    Otherwise transformers would crop windows at random, or repeat them.
    """
    if (front.sampling_rate, front.nb_max_samples) != (variant.rate, variant.rate * variant.seconds):
        raise MetricError(
            f"{folder}/preprocessor_config.json takes {front.nb_max_samples} samples at "
            f"{front.sampling_rate} Hz; expected {variant.seconds} s at {variant.rate} Hz"
        )


def _sixteen_bits(waves: Tensor) -> np.ndarray:
    """Return waves quantised to 16 bits, truncated towards zero, as LAION's training data were."""
    return ((waves.clamp(-1, 1) * 32767).trunc() / 32767).cpu().numpy()


@torch.no_grad()
def _width(network: Any, path: Path, variant: Variant, device: torch.device) -> int:
    """Return the number of features, measured with one silent window."""
    try:
        features = network(torch.zeros(1, variant.seconds * variant.rate, device=device))
        shape = tuple(features.shape)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise MetricError(f"{path} does not take windows of {variant.seconds} s: {last}") from error
    if len(shape) != 2:
        raise MetricError(f"{path} returns {shape} for one window; expected features (1, d)")
    return shape[1]
