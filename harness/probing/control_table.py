"""Tables of the control probe: a run's checkpoints as JSON, and a study's `control.json`.

    {"protocol": {"time", "samples"},
     "runs": {run id: {"method", "seed", "data", "videos", "pixels": R, "untrained": R,
                       "steps": {step: {"layer 1": R, ...}}}},
     "left_out": {run id: reason}}

with R = {"state": V, "action": V} and V = {mean, low, high, n, penalty}: R2 with its 95 % interval over n
held-out videos. Each checkpoint is measured once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.assembly.build import backbone_config
from harness.assembly.condition import null_text
from harness.config.spec import RunSpec
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.files.json_table import adding_to, kept, write_table
from harness.files.progress import tracked
from harness.probing.control import Row, measured, of_initial, of_layers, of_pixels, scene_of
from harness.records.checkpoint_files import checkpoints, step_of
from harness.records.record import Record, find_records
from harness.runtime.distributed import pick_device
from harness.runtime.environment import prepare
from harness.train.trained_run import load_ema, spec_of_run
from metrics.domain.control import Decoded

FILE = "control.json"


class LeftOut(UserError):
    """The reason why a run is left out of the table."""


@dataclass(frozen=True)
class ControlSettings:
    """The settings of a measurement, recorded as the table's protocol."""

    time: float
    samples: int


def measure_study(
    path: Path, settings: ControlSettings, overrides: tuple[str, ...] = (), *, every: bool = False
) -> dict[str, Any]:
    """Measure the newest checkpoint, or `every` one, of all finished runs of a folder.

    The table is written after each checkpoint. Existing entries with the same protocol are kept. Raises
    `UserError` if no run can be measured or the folder cannot be written.
    """
    records, protocol, left_out = find_records(path), asdict(settings), {}
    file, runs = path / FILE, kept(path / FILE, protocol, "runs", "control")
    for record in tracked(records, f"{len(records)} runs"):
        known = runs.get(record.id, {})
        try:
            spec, files = _of_finished(record, overrides, every)
            for entry in measurements(spec, files, settings, known):
                runs = _added(file, protocol, {**runs, record.id: entry}, left_out)["runs"]
        except LeftOut as reason:
            left_out[record.id] = str(reason)
    if not runs:
        raise UserError(f"{path}: control cannot be measured on any run; {next(iter(left_out.values()))}")
    return _added(file, protocol, runs, left_out)


def _added(
    file: Path, protocol: Mapping[str, Any], runs: Mapping[str, Any], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """Add these runs' entries to the table on disk, and return it."""
    with adding_to(file):
        found = kept(file, protocol, "runs", "control")
        for run, entry in runs.items():
            steps = found.get(run, {}).get("steps", {}) | entry["steps"]
            found[run] = {**entry, "steps": _in_order(steps)}
        table = {"protocol": dict(protocol), "runs": found, "left_out": dict(left_out)}
        write_table(file, table)
    return table


def measurements(
    spec: RunSpec, files: Sequence[Path], settings: ControlSettings, known: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a run's entry, first with its baselines, then after each checkpoint of `files` that `known`
    lacks.

    Raises `LeftOut` for a run whose data or split cannot be measured.
    """
    prepare(spec.runtime.threads)
    dataset, device = open_dataset(spec.data), pick_device(spec.runtime.device)
    config = backbone_config(spec, dataset)
    try:
        scene = scene_of(dataset, split(dataset, spec.data.held_out).held_out, config, settings.samples)
    except UserError as error:
        raise LeftOut(str(error)) from error
    entry, null = dict(known or {}), null_text(spec, dataset, device)
    if not entry:
        untrained = of_initial(config, spec.seed, settings.time, device, null)
        baselines = [of_pixels(config, settings.time), untrained]
        rows = plain(measured(baselines, scene, dataset, device, "baselines"))
        about = {"method": spec.method.name, "seed": spec.seed, "data": dataset.fingerprint}
        entry = {**about, "videos": len(scene.index), **rows, "steps": {}}
        yield entry
    for file in (file for file in files if str(step_of(file)) not in entry["steps"]):
        layers = of_layers(load_ema(file, spec, dataset, device), settings.time, device, null)
        rows = plain(measured([layers], scene, dataset, device, file.stem))
        entry = entry | {"steps": _in_order(entry["steps"] | {str(step_of(file)): rows})}
        yield entry


def plain(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the rows as JSON, by name."""
    return {row.name: {"state": _value(row.state), "action": _value(row.action)} for row in rows}


def _of_finished(record: Record, overrides: tuple[str, ...], every: bool) -> tuple[RunSpec, list[Path]]:
    if record.status != "done":
        raise LeftOut(f"the run is not finished ({record.status})")
    files = checkpoints(record.path / "checkpoints")
    if not files:
        raise LeftOut("the run has no checkpoint")
    return spec_of_run(record.path, overrides), files if every else files[-1:]


def _value(found: Decoded) -> dict[str, Any]:
    return asdict(found.r2) | {"penalty": found.penalty}


def _in_order(steps: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(steps.items(), key=lambda step: int(step[0])))
