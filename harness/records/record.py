"""The run directory: written here by one process, read everywhere. No torch.

    runs/<study>/<run id>/
        spec.toml           the resolved spec, written before anything runs
        environment.json    versions, device, threads: one entry for each time the run was started
        events.jsonl        one JSON object per line, in order of step; never a torn or duplicate line
        chain.jsonl         hashes of events and spec at each checkpoint (record_chain.py)
        checkpoints/        step-00000400.safetensors; the same bytes whenever the same step is reached
        ema/                step-00000400.safetensors, EMA weights kept for later evaluations
        evaluations.jsonl   later evaluations of kept checkpoints (evaluations.py), and protocols.json
        clock.json          seconds by phase at the newest checkpoint
        samples/            step-00000400.png
        done                JSON, written once the last step has finished, or an early end was reached
                            (early_end.py)
        failed              JSON with the reason, present if the last attempt failed
        lock                held by the running process; names it

An event has `kind`, `step` and `images`. Kinds:
    train       loss, losses (named parts), grad_norm, learning_rate, flops, seconds {phase: s}
    eval        metrics {name: {mean, low, high, n}, and replicates if there are several},
                errors {name: reason} if a metric failed, seconds, flops, protocol (a hash; `evaluation` in
                environment.json has the full protocol and the noise floors)
    checkpoint  file
    gradients   norms {flow, auxiliary}, share, cosine, reached {blocks, share, cosine}, losses, features and
                sameness {place: value}, reading_flops (of this reading; not training). No flops and seconds
    import      flops 0 and no seconds, at the step of imported weights, whose costs are unknown
`flops` and `seconds` are totals since step 0, or since the import, so that an event gives the cost of
reaching its step. All fields except `seconds` are equal bit for bit between an unbroken run and one that was
killed and resumed.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.errors import ERROR_PREFIX, UserError
from harness.files.files import (
    decode_text,
    holder,
    read_tail,
)
from harness.files.parse import parse_json, parse_toml
from harness.records.columns import TRAINING_PHASES as TRAINING_PHASES
from harness.records.early_end import EarlyEnd, parse_early_end
from harness.records.evaluation_columns import EvaluationColumns
from harness.records.evaluations import (
    Conditions,
    Evaluation,
    conditions_of,
    is_merged,
    merged,
    read_evaluations,
    read_protocols,
)
from harness.records.event_log import CostColumns, EventLog, read_finished_log, read_log
from harness.records.events import read_events, read_finished
from harness.records.record_chain import (
    EVENTS,
    SPEC,
)
from harness.records.shapes import environment_fault, event_fault, spec_fault

CLOCK = "clock.json"
REPLICATES = "replicates.json"
DIGITS = 18
"""Most digits of a step in a table by steps."""
DONE, FAILED, LOCK = "done", "failed", "lock"
FILES = ("spec", "events", "log", "environment", "replicates", "failure", "early_end", "protocols")
"""The fields of a record that do not depend on the conditions of its evaluations."""


def tracked_name(name: str) -> str:
    """Return a name that MLflow accepts; characters except word characters and `.- :/` become underscores.

    >>> tracked_name("fd:torchscript@d7826800?size=8")
    'fd:torchscript_d7826800_size_8'
    """
    return re.sub(r"[^\w.\- :/]", "_", name)


@dataclass(frozen=True)
class Record:
    """A run directory, for reading. Files are read when a field is first used."""

    path: Path
    conditions: Conditions | None = None
    """The conditions of the evaluations that `of("eval")` returns; None for those of the run's spec."""

    @property
    def id(self) -> str:
        return self.path.name

    def under(self, conditions: Conditions) -> Record:
        """Return this record with the evaluations under other conditions; files are not read again."""
        found = replace(self, conditions=conditions)
        vars(found).update({name: value for name, value in vars(self).items() if name in FILES})
        return found

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The resolved spec as plain data; raises `UserError` if it is missing or broken."""
        file = self.path / SPEC
        try:
            spec = parse_toml(decode_text(file, file.read_bytes(), "TOML"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{self.path} is not a run directory: no {SPEC} in it") from error
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{file} is not TOML: {error}") from error
        if fault := spec_fault(spec):
            raise UserError(f"{file} is not the spec of a run: {fault}")
        return spec

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """All complete events in order; a last line that is still being written is left out.

        Raises `UserError` if the run is done but the end of its file is missing.
        """
        file = self.path / EVENTS
        # Checked before reading, because the run may finish meanwhile.
        if not (self.path / DONE).exists():
            return read_events(file)
        return read_finished(file, self._last_evaluated)

    @cached_property
    def log(self) -> EventLog:
        """The same events with train lines and evaluations as columns, of a fraction of the memory."""
        return self._read_log()

    def take_columns(self) -> CostColumns:
        """Return the train lines as columns, and do not keep them: costs take their place in a report."""
        columns = self.log.trained
        if columns is None:
            columns = self._read_log().trained
        vars(self)["log"] = replace(self.log, trained=None)
        assert columns is not None
        return columns

    def load_log(self) -> None:
        """Read the log now. The property lets one thread at a time read any record up to Python 3.11."""
        vars(self)["log"] = self._read_log()

    def _read_log(self) -> EventLog:
        file = self.path / EVENTS
        if not (self.path / DONE).exists():
            return read_log(file)
        return read_finished_log(file, self._last_evaluated)

    @property
    def _last_evaluated(self) -> int | None:
        """The step at which the run evaluates last, once it is done."""
        end = self.early_end
        return self.steps if end is None else end.step

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind, in order.

        Evaluations are those under the record's conditions, whether made during training or later, one event
        for each step.
        """
        if kind == "eval":
            return list(self._trained) if self._is_plain else self._evaluated
        events = self.events if kind == "train" else self.log.others
        return [event for event in events if event["kind"] == kind]

    @property
    def last_trained(self) -> dict[str, Any] | None:
        """The last `train` event; None before the first."""
        return self.log.last_trained

    @property
    def columns(self) -> EvaluationColumns | None:
        """The evaluations of `of("eval")` as columns; None if they are not all of one form."""
        found = self._trained
        return found if isinstance(found, EvaluationColumns) and self._is_plain else None

    @property
    def _trained(self) -> Sequence[dict[str, Any]]:
        """The evaluations during training, in order."""
        return self.log.evaluations

    @cached_property
    def _evaluated(self) -> list[dict[str, Any]]:
        """The evaluations under the record's conditions, from those during training and later ones."""
        trained = {event["step"]: event for event in self._trained}
        steps = merged(one for one in self.evaluations if one.conditions == self.shown_conditions)
        return [
            {
                "kind": "eval",
                **(_without_metrics(trained[step]) if step in trained else self._costs_at(step)),
                **event,
            }
            for step, event in steps.items()
        ]

    @cached_property
    def trained_evaluations(self) -> list[dict[str, Any]]:
        """The evaluations during training under the conditions of its last start, in order.

        A run can be continued with another sampler, for example, whose values are other quantities.
        """
        about = self.environment[-1].get("evaluation", {}) if self.environment else {}
        known = conditions_of(str(about["hash"]), self.protocols) if "hash" in about else None
        current = known or self.shown_conditions
        return [e for e in self._trained if conditions_of(str(e.get("protocol")), self.protocols) == current]

    @cached_property
    def _later_lines(self) -> list[dict[str, Any]]:
        """The lines of evaluations that were not made during training."""
        repeated = [{"step": int(step), **row} for step, row in self.replicates.items()]
        # Replicates of an evaluation that was superseded do not count.
        current = {(event["step"], event.get("protocol")) for event in self._trained} if repeated else set()
        kept = [row for row in repeated if (row["step"], row["protocol"]) in current]
        return [*kept, *read_evaluations(self.path)]

    @cached_property
    def _conditions(self) -> dict[str, Conditions]:
        """The conditions of every protocol of an evaluation, by its hash, in order."""
        trained = self._trained
        columns = isinstance(trained, EvaluationColumns)
        own = trained.protocols if columns else [str(line.get("protocol")) for line in trained]
        keys = dict.fromkeys((*own, *(str(line.get("protocol")) for line in self._later_lines)))
        return {key: conditions_of(key, self.protocols) for key in keys}

    @cached_property
    def _is_plain(self) -> bool:
        """True if `of("eval")` has the events of the evaluations during training as they are."""
        trained = self._trained
        if not trained and not self._later_lines:
            # A run that has not started has no spec either.
            return True
        shown = self.shown_conditions
        return not self._later_lines and list(self._conditions.values()) == [shown] and _in_order(trained)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations under all conditions: first those made during training, then later ones."""
        lines, under = [*self._trained, *self._later_lines], self._conditions
        return [
            Evaluation(
                line["step"],
                line.get("images", line["step"] * self._batch_size),
                line.get("metrics", {}),
                key := str(line.get("protocol")),
                under[key],
                line.get("errors", {}),
            )
            for line in lines
        ]

    @cached_property
    def views(self) -> tuple[Conditions, ...]:
        """All conditions under which the run was evaluated, the shown ones first."""
        found = dict.fromkeys(self._conditions.values())
        shown = self.shown_conditions
        return (shown, *(c for c in found if c != shown)) if shown in found else tuple(found)

    @cached_property
    def shown_conditions(self) -> Conditions:
        """The conditions of `of("eval")`: the given ones, or those of the spec, or of the last evaluation."""
        if self.conditions is not None:
            return self.conditions
        table = self.spec.get("eval", {})
        section = table if isinstance(table, Mapping) else {}
        found = sorted(dict.fromkeys(self._conditions.values()), key=lambda c: c.ema != "float32")
        lines = self._later_lines or self._trained
        last = self._conditions[str(lines[-1].get("protocol"))] if lines else Conditions.of_spec(section)
        return next((one for one in found if one.is_of_spec(section)), last)

    @cached_property
    def protocols(self) -> dict[str, Any]:
        """The record of each evaluation protocol, by its hash: `protocol`, `floor`, `aligned`."""
        starts = [start.get("evaluation", {}) for start in self.environment]
        own = {about["hash"]: about for about in starts if "hash" in about}
        return read_protocols(self.path) | own

    @cached_property
    def replicates(self) -> dict[str, Any]:
        """Later measurements by `flowrace replicate` of versions up to 0.1: step -> protocol and metrics."""
        found = read_json(self.path / REPLICATES) or {}
        rows = found.items() if isinstance(found, dict) else [("", found)]
        if not all(
            step.isdecimal()
            and len(step) < DIGITS
            and isinstance(row, dict)
            and isinstance(row.get("protocol"), str)
            and not event_fault({"kind": "eval", "step": int(step), **row})
            for step, row in rows
        ):
            raise UserError(f"{self.path / REPLICATES} is no table of evaluations by step")
        return found

    @property
    def _batch_size(self) -> int:
        return self.spec.get("train", {}).get("batch_size", 0)

    def _costs_at(self, step: int) -> dict[str, Any]:
        """Return FLOPs and seconds of reaching a step, interpolated between logged steps."""
        logged = [event for event in self.events if "seconds" in event and "flops" in event]
        before = next((event for event in reversed(logged) if event["step"] <= step), None)
        after = next((event for event in logged if event["step"] >= step), None)
        if before is None or after is None or before["step"] == step:
            near = before or after
            return {} if near is None else {"flops": near["flops"], "seconds": near["seconds"]}
        share = (step - before["step"]) / (after["step"] - before["step"])
        names = before["seconds"].keys() | after["seconds"].keys()
        ends = [
            {name: event["seconds"].get(name, 0.0) for name in sorted(names)} for event in (before, after)
        ]
        return {
            "flops": round(before["flops"] + share * (after["flops"] - before["flops"])),
            "seconds": {name: x + share * (ends[1][name] - x) for name, x in ends[0].items()},
        }

    @cached_property
    def environment(self) -> list[dict[str, Any]]:
        """One entry for each start of the run, oldest first; empty before the first start."""
        starts = read_json(self.path / "environment.json") or []
        if fault := environment_fault(starts):
            raise UserError(f"{self.path / 'environment.json'} {fault}")
        return starts

    @cached_property
    def failure(self) -> dict[str, Any] | None:
        """The content of `failed`; None if the last attempt did not fail."""
        found = read_json(self.path / FAILED)
        if found is not None and not isinstance(found, dict):
            raise UserError(f"{self.path / FAILED} is no table with a reason")
        return found

    @cached_property
    def early_end(self) -> EarlyEnd | None:
        """The early end of a finished run before the last step of its spec; None for any other run."""
        found = read_json(self.path / DONE)
        try:
            return parse_early_end(found.get("ended") if isinstance(found, dict) else None)
        except ValueError as error:
            raise UserError(f"{self.path / DONE}: {error}") from error

    @property
    def status(self) -> str:
        """`missing`, `done`, `running`, `failed` or `stopped` (begun, not finished, no process running)."""
        if not (self.path / SPEC).exists():
            return "missing"
        if (self.path / DONE).exists():
            return "done"
        if lock_holder(self.path) is not None:
            return "running"
        return "failed" if (self.path / FAILED).exists() else "stopped"

    @property
    def steps(self) -> int | None:
        """The number of steps that the spec asks for; None if it names none."""
        train = self.spec.get("train")
        return train.get("steps") if isinstance(train, dict) else None

    def seconds_at(self, step: int) -> dict[str, float]:
        """Return the seconds by phase that the run had spent at a checkpoint.

        If the process died before it wrote them, they are those of the last event up to that step.
        """
        clock = read_json(self.path / CLOCK)
        if clock is not None and clock["step"] == step:
            return clock["seconds"]
        return next((e["seconds"] for e in reversed(self.events) if e["step"] <= step and "seconds" in e), {})

    @property
    def last_step(self) -> int:
        """The step of the last event; 0 before the first."""
        return self.log.last["step"] if self.log.last else 0


def _in_order(trained: Sequence[dict[str, Any]]) -> bool:
    """Return whether there is one evaluation a step, each as `merged` returns it."""
    if isinstance(trained, EvaluationColumns):
        steps = trained.costs.steps
        return bool((steps[1:] > steps[:-1]).all())
    return all(a["step"] < b["step"] for a, b in pairwise(trained)) and all(map(is_merged, trained))


def _without_metrics(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("metrics", "protocol", "errors")}


def asks_the_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether two specs of a run, as plain data, ask for the same length and the same evaluation."""
    return steps_of(old) == steps_of(new) and _evaluation_of(old) == _evaluation_of(new)


def steps_of(spec: Mapping[str, Any]) -> int | None:
    return spec.get("train", {}).get("steps")


def _evaluation_of(spec: Mapping[str, Any]) -> tuple[Conditions, dict[str, Any]]:
    own = spec.get("eval", {})
    how = {name: own.get(name) for name in ("metrics", "every", "replicates", "reference")}
    scales = own.get("guidance")
    if isinstance(scales, list | tuple):
        how["guidance"] = list(scales)
    return Conditions.of_spec(own), {name: value for name, value in how.items() if value}


def log_file(run: Path) -> Path:
    """Return the file in the study's folder that receives the output of a launched run."""
    return run.parent / "logs" / f"{run.name}.log"


def failure_reason(record: Record, *, exit_code: int | None = None) -> str:
    """Return in one line why a run failed or stopped.

    The first available source wins: the signal that ended the process (negative `exit_code`), an
    `error: ...` as last line of the log, the reason in the record, any last line of the log (under torchrun
    it is torchrun's), the exit code.
    """
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    lines = read_tail(log_file(record.path)).decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    if last.startswith(ERROR_PREFIX):
        return last.removeprefix(ERROR_PREFIX)
    recorded = (record.failure or {}).get("reason")
    return str(recorded or last or (f"exit code {exit_code}" if exit_code else "no reason recorded"))


def find_records(*roots: Path) -> list[Record]:
    """Return every run directory at or below the given folders, sorted by path.

    Raises `UserError` if a folder does not exist.
    """
    found: dict[Path, Record] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"no such folder: {root}")
        candidates = [root / SPEC, *root.glob(f"*/{SPEC}"), *root.glob(f"*/*/{SPEC}")]
        found.update({file.parent.resolve(): Record(file.parent) for file in candidates if file.exists()})
    return [found[path] for path in sorted(found)]


def lock_holder(path: Path) -> str | None:
    """Return the text of a run directory's lock, which names the process that holds it; None if free."""
    return holder(path / LOCK)


def read_json(file: Path) -> Any:
    try:
        return parse_json(decode_text(file, file.read_bytes(), "JSON"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
