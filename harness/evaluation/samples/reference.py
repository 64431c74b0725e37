"""References of `flowrace eval`: raw samples, saved statistics, or both (ADM's batches)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.config.data_spec import DataSpec
from harness.errors import UserError
from harness.evaluation.reference import described, difference
from harness.evaluation.samples.sources import Source, open_source, settled
from metrics.files.reference_statistics import Reference, is_adm, read_adm, read_statistics


class Real(NamedTuple):
    """The real side of a comparison."""

    source: Source | None = None
    """The raw samples."""
    statistics: Reference | None = None
    """Statistics of samples that the source lacks, or of more samples than it has."""


def open_reference(where: str, extractor: str, modality: str, data: DataSpec, frames: int | None) -> Real:
    """Open a reference for an extractor of that name; the other arguments are those of `open_source`.

    Raises `UserError` or `MetricError` for a reference that cannot be read. Raises `UserError` for ADM's
    statistics without images if the extractor is not Inception.
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
    """Return the parts of the reference that a network can use, for clips of `frames` frames.

    ADM's mu and sigma are those of the original Inception, so other networks can only use the images. Raises
    `UserError` for statistics of another network or clip length, and if no part can be used.
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


def _check_same(meta: dict[str, str], expected: dict[str, str], where: str) -> None:
    found = difference(meta, expected)
    if found is None:
        return
    if found.key == "frames":
        raise UserError(
            f"{where} holds statistics of clips of {found.found} frames, but the samples have "
            f"{found.expected}; use --frames {found.found}"
        )
    raise UserError(
        f"{where} holds statistics of another network: {found.key} is {found.found}, not {found.expected}"
    )


def _only_inception(where: str, extractor: str, why: object) -> UserError:
    return UserError(f"{where} has statistics of the original Inception only, not of '{extractor}': {why}")
