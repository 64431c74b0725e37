"""The one door to extractors: a name, and where its weights come from."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

import torch

from metrics.extractor import Extractor
from metrics.value import MetricError

__all__ = ["Extractor", "extractor_names", "load_extractor"]

_ROOMS = {  # family -> module; each has `load`
    "inception": "metrics.inception",
    "local": "metrics.local",
    "torchscript": "metrics.torchscript",
}
_FORMS = {"torchscript": "torchscript:<file>"}


def extractor_names() -> list[str]:
    """The names that `load_extractor` takes, with a placeholder where a name goes on."""
    return [_FORMS.get(family, family) for family in _ROOMS]


def load_extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    images: Any = None,
    labels: Any = None,
    classes: int | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> Extractor:
    """The extractor of a name. Nothing is downloaded.

    `inception`            torch-fidelity's Inception, the network of FID; weights from a file
    `local`                a small classifier trained here on `images` (n, C, H, W) uint8 and `labels` (n,) in 0 .. classes - 1,
                           kept in the folder `cache` where one is given
    `torchscript:<file>`   a TorchScript file, with options as in `net.ts?size=96&dim=1280` (see metrics/torchscript.py)

    `weights` names a file where the name does not. Raises `MetricError` for an unknown name, and for weights, images or
    labels that are missing or broken.
    """
    family, _, rest = name.partition(":")
    if family not in _ROOMS or (rest and family not in _FORMS):
        near = difflib.get_close_matches(name, _ROOMS, n=1, cutoff=0.5)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        raise MetricError(f"unknown extractor '{name}' (known: {', '.join(extractor_names())}){hint}")
    given = {"images": images, "labels": labels, "classes": classes, "cache": cache}
    where = rest or weights
    return importlib.import_module(_ROOMS[family]).load(where, device=torch.device(device), **given)
