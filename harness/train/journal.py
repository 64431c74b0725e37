"""The reports of a training run to its record and its user: losses, evaluations, checkpoints.

In the training loop, only this module waits for the device.
"""

from __future__ import annotations

import math
import resource
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.errors import RunStopped
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.result import Result
from harness.records.checkpoint_files import EMA, checkpoints, path_of, prune, scheduled
from harness.records.evaluations import Conditions, without_parts
from harness.records.events import Event
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from harness.runtime.distributed import World
from harness.train.early_end import EndWatch
from harness.train.gradient_log import GradientReading
from harness.train.recorded_evaluation import record_evaluation
from harness.train.state import Run, checkpoint_writer, keep_ema


class Progress(Protocol):
    """The display of a run in progress."""

    def note(self, message: str) -> None: ...
    def begin(self, step: int, steps: int) -> None: ...
    def step(self, step: int, loss: float) -> None: ...

    # Any: a metric's row as in the record.
    def evaluated(self, step: int, metrics: dict[str, Any]) -> None: ...


class StepResult(NamedTuple):
    """The result of one step; tensors stay on the device until the record is written."""

    step: int
    losses: dict[str, Tensor]
    grad_norm: Tensor
    learning_rate: float
    gradients: GradientReading | None = None


class Journal:
    """The record and display of a run; only rank 0 has a record.

    As a context manager, it waits for the last checkpoint.
    """

    def __init__(
        self,
        run: Run,
        world: World,
        record: RecordWriter | None,
        progress: Progress,
        watch: EndWatch | None = None,
    ) -> None:
        self.run, self.world, self.record, self.progress, self.watch = run, world, record, progress, watch
        self._pending: list[StepResult] = []
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[list[Event]] | None = None
        self._held: list[Event] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.settle()
        finally:
            self._writer.shutdown()

    def settle(self) -> None:
        """Wait for the checkpoint being written; raises the error if writing failed."""
        if self._saving is not None and self.record is not None:
            saving, self._saving = self._saving, None
            self.record.append(*saving.result())
            self.record.seal()
            held, self._held = self._held, []
            self.record.append(*held)

    def add(self, result: StepResult, *, write: bool) -> None:
        """Add a step. Every `log_every` steps, or with `write`, check all losses and write the due events.

        Raises `RunStopped` for a loss that is not finite.
        """
        self._pending.append(result)
        every = self.run.spec.train.log_every
        if not write and result.step % every:
            return
        names = list(result.losses)
        rows = torch.stack([torch.stack([*r.losses.values(), r.grad_norm.detach()]) for r in self._pending])
        values = self.world.mean(rows.float()).tolist()
        # On every rank, because the timed spans of a rank without a record would accumulate.
        self.run.meter.settle()
        steps = self.run.spec.train.steps
        for past, row in zip(self._pending, values, strict=True):
            if not all(map(math.isfinite, row)):
                raise self._not_finite(past.step)
            if past.step % every == 0 or past.step == steps:
                self._train_event(past, dict(zip(names, row, strict=False)), row[-1])
            if past.gradients is not None and self.record is not None:
                self._append("gradients", past.step, past.gradients.fields())
        self._pending.clear()

    def evaluation(self, evaluator: Evaluator) -> None:
        """Evaluate the EMA network; write the event and a sample grid.

        Further scales of guidance are recorded as later evaluations are.
        """
        measured = evaluator.each(self.run.ema)
        for number in range(1 + len(evaluator.further)):
            with self.run.meter.phase("eval"):
                under, result = next(measured)
                # Only rank 0 computes metrics; the other ranks book the wait as evaluation too.
                self.world.wait()
            if result is None or self.record is None:
                continue
            if number == 0:
                self._evaluated(result)
            else:
                self._evaluated_further(self.record.path, under, result)

    def _evaluated(self, result: Result) -> None:
        """Write the event of an evaluation under the run's own conditions, and its sample grid."""
        if self.record is None:
            return
        result.save_grid(self.record.path / "samples" / f"step-{self.run.step:08d}.png")
        values = result.rows
        failed = {"errors": result.errors} if result.errors else {}
        self._event("eval", self.run.step, metrics=values, protocol=result.protocol, **failed)
        if self.watch is not None:
            self.watch.add(self.run.step, values)
        self.progress.evaluated(self.run.step, values)
        self._note_errors(result, f"step {self.run.step}")

    def _evaluated_further(self, path: Path, evaluator: Evaluator, result: Result) -> None:
        """Append an evaluation under another guidance to the later ones of the run."""
        spec = self.run.spec.model_copy(update={"eval": evaluator.spec})
        reference = evaluator.about.get("reference", "")
        # The EMA weights are measured before `keep_weights` rounds them.
        conditions = Conditions.of_spec(spec.eval.model_dump(), reference=reference)
        record_evaluation(path, spec, self.run.step, conditions, result, evaluator)
        under = f"guidance {evaluator.spec.scale:g}"
        shown = {f"{name} ({under})": row for name, row in without_parts(result.rows).items()}
        self.progress.evaluated(self.run.step, shown)
        self._note_errors(result, f"step {self.run.step}, {under}")

    def _note_errors(self, result: Result, where: str) -> None:
        for name, reason in result.errors.items():
            self.progress.note(f"{where}: {name} could not be computed: {reason}")

    def ends_early(self) -> bool:
        """Return whether the run has reached its early end; every rank calls it."""
        if self.watch is None:
            return False
        # Only rank 0 has the values.
        return self.world.any(self.watch.end is not None)

    def keep_weights(self, run: Path) -> None:
        """Keep the EMA weights of an evaluation for later ones, if the spec asks for it."""
        if self.run.spec.train.keep_checkpoints == "evaluations":
            with self.run.meter.phase("checkpoint"):
                keep_ema(self.run, run / EMA, writes=self.record is not None)

    def checkpoint(self, folder: Path, *, scheduled: bool) -> None:
        """Copy the state, and save it on a thread after all earlier events are on the disk.

        Its event and all later ones are written when the file is complete. An unscheduled checkpoint, from a
        stop, has no event, so that the record equals that of an unbroken run.
        """
        with self.run.meter.phase("checkpoint"):
            self.settle()
            save = checkpoint_writer(self.run, folder, writes=self.record is not None)
        if (record := self.record) is None:
            return
        step, seconds = self.run.step, self._totals(self.run.step)["seconds"]
        lines = [_checkpoint_event(self.run, path_of(folder, step).name)] if scheduled else []

        def write() -> list[Event]:
            record.sync()
            save()
            record.write_clock(step, seconds)
            return lines

        self._saving = self._writer.submit(write)

    def finish(self) -> None:
        """Mark the run as done and record its total cost, and its early end."""
        self.settle()
        if self.record is not None:
            steps = self.run.spec.train.steps
            early = self.watch is not None and self.run.step < steps
            ended = self.watch.early_end(steps, self._totals(steps)) if self.watch and early else None
            usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            peaks = self.run.meter.peaks
            memory: dict[str, Any] = {
                "peak_memory_bytes": usage,
                "peak_device_memory_bytes": max(peaks.values(), default=None),
            }
            if peaks:
                memory["peak_device_memory_bytes_by_phase"] = peaks
            if ended is not None:
                memory["ended"] = ended.row()
                self.progress.note(f"run {self.record.path.name} {ended}")
            self.record.finish({**self._totals(self.run.step), **memory})

    def _train_event(self, result: StepResult, losses: dict[str, float], norm: float) -> None:
        if self.record is None:
            return
        loss = losses.pop("loss")
        self._event(
            "train",
            result.step,
            loss=loss,
            losses=losses,
            grad_norm=norm,
            learning_rate=result.learning_rate,
        )
        self.progress.step(result.step, loss)

    # Any: the fields of an event, which are JSON.
    def _event(self, kind: str, step: int, **content: Any) -> None:
        totals = self._totals(step)
        del totals["images"]
        self._append(kind, step, content | totals)

    # Any: the fields of an event, which are JSON.
    def _append(self, kind: str, step: int, content: dict[str, Any]) -> None:
        event = {"kind": kind, "step": step, "images": step * self.run.spec.train.batch_size, **content}
        if self._saving is not None and self._saving.done():
            self.settle()
        if self._saving is not None:
            self._held.append(event)
        elif self.record is not None:
            self.record.append(event)

    def _totals(self, step: int) -> dict[str, Any]:
        images = step * self.run.spec.train.batch_size
        # What imported weights cost is unknown, and is not counted.
        before = self.run.cost.until(self.run.spec.start.step)
        return {
            "images": images,
            "flops": self.run.cost.until(step) - before,
            "seconds": _rounded(self.run.meter.settle()),
        }

    def _not_finite(self, step: int) -> RunStopped:
        self.settle()
        saved = checkpoints(self.record.path / "checkpoints") if self.record is not None else []
        last = f"the last good checkpoint is {saved[-1].name}" if saved else "there is no checkpoint yet"
        return RunStopped(
            f"the loss is not finite at step {step}; {last}. Nothing after that step was saved. "
            "Try a lower train.learning_rate or train.precision = 'float32'"
        )


def finish_bookkeeping(record: RecordWriter, before: Record, run: Run) -> None:
    """Finish the bookkeeping of a process that died right after writing the restored checkpoint: append its
    event and delete the checkpoints it replaced."""
    due = run.step > run.spec.start.step and scheduled(run.step, run.spec.train)
    if due and not any(event["step"] == run.step for event in before.of("checkpoint")):
        record.append(_checkpoint_event(run, path_of(Path(), run.step).name))
    record.seal()
    prune(before.path / "checkpoints", run.spec.train)


def _checkpoint_event(run: Run, file: str) -> Event:
    return {
        "kind": "checkpoint",
        "step": run.step,
        "images": run.step * run.spec.train.batch_size,
        "file": file,
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in sorted(seconds.items())}
