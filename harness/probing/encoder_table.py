"""Table of a study's encoders, `encoders.json`: each is measured once, by one protocol.

Every encoder gets the same images of the study's data, on the study's grid of tokens. CKNNA and CKA compare
it with the best layer of a network that was trained without an encoder (the control). So these numbers
describe the encoder and the data, not a run aligned with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.assembly.condition import null_text
from harness.config.spec import RunSpec
from harness.data.open import open_dataset, split
from harness.encoders.base import Choice, data_of, open_encoder
from harness.errors import UserError
from harness.files.json_table import adding_to, kept, write_table
from harness.files.progress import tracked
from harness.probing.layers import Row, probe
from harness.records.record import Record, find_records
from harness.runtime.environment import prepare
from harness.train.trained_run import model_of_run, spec_of_run
from metrics import Value

FILE = "encoders.json"


@dataclass(frozen=True)
class ProbeSettings:
    """The settings of a measurement, recorded in the table's protocol."""

    classifier: str
    time: float
    """Time of the path of the control network's images; those of the encoders are clean."""
    samples: int


class Study(NamedTuple):
    """The encoders and the control of a folder of runs."""

    spec: RunSpec
    """The spec of the run whose network is compared with the encoders."""
    run: Path
    control: bool
    """That run was trained without an encoder; otherwise no agreement is measured."""
    encoders: dict[str, Choice]
    """The encoders by name, sorted."""


def is_study(path: Path) -> bool:
    """Return whether a folder contains runs and is not itself a run."""
    return path.is_dir() and not (path / "spec.toml").is_file() and bool(find_records(path))


def measure_encoders(path: Path, study: Study, settings: ProbeSettings) -> dict[str, Any]:
    """Measure the encoders and write the table to the study's folder after each; existing entries are kept.

    Raises `UserError` for an encoder that cannot be opened and if the folder cannot be written. Encoders
    measured before that stay in the table.
    """
    prepare(study.spec.runtime.threads)
    checkpoint, model, device = model_of_run(study.run, study.spec, None)
    dataset = open_dataset(study.spec.data)
    sides = split(dataset, study.spec.data.held_out)
    compared = f"{study.run.name}/{checkpoint.stem}" if study.control else None
    protocol = {"data": dataset.fingerprint, "held_out": study.spec.data.held_out, "control": compared}
    protocol |= {"grid": list(model.config.grid), **asdict(settings)}
    file, known = path / FILE, kept(path / FILE, protocol, "encoders")
    where = {"grid": model.config.grid, "held_out": study.spec.data.held_out, "device": device}
    missing = [choice for choice in study.encoders.values() if not _is_measured(known, choice)]
    null = null_text(study.spec, dataset, device)
    for choice in tracked(missing, "encoders"):
        encoder = open_encoder(choice, data_of(choice, dataset), **where)
        how: dict[str, Any] = {"time": settings.time, "samples": settings.samples}
        how |= {"classifier": settings.classifier, "null": null}
        found = probe(model, dataset, sides, encoder, device=device, **how)
        about = {"sha256": encoder.sha256, "params": encoder.params, "flops": encoder.flops}
        rows = found.rows if study.control else found.rows[:1]
        row = about | entry(rows) | {"train": found.train, "held_out": found.held_out}
        with adding_to(file):
            known |= kept(file, protocol, "encoders") | {choice.name: row}
            write_table(file, {"protocol": protocol, "encoders": known})
    return {"protocol": protocol, "encoders": known}


def entry(rows: Sequence[Row]) -> dict[str, Any]:
    """Return an encoder's row as JSON, with its agreement with the layer of highest CKNNA."""
    encoder, layers = rows[0], rows[1:]
    best = max(layers, key=_agreement, default=None)
    return {
        "accuracy": _plain(encoder.accuracy),
        "local_distant": _plain(encoder.local_distant),
        "spatial_decay": _plain(encoder.spatial_decay),
        "cknna": _plain(best and best.cknna),
        "cka": _plain(best and best.cka),
        "layer": best and best.name,
    }


def study_of(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Return the encoders of a folder's runs, and the control.

    The control is a finished run without an encoder: that with the smallest seed, and of these the first by
    name. Raises `UserError` if the runs differ in their data, if none has a checkpoint, and for an override
    of a training field.
    """
    runs = [(record, spec_of_run(record.path, overrides)) for record in find_records(path)]
    _check_shared(path, [spec for _, spec in runs])
    encoders = {
        choice.name: _choice(choice, [record for record, _ in runs])
        for _, spec in runs
        for choice in spec.method.needs().encoders
    }
    candidates = [
        (record, spec) for record, spec in runs if any((record.path / "checkpoints").glob("*.safetensors"))
    ]
    if not candidates:
        raise UserError(
            f"{path}: no run has a checkpoint yet, and encoders are compared with a network of the study; "
            "train one first"
        )
    controls = [
        pair for pair in candidates if not pair[1].method.needs().encoders and pair[0].status == "done"
    ]
    record, spec = min(controls or candidates, key=lambda pair: (pair[1].seed, pair[0].id))
    return Study(spec, record.path, bool(controls), dict(sorted(encoders.items())))


def _check_shared(path: Path, specs: Sequence[RunSpec]) -> None:
    for name, of in (("data", lambda s: s.data), ("backbone.patch", lambda s: s.backbone.patch)):
        found = {repr(of(spec)) for spec in specs}
        if len(found) > 1:
            raise UserError(
                f"{path}: the runs have {len(found)} settings of {name}, and each would give an encoder "
                "other values; put their runs into separate folders"
            )


def _choice(choice: Any, records: Sequence[Record]) -> Choice:
    """Return the encoder with the hash of the runs' weights, so that no other weights are measured."""
    used = {
        encoder["sha256"]
        for record in records
        for start in record.environment
        for encoder in start.get("encoders", ())
        if encoder["name"] == choice.name
    }
    if len(used) > 1:
        raise UserError(
            f"runs aligned to {len(used)} different weights of encoder '{choice.name}'; put their runs into "
            "separate folders"
        )
    return Choice(choice.name, choice.weights, next(iter(used), choice.sha256), choice.download)


def _is_measured(table: Mapping[str, Any], choice: Choice) -> bool:
    row = table.get(choice.name)
    return row is not None and choice.sha256 in ("", row["sha256"])


def _agreement(row: Row) -> float:
    assert row.cknna is not None, "layers are compared with the encoder"
    return row.cknna.mean


def _plain(value: Value | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
