"""The check that an extractor's package and weights are on this machine, without loading the network."""

from __future__ import annotations

from pathlib import Path

from metrics.extractors.registry import check_installed, load_extractor
from metrics.files.hub import weights_file
from metrics.value import MetricError

TRAINED = ("local", "local-audio")
"""Families that are trained on the data set and have no weights file."""


def check_weights(name: str, *, weights: str | Path | None = None) -> None:
    """Raise `MetricError` if an extractor cannot be loaded because its package or its weights are missing.

    `name` and `weights` are those of `load_extractor`. Nothing is downloaded, and a file that exists is not
    read. The error states what to install, or where to download the weights.
    """
    check_installed(name)
    family, _, rest = name.partition(":")
    if family == "video":
        check_weights(rest, weights=weights)
    elif family not in TRAINED:
        _check_file(name, family, rest, weights)


def _check_file(name: str, family: str, rest: str, weights: str | Path | None) -> None:
    hub = _hub_copy(family, rest)
    if hub is not None:
        file = weights_file(f"extractor '{name}'", weights, *hub, download=False)
        if not file.is_file():
            raise MetricError(f"cannot read weights {file}: no such file")
        return
    given = str(rest or weights or "").partition("?")[0] or str(_inception_file(family) or "")
    if not given or not Path(given).exists():
        # Without its file the loader stops at once, with the advice for this network.
        load_extractor(name, weights=weights)


def _hub_copy(family: str, rest: str) -> tuple[str, str] | None:
    """Return repository and file of weights on the hub; None for a family whose weights are not there."""
    if family == "timm" or family.startswith("dinov2-"):
        from metrics.extractors.timm import dinov2_model, hub_copy

        return hub_copy(rest or dinov2_model(family.removeprefix("dinov2-")))
    if family in ("open_clip", "clip-vit-l-336"):
        from open_clip.constants import HF_SAFE_WEIGHTS_NAME

        from metrics.extractors.open_clip import CMMD
        from metrics.extractors.open_clip_recipe import find_recipe

        return find_recipe(rest or CMMD).repository, HF_SAFE_WEIGHTS_NAME
    return None


def _inception_file(family: str) -> Path | None:
    """Return torch hub's copy of Inception; None for another family."""
    if family.partition("-")[0] != "inception":
        return None
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    from metrics.extractors.inception import hub_file

    return hub_file(URL_INCEPTION_V3)
