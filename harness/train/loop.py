"""The training loop, the same for every method, from the data of a step to its checkpoint.

To resume a run that was stopped or killed, rerun its command.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.assembly.batch_split import check_batch_split
from harness.assembly.build import backbone_config
from harness.assembly.run_folder import run_folder
from harness.config.evaluation_spec import EvalSpec
from harness.config.spec import RunSpec
from harness.data.dataset import Dataset
from harness.data.feed import MicroBatches
from harness.data.found import check_labels, found_in
from harness.data.open import open_dataset, split
from harness.encoders.cached import check_cached
from harness.errors import RunStopped, UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.kept_features import ignore
from harness.files.progress import announced
from harness.records.checkpoint_files import CHECKPOINTS
from harness.records.early_end import EndRule
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from harness.runtime.distributed import World, join, world_size
from harness.runtime.environment import prepare
from harness.runtime.fsdp import full_tensor
from harness.text.captions import Note, open_captions
from harness.train.early_end import EndWatch, check_rule
from harness.train.extension import Goal, goal_of
from harness.train.fallback import note_missing, set_aside
from harness.train.gradient_log import GradientLog
from harness.train.journal import Journal, Progress, StepResult, finish_bookkeeping
from harness.train.later_evaluations import measure_missing, missing_evaluations
from harness.train.objective import Objective, with_encoder_features
from harness.train.optimizer import check_optimizer
from harness.train.prefetch import prefetch, prepare_batches
from harness.train.schedule import ema_decay, set_learning_rate
from harness.train.signals import StoppedBySignal, stop_signals
from harness.train.start import (
    check_same_data,
    check_same_weights,
    describe_start,
    encoder_weights,
    open_evaluator,
    text_weights,
    threads_of_run,
    write_robot_layout,
)
from harness.train.state import Run, build_run, restore_run, update_ema


def train(
    spec: RunSpec,
    out: Path,
    progress: Progress,
    evaluations: Sequence[EvalSpec] = (),
    rule: EndRule | None = None,
) -> Path:
    """Train a spec to its last step in its folder in `out`, and return the folder.

    `rule` ends it early, at the evaluation with which its targets are crossed for good. Then measure what the
    record lacks of the spec's evaluation, and of further `evaluations`. A finished run is continued if the
    spec has more steps, and returned at once if nothing is missing. Raises `UserError` for a user's mistake,
    `RunStopped` for a loss that is not finite, `StoppedBySignal` after a signal.
    """
    path = run_folder(out, spec)
    check_rule(rule, spec)
    check_batch_split(spec, world_size())
    check_cached(spec)
    check_optimizer(spec)
    prepare(threads_of_run(spec, Record(path), progress))
    # Before the ranks join, because rank 0 changes the directory afterwards.
    goal = goal_of(path, spec, rule)
    with join(spec.runtime.device) as world:
        if not goal.finished:
            _train_recorded(goal, world, progress)
        variants = [goal.spec, *(goal.spec.model_copy(update={"eval": also}) for also in evaluations)]
        asked = [one for variant in variants for one in variant.by_guidance]
        if goal.finished and not any(missing_evaluations(path, one) for one in asked):
            progress.note(f"run {path.name} is already finished")
        measure_missing(path, variants, world, progress)
    return path


def _train_recorded(goal: Goal, world: World, progress: Progress) -> None:
    """Train a run with its record on rank 0, and without one on the others."""
    if not world.main:
        _train(goal, world, None, progress)
        return
    # Before anything is written.
    dataset = _suitable_data(goal.spec, progress) if goal.recorded is None else None
    with RecordWriter(goal.path) as record:
        try:
            record.write_spec(goal.spec.to_toml(), replace=goal.recorded is not None)
            _train(goal, world, record, progress, dataset)
        except StoppedBySignal:
            raise
        except RunStopped as reason:
            record.fail({"reason": str(reason)})
            raise
        except OSError as error:
            raise UserError(
                f"cannot write to {goal.path}: {error.strerror}; the same command continues"
            ) from error


def _suitable_data(spec: RunSpec, progress: Progress) -> Dataset:
    """Return the data set of a spec. Raises `UserError` for a spec that does not suit its data."""
    dataset = _opened(spec, progress.note)
    check_labels(dataset)
    backbone_config(spec, dataset)
    return dataset


def _opened(spec: RunSpec, note: Note) -> Dataset:
    with announced(note, f"opening the data {spec.data.root or spec.data.name}"):
        return open_dataset(spec.data)


def _train(
    goal: Goal, world: World, record: RecordWriter | None, progress: Progress, dataset: Dataset | None = None
) -> None:
    """Build a run, restore its newest checkpoint, and train it to the last step; its data may be open."""
    path, spec = goal.path, goal.spec
    from_step = f", from step {goal.recorded} to {spec.train.steps}" if goal.extends else ""
    progress.note(f"run {path.name}: {spec.method.name}, seed {spec.seed}{from_step}")
    note, begun = progress.note if world.main else ignore, Record(path)
    dataset = _opened(spec, note) if dataset is None else dataset
    check_same_data(begun, dataset.fingerprint)
    check_labels(dataset)
    note(found_in(dataset).line())
    sides = split(dataset, spec.data.held_out)
    mesh = world.mesh() if spec.runtime.shard else None
    with announced(note, "opening the encoders"):
        captions = open_captions(spec, dataset, world.device, note)
        run = build_run(spec, dataset, sides, world.device, mesh, path.name, captions)
    encoders = {encoder.name: encoder.sha256 for encoder in run.encoders}
    text = text_weights(captions.about() if captions else None)
    check_same_weights(begun, encoder_weights(encoders) | text, note)
    damaged = restore_run(run, path / CHECKPOINTS)
    # Every rank has read the checkpoints before the damaged ones are renamed.
    if not world.agrees(run.step):
        raise UserError(
            f"the processes read different checkpoints in {path / CHECKPOINTS} (this one that of step "
            f"{run.step}), for example because a file of a network disk is stale; rerun the same command"
        )
    if record is not None:
        write_robot_layout(path, dataset)
        set_aside(damaged, progress.note)
        note_missing(begun, damaged, run.step, progress.note)
    run.meter.restore(Record(path).seconds_at(run.step))
    evaluator = open_evaluator(spec, dataset, sides, world, begun, progress, captions)
    if record is not None:
        for encoder in run.encoders:
            if encoder.accuracy is not None:
                progress.note(f"encoder {encoder.name}: held-out accuracy {100 * encoder.accuracy:.1f} %")
            elif (r2 := getattr(encoder, "r2", None)) is not None:
                progress.note(f"encoder {encoder.name}: held-out R2 {r2:.3f}")
        about = {"steps": spec.train.steps, **describe_start(run, world, dataset, sides, evaluator)}
        if goal.rule is not None:
            about["ends_early"] = str(goal.rule)
        record.begin(about, after_step=run.step, keep=goal.is_kept)
        finish_bookkeeping(record, Record(path), run)
    progress.begin(run.step, spec.train.steps)
    evaluated = () if record is None else Record(path).trained_evaluations
    journal = Journal(run, world, record, progress, EndWatch.after(goal.rule, evaluated))
    training_loop(run, path, world, journal, evaluator)


def training_loop(run: Run, path: Path, world: World, journal: Journal, evaluator: Evaluator) -> None:
    """Train from the step after `run.step` to the last one, or to an early end; every rank calls it."""
    train, method, phase, device = run.spec.train, run.method, run.meter.phase, world.device
    objective = world.wrap(Objective(run), changing=run.spec.method.until is not None)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=train.precision == "bfloat16")
    # A run whose process died right before its early end trains no further.
    ended = journal.ends_early()
    steps = range(run.step + 1, run.step + 1 if ended else train.steps + 1)
    gradients, learned = GradientLog(run, world, autocast), list(run.learned.values())
    micro_batches = MicroBatches(steps, train.batch_size, train.accumulate, world.rank, world.size)
    batches = run.feed.batches(micro_batches, run.spec.data.workers)
    prepared = prepare_batches(batches, method, run.streams, pin=device.type == "cuda")

    with stop_signals() as signals, prefetch(prepared) as prepared, journal, ExitStack() as warmup:
        # The first step of a process compiles and allocates: all of its time is booked as warm-up.
        warmup.enter_context(run.meter.single("warmup"))
        for step in steps:
            losses: dict[str, Tensor] = {}
            for micro in range(train.accumulate):
                # Data and draws: samples, labels, noise, times and masks, prepared on a thread.
                with phase("data"):
                    batch, draw = next(prepared).to(device)

                # Encoder features, while the method aligns with an encoder.
                if run.spec.method.encodes(step):
                    with phase("encoder"), autocast():
                        batch = with_encoder_features(run, batch, draw)

                with phase("student"), world.accumulating(objective, last=micro == train.accumulate - 1):
                    # Loss: passes of the student and, for some methods, the teacher; the method's terms.
                    with autocast():
                        loss, parts = objective(batch, draw)

                    # Backward: gradients are summed over micro-batches; the last one averages over ranks.
                    (loss / train.accumulate).backward()

                # Log of the separate gradients, at the same weights and draws; it changes nothing.
                if gradients.due(step):
                    gradients.add(batch, draw)
                for name, value in {"loss": loss, **parts}.items():
                    losses[name] = losses.get(name, 0) + value.detach() / train.accumulate

            with phase("optimizer"):
                # Clip.
                grad_norm = full_tensor(nn.utils.clip_grad_norm_(learned, train.clip))

                # Optimizer.
                learning_rate = set_learning_rate(run.optimizer, train, step)
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)

            # EMA: the teacher of the next step and the network that is evaluated.
            with phase("ema"):
                update_ema(run.ema, run.model, ema_decay(run.spec.ema, step))
                method.after_step(run.student, step)
            warmup.close()
            run.step = step

            last = step == train.steps
            evaluates = last or step % run.spec.eval.every == 0
            saves = last or step % train.checkpoint_every == 0
            # Ranks agree on a stop by an exchange, so they do it only every `log_every` steps.
            asks = world.size == 1 or step % train.log_every == 0
            stopping = asks and world.any(bool(signals))

            # Log.
            result = StepResult(step, losses, grad_norm, learning_rate, gradients.take(step))
            journal.add(result, write=evaluates or saves or stopping)

            # Evaluation.
            if evaluates:
                journal.evaluation(evaluator)
                journal.keep_weights(path)
                ended = not last and journal.ends_early()

            # Checkpoint.
            if saves or stopping or ended:
                journal.checkpoint(path / CHECKPOINTS, scheduled=saves)
                world.wait()
            if ended:
                break
            if stopping and not last:
                raise StoppedBySignal(f"stopped at step {step} of {train.steps}; the same command continues")
        journal.finish()
