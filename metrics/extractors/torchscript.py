"""Networks in TorchScript files, the format of many published feature extractors.

The name holds all options, for example `torchscript:nets/mobilenetv2.ts?size=96&dim=1280&sha256=4ce24284`:

    size     side in pixels to which images are resized (bilinear, with antialias); default: no resizing
    range    range of pixel values: `signed` [-1, 1] (default), `unit` [0, 1], `byte` 0..255
    dim      number of outputs used as features, from the first; default: all
    logits   number of outputs used as class logits, from the last; default: none
    sha256   first digits of the file's checksum

If a network returns several tensors, the first holds the features, and a second one (B, classes) the logits.
TorchScript is code: only open files that you trust.
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
"""Divisor and offset of each range: x / divisor + offset."""
PROBE = 64
"""Side of the blank image with which the number of features is determined if no size is given."""
MOST = {"size": 2048, "dim": 2**20, "logits": 2**20}
"""Options whose values are positive integers, and their largest values."""
DIGITS = 12
Outputs = Callable[[Tensor], dict[str, Tensor]]
"""A function from images uint8 (B, 3, H, W) to outputs by name."""


class Options(NamedTuple):
    """The options of a name."""

    size: int | None = None
    range: str = "signed"
    dim: int | None = None
    logits: int | None = None
    sha256: str = ""


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> Extractor:
    """Load the network of `<file>` or `<file>?<options>`; see the module's docstring."""
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
    """Return the options of a query such as `size=96&dim=1280`.

    Raises `MetricError` for an unknown option or value.
    """
    given: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in Options._fields or key in given:
            raise MetricError(
                f"torchscript option '{key}' is unknown or repeated (known: {', '.join(Options._fields)})"
            )
        if key in MOST and not (value.isdecimal() and len(value) < DIGITS and 0 < int(value) <= MOST[key]):
            raise MetricError(
                f"torchscript option {key}={value[:DIGITS]}: expected a whole number from 1 to {MOST[key]:,}"
            )
        if key == "range" and value not in RANGES:
            raise MetricError(f"torchscript option range={value}: expected one of {', '.join(RANGES)}")
        given[key] = int(value) if key in MOST else value
    return Options(**given)


def open_script(file: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Load a TorchScript file in evaluation mode; raises `MetricError` for another kind of file."""
    try:
        with warnings.catch_warnings():
            # torch announces the end of writing TorchScript; published files remain in use.
            warnings.simplefilter("ignore", FutureWarning)
            return torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(f"{file} is not a TorchScript file: {first}") from error


def _outputs(network: torch.jit.ScriptModule, options: Options, images: Tensor) -> dict[str, Tensor]:
    returned = network(_pixels(images, options))
    first, *rest = returned if isinstance(returned, tuple | list) else (returned,)
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
    """Return the width of each output, measured with one blank image."""
    side = options.size or PROBE
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    try:
        with exact_float32(device):
            named = outputs(blank)
    except (RuntimeError, TypeError, IndexError) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise MetricError(
            f"{file} does not take images of 3x{side}x{side}: {last}; try another size="
        ) from error
    shape = tuple(named["features"].shape)
    if len(shape) != 2:
        raise MetricError(f"{file} returns {shape} for one image; expected features (1, d)")
    widths = {name: x.shape[1] for name, x in named.items()}
    for option, name in (("dim", "features"), ("logits", "logits")):
        requested = getattr(options, option)
        if requested and widths[name] < requested:
            raise MetricError(
                f"{file} returns {widths[name]} outputs, fewer than {option}={requested} in the name; use "
                f"{widths[name]} or less"
            )
    return widths
