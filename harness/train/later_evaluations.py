"""Later evaluations: kept weights of a run, measured by metrics or under conditions that its record lacks.

The samples of an evaluation depend on weights and conditions alone, so a later evaluation has the same bits
as one during training. Each step is recorded as soon as it is measured; the same command resumes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.config.evaluation_spec import EvalSpec
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.files.files import exclusive, writing
from harness.records.checkpoint_files import EMA, precision_of, weights_files
from harness.records.evaluations import Conditions
from harness.records.record import Record, asks_the_same
from harness.records.record_writer import RecordWriter
from harness.train.recorded_evaluation import record_evaluation
from metrics.files.hashing import file_sha256

if TYPE_CHECKING:
    from harness.evaluation.result import Result
    from harness.runtime.distributed import World
    from harness.train.journal import Progress


class Measured(NamedTuple):
    """A later evaluation as it was recorded."""

    step: int
    conditions: Conditions
    result: Result


class MissingWeights(UserError):
    """The weights of a step were not kept."""


def missing_evaluations(path: Path, spec: RunSpec) -> dict[int, tuple[str, ...]]:
    """Return the metrics of `spec.eval` that a run lacks at steps whose weights are kept, by step.

    The steps are those at which the spec evaluates, and the guidance is its first scale. A metric that could
    not be computed is not missing.
    """
    every, last = spec.eval.every, spec.train.steps
    due = [step for step in weights_files(path) if step % every == 0 or step == last]
    return lacking(Record(path), spec.eval, due)


def unmeasurable_steps(path: Path, spec: RunSpec) -> list[int]:
    """Return the evaluated steps that lack metrics of `spec.eval` and whose weights were not kept."""
    record, kept = Record(path), weights_files(path)
    steps = sorted({one.step for one in record.evaluations if one.step not in kept})
    return list(lacking(record, spec.eval, steps))


def lacking(record: Record, wanted: EvalSpec, steps: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Return the metrics that a record lacks under the conditions of an evaluation, by step."""
    found = {}
    reference = file_sha256(Path(wanted.reference)) if wanted.reference else ""
    for step in steps:
        known = _known(record, _conditions(record.path, wanted, step, reference), step)
        missing = tuple(name for name in wanted.metrics if known.get(name, 0) < wanted.replicates)
        if missing:
            found[step] = missing
    return found


def measure_missing(path: Path, variants: Sequence[RunSpec], world: World, progress: Progress) -> None:
    """Measure what `missing_evaluations` lists for each spec under each of its scales of guidance, and note
    what cannot be measured.

    The specs differ in evaluation; the first one's is the one that reports show. Every rank must call it.
    """
    # Rank 0 may still be writing the end of the record.
    world.wait()
    asked = [one for spec in variants for one in spec.by_guidance]
    if world.main:
        _update_spec(path, variants[0])
        if lost := sorted({step for spec in asked for step in unmeasurable_steps(path, spec)}):
            progress.note(
                f"run {path.name}: {len(lost)} evaluated steps ({_listed(lost)}) cannot be measured again, "
                "because their weights were not kept. train.keep_checkpoints = 'evaluations' keeps them"
            )
    due = [list(missing_evaluations(path, spec)) for spec in asked]
    world.wait()
    for spec, steps in zip(asked, due, strict=True):
        for _ in measure(path, spec, steps, world, progress) if steps else ():
            pass


def measure(
    path: Path, spec: RunSpec, steps: Sequence[int], world: World, progress: Progress
) -> Iterator[Measured]:
    """Measure what a record lacks of `spec.eval` at these steps, record each step, and yield it on rank 0.

    Another process that measures the same run is waited for, and what it has measured is not repeated.
    Raises `MissingWeights` for a step whose weights were not kept.
    """
    files = weights_files(path)
    for step in steps:
        if step not in files:
            raise MissingWeights(
                f"{path} has no weights of step {step} (kept: {_listed(list(files)) or 'none'}); "
                "train.keep_checkpoints = 'evaluations' keeps those of every evaluation"
            )
    with writing(path), exclusive(path / "evaluate.lock") if world.main else nullcontext():
        world.wait()
        missing = lacking(Record(path), spec.eval, steps)
        world.wait()
        by_metrics: dict[tuple[str, ...], list[int]] = {}
        for step, metrics in missing.items():
            by_metrics.setdefault(metrics, []).append(step)
        for metrics, own in by_metrics.items():
            yield from _measured(path, _with_metrics(spec, metrics), own, world, progress)


def _measured(
    path: Path, spec: RunSpec, steps: Sequence[int], world: World, progress: Progress
) -> Iterator[Measured]:
    from harness.data.open import open_dataset, split
    from harness.text.captions import ignore, open_captions
    from harness.train.start import check_same_data, check_same_weights, open_evaluator, text_weights
    from harness.train.trained_run import load_ema

    dataset, record = open_dataset(spec.data), Record(path)
    check_same_data(record, dataset.fingerprint)
    sides = split(dataset, spec.data.held_out)
    captions = open_captions(spec, dataset, world.device, progress.note if world.main else ignore)
    if captions is not None:
        check_same_weights(record, text_weights(captions.about()), progress.note)
    evaluator = open_evaluator(spec, dataset, sides, world, record, progress, captions)
    for step in steps:
        conditions = _conditions(path, spec.eval, step, evaluator.about.get("reference", ""))
        result = evaluator(load_ema(weights_files(path)[step], spec, dataset, world.device))
        # Only rank 0 has the result.
        if result is None:
            continue
        record_evaluation(path, spec, step, conditions, result, evaluator)
        progress.evaluated(step, result.rows)
        for name, reason in result.errors.items():
            progress.note(f"step {step}: {name} could not be computed: {reason}")
        yield Measured(step, conditions, result)


def _update_spec(path: Path, spec: RunSpec) -> None:
    """Write the evaluation of a spec into the spec of a finished run, which reports then show."""
    toml = spec.to_toml()
    if not asks_the_same(Record(path).spec, tomllib.loads(toml)):
        with RecordWriter(path) as record:
            record.write_spec(toml, replace=True)


def _conditions(path: Path, wanted: EvalSpec, step: int, reference: str) -> Conditions:
    """Return the conditions of an evaluation of the kept weights of a step."""
    file = weights_files(path).get(step)
    kept = precision_of(file) if file is not None and file.parent.name == EMA else "float32"
    return Conditions.of_spec(wanted.model_dump(), kept, reference)


def _known(record: Record, kept: Conditions, step: int) -> Mapping[str, Any]:
    """Return the replicates of each metric at a step; values of unrounded weights need no rounded ones."""
    found = dict(_replicates(record, kept, step))
    for name, number in _replicates(record, replace(kept, ema="float32"), step).items():
        found[name] = max(found.get(name, 0), number)
    return found


def _replicates(record: Record, conditions: Conditions, step: int) -> Mapping[str, Any]:
    """Return the number of replicates of each metric at a step; infinity for one that cannot be computed."""
    found: dict[str, Any] = {}
    for one in record.evaluations:
        if one.step == step and one.conditions == conditions:
            for name, row in one.metrics.items():
                found[name] = max(found.get(name, 0), len(row.get("replicates", [0])))
            found |= dict.fromkeys(one.errors, float("inf"))
    return found


def _with_metrics(spec: RunSpec, metrics: tuple[str, ...]) -> RunSpec:
    return spec.model_copy(update={"eval": spec.eval.model_copy(update={"metrics": metrics})})


def _listed(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:8]))
    return f"{shown}, ..." if len(steps) > 8 else shown
