"""Samples against a reference: the values asked for, each with its interval, its number of samples and its protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.spec import DataSpec
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.scoring.features import SEED, Seen, extracted
from harness.scoring.labels import counted, placed, places
from harness.scoring.reference import Real, admitted, described, open_reference
from harness.scoring.sources import Source, open_source, settled
from metrics.distances.frechet import Moments, frechet_distance, moments_of
from metrics.extractors.registry import extractor_modality, load_extractor
from metrics.files.reference_statistics import Reference, is_adm, save_statistics
from metrics.suite import Side, called, check_classes, check_names, chosen, measure, metrics_of, settings
from metrics.value import MetricError, Value

FLOORED = {"fd": "features", "sfid": "spatial"}
"""Values with a floor, and the part that they are of."""

OF_REFERENCE = ("n_real", "real")
HASHED = ("weights_sha256", "dim", "preprocessing", "n_fake", "fake_shape", *OF_REFERENCE)
"""What of the protocol decides whether two values can be compared."""
OF_SOME = {"is": ("logits",), "is_shuffled": ("logits",), "accuracy": ("logits", "classes")}
"""What of the protocol decides that too for some values, where it tells it."""
STATED = {"fd_infinity": {"real": "moments"}}
"""Settings that tell a value from an older one of another estimator; a race always had these, and does not tell them."""


class Scored(NamedTuple):
    """One value as it is reported."""

    mean: float
    low: float | None
    high: float | None
    n: int
    protocol: str
    """12 hex digits over everything that makes two values comparable."""
    settings: dict[str, Any]
    floor: dict[str, float] | None
    """Of a Frechet distance: the same between real samples, and how many of them; None where there are no raw ones."""


@dataclass(frozen=True)
class Scores:
    metrics: dict[str, Scored]
    protocol: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    samples: str
    against: str | None
    metrics: tuple[str, ...] = ("fd",)
    extractor: str = "inception"
    weights: Path | None = None
    download: bool = False
    """Let the weights be fetched where they are not on this machine."""
    data: DataSpec = field(default_factory=DataSpec)
    frames: int | None = None
    batch: int = 64
    device: str = "cpu"


def score(asked: Request) -> Scores:
    """Measure samples. Raises `UserError`, in one sentence, for anything that cannot be measured."""
    try:
        return _score(asked)
    except MetricError as error:
        raise UserError(str(error)) from error


def save_reference(asked: Request, file: Path) -> int:
    """Write the statistics of `asked.samples` to a file that serves as a reference; how many samples they are of."""
    try:
        source = open_source(asked.samples, extractor_modality(asked.extractor), asked.data, asked.frames)
        extract = _extractor(asked, source)
        source = settled(source, extract)
        seen = extracted(source, extract, {"features", "spatial"}, rows=False, subset=0, batch=asked.batch)
        _check_count(seen.n, source.where)
        spatial = seen.part("spatial")
        meta = {**described(extract, source.frames), "data": source.fingerprint}
        spatial = None if spatial is None else _moments(spatial)
        save_statistics(file, _moments(seen.part("features")), spatial, meta)
    except MetricError as error:
        raise UserError(str(error)) from error
    return seen.n


def _score(asked: Request) -> Scores:
    values = chosen(asked.metrics)
    needs = metrics_of(values)
    modality = extractor_modality(asked.extractor)
    for value in values:
        check_classes(value, asked.extractor)
    if any(metric.real for metric in needs) and not asked.against:
        raise UserError(
            f"{asked.samples}: {', '.join(values)} compares with a reference; name one with --against"
        )
    source = open_source(asked.samples, modality, asked.data, asked.frames)
    real = Real()
    if asked.against:
        real = open_reference(asked.against, asked.extractor, modality, asked.data, asked.frames)
    order = places(source, real.source) if "accuracy" in values else ()
    extract = _extractor(asked, real.source)
    check_names(asked.metrics, extract.name)
    source = settled(source, extract)
    real = admitted(real, extract, source.frames, str(asked.against))

    fake_parts = {"features" if metric.fake == "rows" else metric.fake for metric in needs}
    labelled = {"labels"} if "accuracy" in values else set()
    missing = fake_parts - {"features", *getattr(extract, "beside", {})}
    if missing:
        raise UserError(f"extractor '{extract.name}' has no {missing.pop()}, which {', '.join(values)} needs")
    rows = any(metric.fake == "rows" for metric in needs)
    fake = extracted(source, extract, fake_parts | labelled, rows=rows, subset=0, batch=asked.batch)
    _check_count(fake.n, source.where)
    side, seen = _real_side(asked, real, extract, values, fake.n)
    found = measure(values, side, _side(fake, order))
    protocol = _protocol(extract, source, real, seen, fake, order)
    scored = {
        called(value, extract.name): _scored(value, number, protocol, seen, fake.n)
        for value, number in found.items()
    }
    warnings = _warnings(protocol, values, real, extract)
    if "accuracy" in values and (told := counted(source, real.source)):
        warnings.append(told)
    return Scores(scored, protocol, warnings)


def _extractor(asked: Request, trained_on: Source | None) -> Any:
    given: dict[str, Any] = {}
    if asked.extractor == "local":
        if trained_on is None or trained_on.labelled is None:
            raise UserError(
                "extractor 'local' is trained on a reference of raw images, which is not there; name one with --against"
            )
        pixels, labels, classes = trained_on.labelled()
        given = {"images": pixels, "labels": labels, "classes": classes}
    where = {
        "weights": asked.weights,
        "download": asked.download,
        "cache": cache_dir("extractors"),
        "device": asked.device,
    }
    return load_extractor(asked.extractor, **where, **given)


def _real_side(
    asked: Request, real: Real, extract: Any, values: Sequence[str], n_fake: int
) -> tuple[Side | None, Seen | None]:
    """The reference as the metrics want it, and what was seen of its raw samples."""
    wanted = {metric.real for metric in metrics_of(values)} - {""}
    if real.statistics is not None:
        if "spatial" in wanted and real.statistics.spatial is None:
            raise UserError(f"{asked.against} has no mu_s and sigma_s, which sfid needs")
        wanted -= {"features", "spatial"}
    if wanted and real.source is None:
        raise UserError(
            f"{asked.against} has statistics and no raw samples, which {', '.join(values)} needs: ask for fd alone"
        )
    seen = None
    if wanted and real.source is not None:
        parts = {"features" if name == "rows" else name for name in wanted}
        size = min(n_fake, (real.source.count or 0) // 2)
        seen = extracted(real.source, extract, parts, rows="rows" in wanted, subset=size, batch=asked.batch)
        _check_count(seen.n, real.source.where)
    if real.statistics is None:
        return (_side(seen) if seen else None), seen
    rows = seen.rows.get("features") if seen else None
    return Side(real.statistics.features, rows, real.statistics.spatial), None


def _side(seen: Seen, order: tuple[int, ...] = ()) -> Side:
    """What was seen, with labels as `places` has them."""
    rows = seen.rows
    return Side(
        seen.part("features"),
        rows.get("features"),
        seen.part("spatial"),
        rows.get("logits"),
        placed(rows.get("labels"), order),
    )


def _scored(value: str, found: Value, protocol: dict[str, Any], seen: Seen | None, n_fake: int) -> Scored:
    own = settings(value) | STATED.get(value, {})
    told = {key: protocol[key] for key in HASHED}
    told |= {key: protocol[key] for key in OF_SOME.get(value, ()) if protocol[key] is not None}
    if not metrics_of([value])[0].real:
        told = {key: text for key, text in told.items() if key not in OF_REFERENCE}
    text = json.dumps({"value": value, "settings": own, **told}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    floor = _floor(FLOORED[value], seen, n_fake) if seen and value in FLOORED else None
    return Scored(found.mean, found.low, found.high, found.n, digest, own, floor)


def _floor(part: str, seen: Seen, n_fake: int) -> dict[str, float] | None:
    """The distance between as many real samples as there are generated ones (or half of them, where there are fewer) and
    the rest of the reference: what a perfect generator would score."""
    size = min(n_fake, seen.n // 2)
    if size < 2:
        return None
    subset, rest = seen.halves(part, size)
    return {"mean": float(frechet_distance(rest, subset)), "n": size, "n_real": seen.n - size}


def _protocol(
    extract: Any, source: Source, real: Real, seen: Seen | None, fake: Seen, order: tuple[int, ...]
) -> dict[str, Any]:
    statistics, raw = real.statistics, real.source
    n_real = statistics.n if statistics else seen.n if seen else None
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


def _warnings(protocol: dict[str, Any], values: Sequence[str], real: Real, extract: Any) -> list[str]:
    found = []
    n_real, n_fake, dim = protocol["n_real"], protocol["n_fake"], protocol["dim"]
    if n_real is not None and n_real != n_fake:
        found.append(
            f"{n_fake} samples stand against {n_real} real ones: compare only values of the same numbers"
        )
    least = min(n_fake, n_real or n_fake)
    if least < dim and {"fd", "fd_infinity"} & set(values):
        found.append(
            f"{least} samples do not span {dim} features: a Frechet distance is biased upwards by far"
        )
    shapes = protocol["real_shape"], protocol["fake_shape"]
    if None not in shapes and shapes[0][1:] != shapes[1][1:]:
        sizes = ["x".join(map(str, shape[:0:-1])) for shape in shapes]
        found.append(
            f"the samples are {sizes[1]} pixels, the reference {sizes[0]}: sharpness differs by that alone"
        )
    if n_real is not None and real.source and is_adm(Path(real.source.where)) and real.statistics is None:
        found.append(
            f"mu and sigma of the reference are Inception's: '{extract.name}' measured its images, arr_0"
        )
    return found


def _check_count(n: int, where: str) -> None:
    if n < 2:
        raise UserError(f"{where} holds {n} sample; at least 2 are needed")


def _moments(part: Any) -> Moments:
    return part if isinstance(part, Moments) else moments_of(part)


def _digest(statistics: Reference) -> str:
    content = statistics.features.mean.tobytes() + statistics.features.covariance.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
