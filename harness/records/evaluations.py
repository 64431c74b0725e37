"""Evaluations of a run under several sets of conditions, made during training or measured later.

    <run>/evaluations.jsonl   one JSON object per later evaluation: step, images, metrics, protocol, errors
    <run>/protocols.json      protocol, noise floors and aligned metrics of each, by the protocol's hash

Evaluations during training are events of `events.jsonl`. Metrics measured under one set of conditions belong
together, whenever they were measured; other conditions give other quantities.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from harness.errors import UserError
from harness.files.files import cut_torn_line, exclusive, no_link, sync_file, writing
from harness.files.json_table import adding_to, write_table
from harness.files.parse import parse_json
from harness.records.events import Event, read_events
from harness.records.shapes import protocol_fault

EVALUATIONS, PROTOCOLS = "evaluations.jsonl", "protocols.json"
SUCCESS = "success@"
"""Prefix of the share of episodes in which a policy solves a task."""
SHORTFALL = "1-"
"""Prefix of the name of the shortfall of a share, for example `1-obeys:colour`, which falls as the share
rises."""
GUIDANCES = ("guidance", "method_guidance")
"""Fields with the scale of a guidance; `_low` and `_high` are its interval of times."""


@dataclass(frozen=True, order=True)
class Conditions:
    """The settings under which samples are drawn, as far as values of every metric depend on them."""

    sampler: str
    sampler_steps: int
    guidance: float
    guidance_low: float
    guidance_high: float
    labels: str
    samples: int
    seed: int
    precision: str
    """Precision of the network in sampling."""
    ema: str = "float32"
    """Precision in which the EMA weights were kept."""
    reference: str = ""
    """Hash of the file of statistics that replaces the training samples, otherwise empty."""
    protocol: str = ""
    """Hash of a protocol of which only the hash is recorded, otherwise empty."""
    method_guidance: float = 1.0
    """Scale of the method's own guidance."""
    method_guidance_low: float = 0.0
    method_guidance_high: float = 1.0
    sampler_shift: float = 1.0
    """Shift of the sampler's times."""

    @classmethod
    def of_spec(cls, table: Mapping[str, Any], ema: str = "float32", reference: str = "") -> Self:
        """Return the conditions of a spec's section `eval`; missing fields have their defaults.

        The hash of its reference is given, because the section has only its location.
        """
        # A process that only writes a record does without pydantic, most of its time to start.
        from harness.config.evaluation_spec import EvalSpec

        names = [field.name for field in fields(cls) if field.name in EvalSpec.model_fields]
        values = {name: table.get(name, EvalSpec.model_fields[name].default) for name in names}
        values["guidance"] = first_scale(values["guidance"])
        return cls._normal(values | {"ema": ema, "reference": reference})

    @classmethod
    def of_protocol(cls, protocol: Mapping[str, Any]) -> Self:
        """Return the conditions of a recorded protocol."""
        return cls.of_spec(
            {**protocol, "samples": protocol.get("n_fake")},
            protocol.get("ema_precision", "float32"),
            protocol.get("reference", ""),
        )

    @classmethod
    def _normal(cls, values: Mapping[str, Any]) -> Self:
        """Return conditions with numbers of their types, whether a file has `1` or `1.0`."""
        # Any: values of a TOML or JSON file.
        known: dict[str, Any] = {name: values[name] for name in values if name in cls.__dataclass_fields__}
        for scale in GUIDANCES:
            low, high = f"{scale}_low", f"{scale}_high"
            # Without guidance, the interval of times with guidance has no effect.
            none = {scale: 1.0, low: 0.0, high: 1.0}
            chosen = {name: float(known.get(name, none[name])) for name in none}
            known.update(none if chosen[scale] == 1 else chosen)
        known["sampler_shift"] = float(known.get("sampler_shift", 1.0))
        return cls(**known)

    def is_of_spec(self, table: Mapping[str, Any]) -> bool:
        """Return whether a spec's section `eval` asks for these conditions, whatever the kept precision."""
        ours = replace(self, ema="float32", reference="")
        return ours == Conditions.of_spec(table) and bool(self.reference) == bool(table.get("reference"))

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name, as JSON, without optional ones that are at their defaults."""
        optional = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {k: v for k, v in asdict(self).items() if k not in optional or v != optional[k]}

    @property
    def key(self) -> str:
        """8 hex digits that identify the conditions, for file names."""
        settings = asdict(self)
        if self.method_guidance == 1:
            # Conditions of earlier versions have neither these settings nor a shift.
            settings = {name: v for name, v in settings.items() if not name.startswith("method_guidance")}
        if self.sampler_shift == 1:
            del settings["sampler_shift"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]

    def name(self, among: Iterable[Conditions]) -> str:
        """Return the settings that distinguish these conditions from others; empty if nothing does.

        >>> base = Conditions.of_spec({})
        >>> Conditions.of_spec({"guidance": 1.5}).name([base])
        'guidance=1.5'
        """
        return ", ".join(f"{field}={_text(getattr(self, field))}" for field in varied([self, *among]))


# Any: a value of a TOML file.
def first_scale(guidance: Any) -> Any:
    """Return the guidance of the curves: the first of several scales.

    >>> first_scale([1.5, 3.0]), first_scale(2.0)
    (1.5, 2.0)
    """
    return guidance[0] if isinstance(guidance, list | tuple) else guidance


def varied(conditions: Sequence[Conditions]) -> list[str]:
    """Return the fields in which conditions differ."""
    return [
        field.name for field in fields(Conditions) if len({getattr(c, field.name) for c in conditions}) > 1
    ]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one step under one set of conditions."""

    step: int
    images: int
    # Any: rows of metrics as JSON.
    metrics: Mapping[str, Any]
    protocol: str
    conditions: Conditions
    errors: Mapping[str, str]


def read_evaluations(run: Path) -> list[Event]:
    """Return the complete lines of later evaluations; a line that is still being written is left out."""
    return read_events(run / EVALUATIONS)


def read_protocols(run: Path) -> dict[str, Any]:
    """Return what is recorded about the protocols of later evaluations, by hash."""
    file = run / PROTOCOLS
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    protocols = found.values() if isinstance(found, dict) else [found]
    if fault := next(filter(None, map(protocol_fault, protocols)), ""):
        raise UserError(f"{file}: a protocol {fault}")
    return found


def add_evaluation(run: Path, line: Event, about: Mapping[str, Any]) -> None:
    """Append a later evaluation to a run, after its protocol; a line that is already there is not repeated.

    A torn last line of a killed process is removed. Raises `UserError` if the run cannot be written.
    """
    with adding_to(run / PROTOCOLS):
        known = read_protocols(run)
        if line["protocol"] not in known:
            write_table(run / PROTOCOLS, {**known, line["protocol"]: dict(about)})
    file = run / EVALUATIONS
    lock = run / f"{EVALUATIONS}.lock"
    with writing(file), exclusive(lock), open(file, "ab+", opener=no_link) as lines:
        complete = cut_torn_line(lines)
        new = json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if new not in complete.splitlines(keepends=True):
            lines.write(new)
            sync_file(lines)


def conditions_of(protocol: str, protocols: Mapping[str, Any]) -> Conditions:
    """Return the conditions of a protocol's hash; if only the hash is recorded, they name it."""
    about = protocols.get(protocol, {}).get("protocol")
    if about is None:
        return Conditions("", 0, 1.0, 0.0, 1.0, "", 0, 0, "", protocol=protocol)
    return Conditions.of_protocol(about)


def merged(evaluations: Iterable[Evaluation]) -> dict[int, dict[str, Any]]:
    """Return one event for each step, in order, from evaluations under one set of conditions.

    Of two values of a metric at a step, the one with more replicates counts, or else the first. `protocols`
    has the hashes of metrics that were not measured under the event's `protocol`.
    """
    steps: dict[int, dict[str, Any]] = {}
    for one in evaluations:
        fresh = {"step": one.step, "images": one.images, "metrics": {}, "protocol": one.protocol}
        _merge(steps.setdefault(one.step, fresh), one)
    return dict(sorted(steps.items()))


def _merge(event: dict[str, Any], one: Evaluation) -> None:
    for name, row in one.metrics.items():
        if _replicates(row) > _replicates(event["metrics"].get(name)):
            event["metrics"][name] = row
            if one.protocol != event["protocol"]:
                event.setdefault("protocols", {})[name] = one.protocol
    if errors := {name: why for name, why in one.errors.items() if name not in event["metrics"]}:
        event["errors"] = event.get("errors", {}) | errors


def is_merged(event: Event) -> bool:
    """Return whether `merged` would return a single evaluation of a step as it is."""
    return (
        "images" in event
        and isinstance(event.get("protocol"), str)
        and "metrics" in event
        and "errors" not in event
        and all(map(_replicates, event["metrics"].values()))
    )


def belongs(value: str, metric: str) -> bool:
    """Return whether a recorded value is a metric's own, or that of one of its times or parts.

    >>> belongs("loss:held_out@0.125", "loss:held_out"), belongs("fd:local", "loss:held_out")
    (True, False)
    """
    return value == metric or value.startswith((f"{metric}@", f"{metric}/"))


def recorded_name(metric: str) -> str:
    """Return the name under which a metric is recorded: that of the share for its shortfall.

    >>> recorded_name("1-obeys:colour"), recorded_name("fd:local")
    ('obeys:colour', 'fd:local')
    """
    return metric.removeprefix(SHORTFALL)


def falling(metric: str) -> str:
    """Return the name under which a metric falls as it improves: success as its shortfall.

    >>> falling("success@pusht"), falling("fd:local")
    ('1-success@pusht', 'fd:local')
    """
    return SHORTFALL + metric if metric.startswith(SUCCESS) else metric


# Any: a metric's row as in the record.
def row_of(event: Event, metric: str) -> Mapping[str, Any] | None:
    """Return an evaluation's value of a metric, or of the shortfall 1 - share; None if it has none.

    A share of n samples is known to one of them. Its shortfall is at least half of that, 1 / (2 n), because
    curves are of logarithms.
    """
    row = event["metrics"].get(recorded_name(metric))
    if row is None or not metric.startswith(SHORTFALL):
        return row
    low, high = row.get("low"), row.get("high")
    least = 0.5 / row["n"] if row.get("n") and row["mean"] <= 1 else -math.inf
    turned = {"low": None if high is None else 1 - high, "high": None if low is None else 1 - low}
    if "replicates" in row:
        turned["replicates"] = [1 - value for value in row["replicates"]]
    return {**row, **turned, "mean": max(1 - row["mean"], least)}


# Any: a metric's row as in the record.
def without_parts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of metrics without those of their times and parts, for short displays."""
    return {
        name: row
        for name, row in metrics.items()
        if not any(name != other and belongs(name, other) for other in metrics)
    }


def protocol_of(event: Event, metric: str) -> str:
    """Return the hash of the protocol under which an event's value of a metric was measured."""
    return event.get("protocols", {}).get(metric, str(event.get("protocol")))


def _replicates(row: Mapping[str, Any] | None) -> int:
    return 0 if row is None else len(row.get("replicates", [0]))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
