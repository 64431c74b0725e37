"""What samples are measured against: raw samples, statistics that were saved of some, or both (ADM's batches)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.config.spec import DataSpec
from harness.errors import UserError
from harness.scoring.sources import Source, open_source, settled
from metrics.files.reference_statistics import Reference, is_adm, read_adm, read_statistics


class Real(NamedTuple):
    source: Source | None = None
    """The raw samples."""
    statistics: Reference | None = None
    """Of samples that are not there, or of more than are there."""


def open_reference(where: str, extractor: str, modality: str, data: DataSpec, frames: int | None) -> Real:
    """The reference of that name for an extractor of that name; the rest as `open_source` takes it.

    Raises `UserError` and `MetricError` for one that cannot be read, and for ADM's statistics alone with another network.
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
            raise _inceptions(where, extractor, error) from error
        return Real(statistics=statistics)


def admitted(real: Real, extract: Any, frames: int | None, where: str) -> Real:
    """The reference as a network can use it, against clips of so many frames: ADM's mu and sigma serve the original Inception
    alone, whose they are; of the others their images remain.

    Raises `UserError` for statistics of another network or of other clips, and where nothing remains.
    """
    source = real.source and settled(real.source, extract)
    if real.statistics is None:
        return Real(source)
    if meta := real.statistics.meta:
        _check_same(meta, described(extract, frames), where)
    elif extract.name != "inception":
        if source is None:
            raise _inceptions(where, extract.name, "it holds no images")
        return Real(source)
    return Real(source, real.statistics)


def described(extract: Any, frames: int | None) -> dict[str, str]:
    """What statistics must share with the samples that are held against them: the network, and the length of clips."""
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


def _inceptions(where: str, extractor: str, why: object) -> UserError:
    return UserError(f"{where} has statistics of the original Inception alone, not of '{extractor}': {why}")
