"""A study's `encoders.json`: each of its encoders, measured once, under one protocol.

Every encoder gets the same images of the study's data, on the study's grid of tokens. Its CKNNA and CKA are
with the best layer, which is named, of a network trained without an encoder (the control). So these numbers
describe the encoder and the data, not any run aligned with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.spec import RunSpec
from harness.data.dataset import pictured
from harness.data.open import open_dataset, split
from harness.encoders.base import Choice, open_encoder
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
class Asked:
    """How encoders are measured."""

    classifier: str
    time: float
    """At which the control's network gets the images; the encoders get them clean."""
    samples: int


class Study(NamedTuple):
    """The encoders and the control of a folder of runs."""

    spec: RunSpec
    """The spec of the run whose network the encoders are compared with."""
    run: Path
    control: bool
    """Whether that run was trained without an encoder; if not, no agreement is measured."""
    encoders: dict[str, Choice]
    """By name, in order."""


def is_study(path: Path) -> bool:
    """Return whether a folder holds runs and is not a run itself."""
    return path.is_dir() and not (path / "spec.toml").is_file() and bool(find_records(path))


def measure_encoders(path: Path, study: Study, asked: Asked) -> dict[str, Any]:
    """Measure the encoders and write the table to the study's folder after each; existing entries are kept.

    Raises `UserError` for an encoder that cannot be opened, after those before it were measured, and if the
    folder cannot be written.
    """
    prepare(study.spec.runtime.threads)
    checkpoint, model, device = model_of_run(study.run, study.spec, None)
    dataset = open_dataset(study.spec.data)
    sides = split(dataset, study.spec.data.held_out)
    compared = f"{study.run.name}/{checkpoint.stem}" if study.control else None
    protocol = {"data": dataset.fingerprint, "held_out": study.spec.data.held_out, "control": compared}
    protocol |= {"grid": list(model.config.grid), **asdict(asked)}
    file, known = path / FILE, kept(path / FILE, protocol, "encoders")
    where = {"grid": model.config.grid, "held_out": study.spec.data.held_out, "device": device}
    absent = [choice for choice in study.encoders.values() if not _known(known, choice)]
    for choice in tracked(absent, "encoders"):
        encoder = open_encoder(choice, pictured(dataset), **where)
        how = {"time": asked.time, "samples": asked.samples, "classifier": asked.classifier}
        found = probe(model, dataset, sides, encoder, device=device, **how)
        about = {"sha256": encoder.sha256, "params": encoder.params, "flops": encoder.flops}
        rows = found.rows if study.control else found.rows[:1]
        row = about | entry(rows) | {"train": found.train, "held_out": found.held_out}
        with adding_to(file):
            known |= kept(file, protocol, "encoders") | {choice.name: row}
            write_table(file, {"protocol": protocol, "encoders": known})
    return {"protocol": protocol, "encoders": known}


def entry(rows: Sequence[Row]) -> dict[str, Any]:
    """Return an encoder's row, with its agreement with the network's best layer by CKNNA, as JSON."""
    own, layers = rows[0], rows[1:]
    best = max(layers, key=_agreement, default=None)
    return {
        "accuracy": _plain(own.accuracy),
        "local_distant": _plain(own.local_distant),
        "spatial_decay": _plain(own.spatial_decay),
        "cknna": _plain(best and best.cknna),
        "cka": _plain(best and best.cka),
        "layer": best and best.name,
    }


def study_of(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Return the encoders that the runs of a folder name, and the control.

    The control is the finished run without an encoder with the smallest seed, the first by name. Raises
    `UserError` if the runs do not share their data or none has a checkpoint, and for an override of a
    training field.
    """
    runs = [(record, spec_of_run(record.path, overrides)) for record in find_records(path)]
    _check_shared(path, [spec for _, spec in runs])
    encoders = {
        choice.name: _choice(choice, [record for record, _ in runs])
        for _, spec in runs
        for choice in spec.method.needs().encoders
    }
    able = [
        (record, spec) for record, spec in runs if any((record.path / "checkpoints").glob("*.safetensors"))
    ]
    if not able:
        raise UserError(
            f"{path}: no run has a checkpoint yet; encoders are compared with a network of the study"
        )
    plain = [pair for pair in able if not pair[1].method.needs().encoders and pair[0].status == "done"]
    record, spec = min(plain or able, key=lambda pair: (pair[1].seed, pair[0].id))
    return Study(spec, record.path, bool(plain), dict(sorted(encoders.items())))


def _check_shared(path: Path, specs: Sequence[RunSpec]) -> None:
    for name, of in (("data", lambda s: s.data), ("backbone.patch", lambda s: s.backbone.patch)):
        found = {repr(of(spec)) for spec in specs}
        if len(found) > 1:
            raise UserError(
                f"{path}: the runs have {len(found)} settings of {name}, and an encoder would be measured differently for "
                "each; put their runs into separate folders"
            )


def _choice(choice: Any, records: Sequence[Record]) -> Choice:
    """Return the encoder with the hash of the weights that the runs used, so that no others are measured."""
    used = {
        one["sha256"]
        for record in records
        for start in record.environment
        for one in start.get("encoders", ())
        if one["name"] == choice.name
    }
    if len(used) > 1:
        raise UserError(
            f"runs aligned to {len(used)} different weights of encoder '{choice.name}'; put their runs into separate folders"
        )
    return Choice(choice.name, choice.weights, next(iter(used), choice.sha256), choice.download)


def _known(table: Mapping[str, Any], choice: Choice) -> bool:
    found = table.get(choice.name)
    return found is not None and choice.sha256 in ("", found["sha256"])


def _agreement(row: Row) -> float:
    assert row.cknna is not None, "layers are compared with the encoder"
    return row.cknna.mean


def _plain(value: Value | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
