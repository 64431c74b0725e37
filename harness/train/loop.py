"""The training loop, the same for every objective, readable from top to bottom.

One step: global sample indices -> samples -> draws -> encoder features -> method.loss -> backward -> optimizer -> EMA ->
a line in the record. To continue a run that was stopped or killed, run the same command again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.assembly.batch_split import check_shares
from harness.config.spec import EmaSpec, RunSpec, TrainSpec
from harness.data.feed import Shares
from harness.data.open import open_dataset, split
from harness.encoders.base import described, view_of
from harness.encoders.cached import check_cached
from harness.errors import RunStopped, UserError
from harness.evaluation.evaluator import Evaluator
from harness.flow.batch import Batch, Draw, View
from harness.flow.student import Student
from harness.records.record import DONE, Record, RecordWriter
from harness.runtime.distributed import World, join
from harness.runtime.environment import describe, prepare
from harness.runtime.fsdp import whole
from harness.train import state as runs
from harness.train.journal import Journal, Progress, Taken, complete
from harness.train.prefetch import Fed, ahead, fed
from harness.train.state import Run


class Interrupted(RunStopped):
    """Stopped by a signal, behind a checkpoint."""

    exit_code = 130


def train(spec: RunSpec, out: Path, progress: Progress) -> Path:
    """Train a spec to its last step in `out/<run id>` and return that folder; a finished run returns at once.

    Raises `UserError` for what a user can mend, `RunStopped` for a loss that is not finite, `Interrupted` for a signal.
    """
    path = out / spec.id
    check_shares(spec, int(os.environ.get("WORLD_SIZE", "1")))
    check_cached(spec)
    prepare(_threads(spec, Record(path), progress))
    with join(spec.runtime.device) as world:
        if (path / DONE).exists():
            progress.note(f"run {spec.id} is finished already")
            return path
        if not world.main:
            _train(spec, path, world, None, progress)
            return path
        with RecordWriter(path) as record:
            try:
                record.write_spec(spec.to_toml())
                _train(spec, path, world, record, progress)
            except RunStopped as reason:
                if not isinstance(reason, Interrupted):
                    record.fail({"reason": str(reason)})
                raise
            except OSError as error:
                raise UserError(
                    f"cannot write to {path}: {error.strerror}; the same command continues"
                ) from error
    return path


def _train(spec: RunSpec, path: Path, world: World, record: RecordWriter | None, progress: Progress) -> None:
    """Build, restore, and go on to the last step."""
    progress.note(f"run {spec.id}: {spec.method.name}, seed {spec.seed}")
    dataset = open_dataset(spec.data)
    _check_same_data(Record(path), dataset.fingerprint)
    sides = split(dataset, spec.data.held_out)
    run = runs.build(spec, dataset, sides, world.device, world.mesh() if spec.runtime.shard else None)
    runs.restore(run, path / "checkpoints")
    run.meter.restore(Record(path).seconds_at(run.step))
    evaluator = Evaluator(spec.eval, dataset, sides.train, world.device, sides.held_out, world)
    if record is not None:
        for encoder in run.encoders:
            if encoder.accuracy is not None:
                progress.note(f"encoder {encoder.name}: held-out accuracy {100 * encoder.accuracy:.1f} %")
        about = {"data_fingerprint": dataset.fingerprint, "train_samples": len(sides.train)}
        about["params"] = sum(parameter.numel() for parameter in run.model.parameters())
        about["evaluation"] = evaluator.described(run.encoders)
        if run.encoders:
            about["encoders"] = [described(encoder) for encoder in run.encoders]
        record.begin(describe(world.device, world.size) | about, after_step=run.step)
        complete(record, Record(path), run)
    progress.begin(run.step, spec.train.steps)
    with _stop_signals() as stop:
        _loop(run, path, world, Journal(run, world, record, progress), evaluator, stop)


def _loop(
    run: Run, path: Path, world: World, journal: Journal, evaluator: Evaluator, stop: list[int]
) -> None:
    train, begun = run.spec.train, run.step
    objective = world.wrap(Objective(run), changing=run.spec.method.schedule.until is not None)
    shares = Shares(
        range(begun + 1, train.steps + 1), train.batch_size, train.accumulate, world.rank, world.size
    )
    batches = run.feed.batches(shares, run.spec.data.workers)
    items = fed(run, batches, shares, pin=world.device.type == "cuda")
    with ahead(items) as items, journal:
        while run.step < train.steps:
            # A process's first step compiles and allocates: it is booked as warm-up, whole.
            with run.meter.single("warmup") if run.step == begun else nullcontext():
                taken = _step(run, objective, items, world)
            run.step = taken.step
            last = run.step == train.steps
            evaluates = last or run.step % run.spec.eval.every == 0
            saves = last or run.step % train.checkpoint_every == 0
            asks = world.size == 1 or run.step % train.log_every == 0  # an exchange, so not at every step
            stopping = asks and world.any(bool(stop))
            journal.add(taken, write=last or evaluates or saves or stopping)
            if evaluates:
                journal.evaluation(evaluator)
            if saves or stopping:
                journal.checkpoint(path / "checkpoints", scheduled=saves)
                world.wait()
            if stopping and not last:
                raise Interrupted(f"stopped at step {run.step} of {train.steps}; the same command continues")
        journal.finish()


def _step(run: Run, objective: nn.Module, items: Iterator[Fed], world: World) -> Taken:
    train, phase, step = run.spec.train, run.meter.phase, run.step + 1
    losses: dict[str, Tensor] = {}
    for micro in range(train.accumulate):
        with phase("data"):
            batch, place, draw = next(items)
            batch, draw = batch.to(world.device), draw.to(world.device)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
            if run.spec.method.encodes(step):
                with phase("encoder"):
                    batch = replace(batch, views=_views(run, batch, place))
            with phase("student"), world.accumulating(objective, last=micro == train.accumulate - 1):
                total, parts = objective(batch, draw)
        with phase("student"), world.accumulating(objective, last=micro == train.accumulate - 1):
            (total / train.accumulate).backward()
        for name, value in {"loss": total, **parts}.items():
            losses[name] = losses.get(name, 0) + value.detach() / train.accumulate
    with phase("optimizer"):
        norm = whole(nn.utils.clip_grad_norm_(list(run.learned.values()), train.clip))
        learning_rate = set_learning_rate(run.optimizer, train, step)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    with phase("ema"):
        runs.update_ema(run.ema, run.model, ema_decay(run.spec.ema, step))
        run.method.after_step(run.student, step)
    return Taken(step, losses, norm, learning_rate)


def _views(run: Run, batch: Batch, place: np.ndarray) -> tuple[View, ...]:
    """What each encoder sees in a batch on the device."""
    needs = run.method.needs()
    seen = batch.x0 if batch.pixels is None else batch.pixels
    return tuple(
        view_of(encoder, place, seen, summary=needs.summary, attention=needs.attention)
        for encoder in run.encoders
    )


class Objective(nn.Module):
    """Student and method as one module, so that one wrapper sees every gradient."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.method = run.model, run.method
        self._student: Student = run.student

    def forward(self, batch: Batch, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        return tuple(self.method.loss(self._student, batch, draw))


def set_learning_rate(optimizer: torch.optim.Optimizer, train: TrainSpec, step: int) -> float:
    """Constant after a linear warm-up."""
    rate = train.learning_rate * min(1.0, step / train.warmup_steps if train.warmup_steps else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def ema_decay(ema: EmaSpec, step: int) -> float:
    """The decay at a step (1-based); with warm-up min(decay, (1 + step) / (10 + step))."""
    return min(ema.decay, (1 + step) / (10 + step)) if ema.warmup else ema.decay


def _check_same_data(record: Record, fingerprint: str) -> None:
    begun = next((start["data_fingerprint"] for start in record.environment), fingerprint)
    if begun != fingerprint:
        raise UserError(
            f"the data have changed since {record.path} began (fingerprint {begun}, now {fingerprint}); "
            "give it the original data, or use another --out"
        )


def _threads(spec: RunSpec, record: Record, progress: Progress) -> int:
    """A run keeps the thread count it began with: bits depend on it."""
    begun = next((start["threads"] for start in record.environment), None)
    if begun is not None and spec.runtime.threads not in (0, begun):
        progress.note(
            f"the run began with {begun} threads and keeps them, so that its numbers stay the same bit for bit"
        )
    return begun or spec.runtime.threads


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM asks the loop to stop behind its step; the second one acts at once."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
