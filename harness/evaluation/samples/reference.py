"""References: raw samples, saved statistics, or both (ADM's batches)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.config.spec import DataSpec
from harness.errors import UserError
from harness.evaluation.samples.sources import Source, open_source, settled
from metrics.files.reference_statistics import Reference, is_adm, read_adm, read_statistics


class Real(NamedTuple):
    source: Source | None = None
    """The raw samples."""
    statistics: Reference | None = None
    """Of samples that the source does not have, or of more than it has."""


def open_reference(where: str, extractor: str, modality: str, data: DataSpec, frames: int | None) -> Real:
    """Open a reference for an extractor of that name; the other arguments are those of `open_source`.

    Raises `UserError` and `MetricError` for one that cannot be read, and for ADM's statistics without images
    with another network.
    """
    path = Path(where).expanduser()
    if path.suffix == ".safetensors":
        return Real(statistics=read_statistics(path))
    if not is_adm(path):
        return Real(open_source(where, modality, data, frames))
    statistics = read_adm(path) if extractor.partition(":")[0] == "inception" else None
    try:
        return Real(open_source(where, modality, data, frames), statistics)
    except UserError as error:
        if statistics is None:
            raise _only_inception(where, extractor, error) from error
        return Real(statistics=statistics)


# Any: an extractor over images, clips or recordings, which share no base class
def admitted(real: Real, extract: Any, frames: int | None, where: str) -> Real:
    """Return what a network can use of the reference, against clips of `frames` frames.

    ADM's mu and sigma are the original Inception's; other networks can only use the images. Raises
    `UserError` for statistics of another network or of other clips, and if nothing can be used.
    """
    source = real.source and settled(real.source, extract)
    if real.statistics is None:
        return Real(source)
    if meta := real.statistics.meta:
        _check_same(meta, described(extract, frames), where)
    elif extract.name != "inception":
        if source is None:
            raise _only_inception(where, extract.name, "it holds no images")
        return Real(source)
    return Real(source, real.statistics)


def described(extract: Any, frames: int | None) -> dict[str, str]:
    """Return what statistics must share with the samples compared to them: the network, and the length of
    clips.
    """
    network = {
        "extractor": extract.name,
        "weights_sha256": extract.sha256,
        "preprocessing": extract.preprocessing,
    }
    return network | ({"frames": str(frames)} if frames else {})


def _check_same(meta: dict[str, str], own: dict[str, str], where: str) -> None:
    for key, value in own.items():
        found = meta.get(key, "unknown")
        if found == value:
            continue
        if key == "frames":
            raise UserError(
                f"{where} holds statistics of clips of another length: frames {found}, here {value}; see --frames"
            )
        raise UserError(f"{where} holds statistics of another network: {key} {found}, here {value}")


def _only_inception(where: str, extractor: str, why: object) -> UserError:
    return UserError(f"{where} has statistics of the original Inception only, not of '{extractor}': {why}")
