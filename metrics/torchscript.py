"""Any network in a TorchScript file: the form in which many published feature extractors come.

The name says it all, as in `torchscript:nets/mobilenetv2.ts?size=96&dim=1280&sha256=4ce24284`. Options:

    size     the side in pixels to which images are resized (bilinear, with antialias); none: their own size
    range    of the pixels: `signed` [-1, 1] (the default), `unit` [0, 1], `byte` 0..255
    dim      how many of the outputs are features, from the first; none: all
    sha256   what the file's checksum begins with

A network that returns several tensors gives the first. TorchScript is code: open files that you trust.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.extractor import Extractor, exact_float32
from metrics.files import file_sha256
from metrics.value import MetricError

RANGES = {"signed": (127.5, -1.0), "unit": (255.0, 0.0), "byte": (1.0, 0.0)}
"""x / divisor + offset"""
PROBE = 64
"""Side of the blank image that tells the number of features where no size is given."""


class Options(NamedTuple):
    size: int | None = None
    range: str = "signed"
    dim: int | None = None
    sha256: str = ""


def load(where: str | Path | None, *, device: torch.device, **_: Any) -> Extractor:
    """The network of `<file>` or `<file>?options`, as above."""
    if not where:
        raise MetricError("extractor 'torchscript' needs a file, as torchscript:nets/mobilenetv2.ts?size=96")
    path, _, query = str(where).partition("?")
    options, file = parse_options(query), Path(path)
    sha256 = file_sha256(file, expected=options.sha256)
    network = _open(file, device)

    def features(images: Tensor) -> Tensor:
        found = network(_pixels(images, options))
        return (found[0] if isinstance(found, tuple | list) else found)[:, : options.dim]

    size = f"@{options.size}" if options.size else ""
    return Extractor(
        name=f"torchscript:{file.stem}{size}",
        dim=_width(features, file, options, device),
        sha256=sha256,
        preprocessing=f"{_resize_words(options)}, {options.range} range",
        channels=3,
        device=device,
        network=features,
    )


def parse_options(query: str) -> Options:
    """`size=96&dim=1280` as `Options`; raises `MetricError` for an unknown option or value."""
    given: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in Options._fields or key in given:
            raise MetricError(
                f"torchscript option '{key}' is unknown or doubled (known: {', '.join(Options._fields)})"
            )
        if key in ("size", "dim") and not (value.isdecimal() and int(value) > 0):
            raise MetricError(f"torchscript option {key}={value}: expected a whole number above 0")
        if key == "range" and value not in RANGES:
            raise MetricError(f"torchscript option range={value}: expected one of {', '.join(RANGES)}")
        given[key] = int(value) if key in ("size", "dim") else value
    return Options(**given)


def _open(file: Path, device: torch.device) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the format stays in use whatever writes it next
            return torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(f"{file} is not a TorchScript file: {first}") from error


def _pixels(images: Tensor, options: Options) -> Tensor:
    divisor, offset = RANGES[options.range]
    x = images.float()
    if options.size and x.shape[2:] != (options.size, options.size):
        x = F.interpolate(
            x, (options.size, options.size), mode="bilinear", antialias=True, align_corners=False
        )
    return x / divisor + offset


def _resize_words(options: Options) -> str:
    return f"{options.size}x{options.size} bilinear with antialias" if options.size else "own size"


@torch.no_grad()
def _width(features: Any, file: Path, options: Options, device: torch.device) -> int:
    """The number of features, found with one blank image."""
    side = options.size or PROBE
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    try:
        with exact_float32(device):
            found = features(blank)
    except (RuntimeError, TypeError, IndexError) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise MetricError(
            f"{file} does not take images of 3x{side}x{side}: {last}; try another size="
        ) from error
    if found.ndim != 2:
        raise MetricError(f"{file} gives {tuple(found.shape)} for one image; expected features (1, d)")
    if options.dim and found.shape[1] < options.dim:
        raise MetricError(f"{file} gives {found.shape[1]} features; the name asks for dim={options.dim}")
    return found.shape[1]
