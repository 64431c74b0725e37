"""Any network in a TorchScript file: the form in which many published feature extractors come.

The name says it all, as in `torchscript:nets/mobilenetv2.ts?size=96&dim=1280&sha256=4ce24284`. Options:

    size     the side in pixels to which images are resized (bilinear, with antialias); none: their own size
    range    of the pixels: `signed` [-1, 1] (the default), `unit` [0, 1], `byte` 0..255
    dim      how many of the outputs are features, from the first; none: all
    logits   how many of the outputs are logits of classes, from the last; none: no output is
    sha256   what the file's checksum begins with

A network that returns several tensors gives the first; a second one (B, classes) is taken for logits.
TorchScript is code: open files that you trust.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.extractors.base import Extractor, exact_float32
from metrics.files.hashing import file_sha256
from metrics.value import MetricError

RANGES = {"signed": (127.5, -1.0), "unit": (255.0, 0.0), "byte": (1.0, 0.0)}
"""x / divisor + offset"""
PROBE = 64
"""Side of the blank image that tells the number of features where no size is given."""
COUNTS = ("size", "dim", "logits")
Outputs = Callable[[Tensor], dict[str, Tensor]]


class Options(NamedTuple):
    size: int | None = None
    range: str = "signed"
    dim: int | None = None
    logits: int | None = None
    sha256: str = ""


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> Extractor:
    """Load the network of `<file>` or `<file>?options`, as above."""
    if not where:
        raise MetricError(
            "extractor 'torchscript' needs a file, for example torchscript:nets/mobilenetv2.ts?size=96"
        )
    path, _mark, query = str(where).partition("?")
    options, file = parse_options(query), Path(path)
    found = file_sha256(file, expected=options.sha256 or sha256)
    network = open_script(file, device)
    outputs = partial(_outputs, network, options)
    widths = _widths(outputs, file, options, device)
    size = f"@{options.size}" if options.size else ""
    return Extractor(
        name=f"torchscript:{file.stem}{size}",
        dim=widths.pop("features"),
        sha256=found,
        preprocessing=f"{_resize_words(options)}, {options.range} range",
        channels=3,
        device=device,
        network=outputs,
        beside=widths,
        counted=options.logits,
    )


def parse_options(query: str) -> Options:
    """`size=96&dim=1280` as `Options`; raises `MetricError` for an unknown option or value."""
    given: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in Options._fields or key in given:
            raise MetricError(
                f"torchscript option '{key}' is unknown or doubled (known: {', '.join(Options._fields)})"
            )
        if key in COUNTS and not (value.isdecimal() and int(value) > 0):
            raise MetricError(f"torchscript option {key}={value}: expected a whole number above 0")
        if key == "range" and value not in RANGES:
            raise MetricError(f"torchscript option range={value}: expected one of {', '.join(RANGES)}")
        given[key] = int(value) if key in COUNTS else value
    return Options(**given)


def open_script(file: Path, device: torch.device) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the format stays in use whatever writes it next
            return torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(f"{file} is not a TorchScript file: {first}") from error


def _outputs(network: torch.jit.ScriptModule, options: Options, images: Tensor) -> dict[str, Tensor]:
    given = network(_pixels(images, options))
    first, *rest = given if isinstance(given, tuple | list) else (given,)
    named = {"features": first[:, : options.dim]}
    if options.logits:
        named["logits"] = first[:, -options.logits :]
    elif rest and rest[0].ndim == 2:
        named["logits"] = rest[0]
    return named


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
def _widths(outputs: Outputs, file: Path, options: Options, device: torch.device) -> dict[str, int]:
    """The width of each output, found with one blank image."""
    side = options.size or PROBE
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    try:
        with exact_float32(device):
            found = outputs(blank)
    except (RuntimeError, TypeError, IndexError) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise MetricError(
            f"{file} does not take images of 3x{side}x{side}: {last}; try another size="
        ) from error
    shape = tuple(found["features"].shape)
    if len(shape) != 2:
        raise MetricError(f"{file} gives {shape} for one image; expected features (1, d)")
    widths = {name: x.shape[1] for name, x in found.items()}
    for option, name in (("dim", "features"), ("logits", "logits")):
        asked = getattr(options, option)
        if asked and widths[name] < asked:
            raise MetricError(f"{file} gives {widths[name]} features; the name asks for {option}={asked}")
    return widths
