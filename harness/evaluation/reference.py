"""References of a race: a file of statistics that takes the place of the training split (`eval.reference`).

The file is one of `flowrace eval --save-stats`, or an ADM reference batch, whose statistics are those of the
original Inception. Statistics serve the metrics that need moments of one network. They have no single
samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import UserError
from harness.evaluation.features import FeatureSet
from harness.evaluation.metric_names import MetricSpec
from metrics.files.hashing import sha256_of
from metrics.files.reference_statistics import Reference, is_adm, read_adm, read_statistics
from metrics.suite import metric_of
from metrics.value import MetricError


class Difference(NamedTuple):
    """The first property by which statistics and a network differ."""

    key: str
    found: str
    expected: str


# Any: an extractor over images, clips or recordings, which share no base class
def described(extract: Any, frames: int | None) -> dict[str, str]:
    """Return what samples must share with the statistics they are compared to: network and clip length."""
    network = {
        "extractor": extract.name,
        "weights_sha256": extract.sha256,
        "preprocessing": extract.preprocessing,
    }
    return network | ({"frames": str(frames)} if frames else {})


def difference(meta: Mapping[str, str], expected: Mapping[str, str]) -> Difference | None:
    """Return the first expected property that a file's statistics do not have; None if they have all."""
    for key, value in expected.items():
        if (found := meta.get(key, "unknown")) != value:
            return Difference(key, found, value)
    return None


@dataclass(frozen=True)
class RaceReference:
    """The statistics of a file, with the sha256 of the file."""

    file: Path
    sha256: str
    statistics: Reference

    # Any: JSON
    def about(self) -> dict[str, Any]:
        """Return what the record holds of the reference."""
        found = self.statistics
        return {
            "file": str(self.file),
            "sha256": self.sha256,
            "n": found.n,
            "format": "flowrace" if found.meta else "adm",
            "data": found.meta.get("data"),
        }

    def features(self) -> FeatureSet:
        """Return the statistics as a set of features."""
        found = {"features": self.statistics.features, "spatial": self.statistics.spatial}
        return FeatureSet.restored({name: m for name, m in found.items() if m is not None}, {})

    def check(self, metrics: Sequence[MetricSpec], extractors: Mapping[str, Any], frames: int | None) -> None:
        """Raise `UserError` that names the metrics that the statistics cannot serve, and those they can."""
        refused = {}
        for metric in metrics:
            if why := self._refusal(metric, extractors[metric.extractor], frames):
                refused[metric.name] = why
        if not refused:
            return
        served = [metric.name for metric in metrics if metric.name not in refused]
        reasons = ", ".join(f"'{name}' ({why})" for name, why in refused.items())
        raise UserError(
            f"eval.reference = {self.file} cannot serve {reasons}; it can serve "
            f"{', '.join(served) or 'none'} of eval.metrics; remove the others from eval.metrics, or clear "
            "eval.reference"
        )

    def _refusal(self, metric: MetricSpec, extract: Any, frames: int | None) -> str:
        """Return why the statistics cannot serve a metric; empty if they can."""
        part = metric_of(metric.value).real
        if not part:
            return ""
        if part == "rows":
            return "needs features of single samples"
        if not self.statistics.meta:
            if extract.name != "inception":
                return "the statistics are those of the original Inception"
        elif found := difference(self.statistics.meta, described(extract, frames)):
            return f"{found.key} of the statistics is {found.found}, not {found.expected}"
        return (
            "no statistics of spatial features" if part == "spatial" and not self.statistics.spatial else ""
        )


def race_reference(where: str) -> RaceReference | None:
    """Open the file of `eval.reference`; None if it is not set. Raises `UserError` if it cannot be used."""
    if not where:
        return None
    file = Path(where).expanduser()
    if not file.is_file():
        raise UserError(
            f"eval.reference = {where}: no such file; expected a file of flowrace eval --save-stats, or an "
            "ADM reference batch (.npz)"
        )
    if file.suffix != ".safetensors" and not is_adm(file):
        raise UserError(
            f"eval.reference = {where} holds no statistics; create them with flowrace eval SAMPLES "
            "--save-stats FILE.safetensors, or give an ADM reference batch (.npz with mu and sigma)"
        )
    try:
        statistics = read_adm(file) if file.suffix == ".npz" else read_statistics(file)
        return RaceReference(file, sha256_of(file), statistics)
    except MetricError as error:
        raise UserError(f"eval.reference = {where}: {error}") from error
