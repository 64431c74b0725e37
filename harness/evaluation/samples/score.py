"""Evaluation of given samples against a reference (`flowrace eval SAMPLES`), with interval, n and
protocol.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.config.data_spec import DataSpec
from harness.errors import UserError
from harness.evaluation.kept_features import ignore
from harness.evaluation.noise_floor import noise_floor
from harness.evaluation.reference import described
from harness.evaluation.samples.cached_features import SEED, SourceFeatures, source_features
from harness.evaluation.samples.class_order import order_warning, positions, reordered
from harness.evaluation.samples.reference import Real, admitted, open_reference
from harness.evaluation.samples.sources import Source, open_source, settled
from harness.files.cache import cache_dir
from harness.files.progress import announced
from metrics.distances.frechet import Moments, moments_of
from metrics.extractors.local import TrainingImages
from metrics.extractors.registry import extractor_modality, load_extractor
from metrics.files.reference_statistics import Reference, is_adm, save_statistics
from metrics.suite import (
    Side,
    called,
    check_classes,
    check_reserved,
    chosen,
    measure,
    metric_of,
    metrics_of,
)
from metrics.value import MetricError, Value

OF_REFERENCE = ("n_real", "real")
HASHED = ("weights_sha256", "dim", "preprocessing", "n_fake", "fake_shape", *OF_REFERENCE)
"""Protocol fields that determine whether two values are comparable."""
OF_SOME = {"is": ("logits",), "is_shuffled": ("logits",), "accuracy": ("logits", "classes")}
"""Metric -> further such fields, used if the protocol has them."""
STATED = {"fd_infinity": {"real": "moments"}}
"""Metric -> settings that distinguish it from an older estimator.

Races have always used this estimator, so their protocols omit them.
"""


class Scored(NamedTuple):
    """One reported value."""

    mean: float
    low: float | None
    high: float | None
    n: int
    protocol: str
    """12 hex digits over the conditions under which two values are comparable."""
    settings: dict[str, Any]
    noise_floor: dict[str, float] | None
    """The noise floor of a Frechet distance; None without raw real samples."""

    # Any: JSON
    def row(self) -> dict[str, Any]:
        """Return the value as JSON."""
        row = self._asdict()
        return row | {"floor": row.pop("noise_floor")}


@dataclass(frozen=True)
class Scores:
    """All values of one call."""

    metrics: dict[str, Scored]
    protocol: dict[str, Any]
    warnings: list[str]
    # Any: JSON.
    found: dict[str, Any] = field(default_factory=dict)
    """What was found on each side: samples, classes, label source, files left out."""


@dataclass(frozen=True)
class Request:
    """The samples, reference, metrics and network of one call."""

    samples: str
    against: str | None
    metrics: tuple[str, ...] = ("fd",)
    extractor: str = "inception"
    weights: Path | None = None
    download: bool = False
    """Missing weights may be downloaded."""
    data: DataSpec = field(default_factory=lambda: DataSpec())
    frames: int | None = None
    batch: int = 64
    device: str = "cpu"
    note: Callable[[str], None] = ignore
    """Shows what was found before the networks run."""


class _Samples(NamedTuple):
    """Samples, reference and network, all opened and checked."""

    source: Source
    real: Real
    # Any: an extractor over images, clips or recordings, which share no base class
    extract: Any
    order: tuple[int, ...]
    """Positions of the samples' classes among those of the reference."""


def score(request: Request) -> Scores:
    """Measure samples. Raises `UserError` if they cannot be measured."""
    try:
        return _score(request)
    except MetricError as error:
        raise UserError(str(error)) from error


def save_reference(request: Request, file: Path) -> int:
    """Write the statistics of `request.samples` to a reference file and return the number of samples."""
    try:
        source = open_source(
            request.samples, extractor_modality(request.extractor), request.data, request.frames
        )
        extract = _extractor(request, source)
        source = settled(source, extract)
        found = source_features(
            source, extract, {"features", "spatial"}, rows=False, subset=0, batch=request.batch
        )
        _check_count(found.n, source.where)
        meta = {**described(extract, source.frames), "data": source.fingerprint}
        features, spatial = (_moments(found.all.part(name)) for name in ("features", "spatial"))
        if features is None:
            raise UserError(f"{source.where}: extractor '{extract.name}' gave no features")
        save_statistics(file, features, spatial, meta)
    except MetricError as error:
        raise UserError(str(error)) from error
    return found.n


def _score(request: Request) -> Scores:
    values = chosen(request.metrics)
    opened = _opened(request, values)
    source, real, extract, order = opened
    fake = _fake_features(request, opened, values)
    raw = _real_features(request, opened, values, fake.n)
    side = fake.all.side()
    found = measure(values, _real_side(real, raw), side._replace(labels=reordered(side.labels, order)))
    # A file of statistics has no raw samples to measure a noise floor on.
    floored = raw if real.statistics is None else None
    protocol = _protocol(opened, floored, fake)
    scored = {
        called(value, extract.name): _scored(value, number, protocol, floored, fake.n)
        for value, number in found.items()
    }
    warnings = _warnings(protocol, values, real, extract)
    if "accuracy" in values and (warning := order_warning(source, real.source)):
        warnings.append(warning)
    sides = {"samples": source.found, "against": real.source.found if real.source else None}
    return Scores(scored, protocol, warnings, {side: found.row() for side, found in sides.items() if found})


def _opened(request: Request, values: list[str]) -> _Samples:
    """Open samples, reference and network, and check that they suit the metrics and each other."""
    modality = extractor_modality(request.extractor)
    for value in values:
        check_classes(value, request.extractor)
    if any(metric.real for metric in metrics_of(values)) and not request.against:
        raise UserError(f"{request.samples}: {', '.join(values)} needs a reference; name one with --against")
    with announced(request.note, f"opening {request.samples}"):
        source = open_source(request.samples, modality, request.data, request.frames)
    real = Real()
    if request.against:
        with announced(request.note, f"opening {request.against}"):
            real = open_reference(request.against, request.extractor, modality, request.data, request.frames)
    for side in (source, real.source):
        if side is not None and side.found is not None:
            request.note(f"{side.where}: {side.found.line()}")
    _check_labelled(request, values, source, real.source)
    order = positions(source, real.source) if "accuracy" in values else ()
    extract = _extractor(request, real.source)
    check_reserved(request.metrics, extract.name)
    source = settled(source, extract)
    return _Samples(source, admitted(real, extract, source.frames, str(request.against)), extract, order)


def _check_labelled(request: Request, values: list[str], source: Source, real: Source | None) -> None:
    """Raise `UserError` for labels that cannot be used, if a metric or the network needs them."""
    needed = {"accuracy": source} if "accuracy" in values else {}
    needed |= {"extractor 'local'": real} if request.extractor == "local" and real else {}
    for what, side in needed.items():
        if side.found is not None and side.found.problem:
            raise UserError(
                f"{what} needs labels, but {side.found.problem}; choose others with data.label_key"
            )


def _extractor(request: Request, trained_on: Source | None) -> Any:
    # Any: keyword arguments of load_extractor
    given: dict[str, Any] = {}
    if request.extractor == "local":
        if trained_on is None or trained_on.labelled is None:
            raise UserError(
                "extractor 'local' is trained on the raw images of a reference; name one with --against"
            )
        labelled, source = trained_on.labelled, trained_on
        shape = source.shape or ()
        given = {
            "images": TrainingImages(f"source {source.fingerprint}", shape, labelled.read),
            "classes": labelled.classes,
        }
    return load_extractor(
        request.extractor,
        weights=request.weights,
        download=request.download,
        cache=cache_dir("extractors"),
        device=request.device,
        **given,
    )


def _fake_features(request: Request, opened: _Samples, values: list[str]) -> SourceFeatures:
    source, extract = opened.source, opened.extract
    needs = metrics_of(values)
    wanted = {_output(metric.fake) for metric in needs}
    missing = wanted - {"features", *getattr(extract, "beside", {})}
    if missing:
        raise UserError(f"extractor '{extract.name}' has no {missing.pop()}, which {', '.join(values)} needs")
    labels = {"labels"} if "accuracy" in values else set()
    rows = any(metric.fake == "rows" for metric in needs)
    found = source_features(source, extract, wanted | labels, rows=rows, subset=0, batch=request.batch)
    _check_count(found.n, source.where)
    return found


def _real_features(
    request: Request, opened: _Samples, values: list[str], n_fake: int
) -> SourceFeatures | None:
    """Return the features of the raw real samples, or None if statistics suffice."""
    real = opened.real
    wanted = {metric.real for metric in metrics_of(values)} - {""}
    if real.statistics is not None:
        if "spatial" in wanted and real.statistics.spatial is None:
            raise UserError(f"{request.against} has no mu_s and sigma_s, which sfid needs")
        wanted -= {"features", "spatial"}
    if not wanted:
        return None
    if real.source is None:
        raise UserError(
            f"{request.against} has statistics but no raw samples, which {', '.join(values)} needs; use "
            "--metrics fd"
        )
    outputs = {_output(part) for part in wanted}
    size = min(n_fake, (real.source.count or 0) // 2)
    found = source_features(
        real.source, opened.extract, outputs, rows="rows" in wanted, subset=size, batch=request.batch
    )
    _check_count(found.n, real.source.where)
    return found


def _output(part: str) -> str:
    """Return the network output that a part of a `Side` holds."""
    return "features" if part == "rows" else part


def _real_side(real: Real, raw: SourceFeatures | None) -> Side | None:
    """Return the reference in the form that metrics take; saved statistics come before those of raw
    samples.
    """
    if real.statistics is None:
        return raw.all.side() if raw else None
    rows = raw.all.rows.get("features") if raw else None
    return Side(real.statistics.features, rows, real.statistics.spatial)


def _scored(
    value: str, found: Value, protocol: dict[str, Any], raw: SourceFeatures | None, n_fake: int
) -> Scored:
    metric = metric_of(value)
    settings = metric.settings | STATED.get(value, {})
    hashed = {key: protocol[key] for key in HASHED if metric.real or key not in OF_REFERENCE}
    hashed |= {key: protocol[key] for key in OF_SOME.get(value, ()) if protocol[key] is not None}
    text = json.dumps({"value": value, "settings": settings, **hashed}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    floor = None
    if raw and metric.noise_floor and (size := min(n_fake, raw.n // 2)) >= 2:
        subset, rest = raw.halves(metric.real, size)
        floor = noise_floor(rest, subset)
    return Scored(found.mean, found.low, found.high, found.n, digest, settings, floor)


def _protocol(opened: _Samples, raw_real: SourceFeatures | None, fake: SourceFeatures) -> dict[str, Any]:
    source, real, extract, order = opened
    statistics, raw = real.statistics, real.source
    n_real = statistics.n if statistics else raw_real.n if raw_real else None
    data = statistics.meta.get("data") if statistics else raw.fingerprint if raw else None
    return {
        **described(extract, None),
        "dim": extract.dim,
        "logits": getattr(extract, "counted", None),
        "classes": list(order) or None,
        "frames": source.frames,
        "n_real": n_real,
        "n_fake": fake.n,
        "real": data or (statistics and _digest(statistics)),
        "real_shape": raw.shape if raw else None,
        "fake_shape": source.shape,
        "floor_seed": SEED,
    }


def _warnings(protocol: dict[str, Any], values: list[str], real: Real, extract: Any) -> list[str]:
    found = []
    n_real, n_fake, dim = protocol["n_real"], protocol["n_fake"], protocol["dim"]
    if n_real is not None and n_real != n_fake:
        found.append(
            f"{n_fake} samples are compared with {n_real} real ones: compare only values with the same two "
            "numbers"
        )
    least = min(n_fake, n_real or n_fake)
    if least < dim and {"fd", "fd_infinity"} & set(values):
        found.append(
            f"{least} samples do not span {dim} features: a Frechet distance is strongly biased upwards"
        )
    shapes = protocol["real_shape"], protocol["fake_shape"]
    if None not in shapes and shapes[0][1:] != shapes[1][1:]:
        sizes = ["x".join(map(str, shape[:0:-1])) for shape in shapes]
        found.append(
            f"the samples are {sizes[1]} pixels, the reference {sizes[0]}: this alone makes their sharpness "
            "differ"
        )
    if n_real is not None and real.source and is_adm(Path(real.source.where)) and real.statistics is None:
        found.append(
            f"mu and sigma of the reference are Inception's: '{extract.name}' used its images, arr_0, instead"
        )
    return found


def _check_count(n: int, where: str) -> None:
    if n < 2:
        raise UserError(f"{where} has too few samples: {n}; at least 2 are needed")


def _moments(part: np.ndarray | Moments | None) -> Moments | None:
    return moments_of(part) if isinstance(part, np.ndarray) else part


def _digest(statistics: Reference) -> str:
    content = statistics.features.mean.tobytes() + statistics.features.covariance.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
