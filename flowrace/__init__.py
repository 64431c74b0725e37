"""The Python API of flowrace: the commands as functions, for notebooks and scripts.

```python
import flowrace

flowrace.evaluation_table("runs/digits")            # records as pandas tables
race = flowrace.read_race("runs/digits", target=8)  # curves, crossings, speed-ups with intervals
flowrace.speedup_table(race)
spec = flowrace.load_spec("digits", ["method.name=repa"])
run = flowrace.train(spec)                          # resumes if the run exists
```

A function and the command of the same purpose run the same code, so both give the same numbers. The import
is instant, because PyTorch, pandas and MLflow are imported by the functions that need them. A mistake in the
arguments raises `harness.errors.UserError` with one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.backbone.network import Backbone
    from harness.config.spec import RunSpec
    from harness.costs.estimate import Estimate
    from harness.evaluation.result import Result
    from harness.evaluation.samples.score import Scores
    from harness.records.record import Record
    from harness.rollouts.rollout import RolledOut
    from harness.train.journal import Progress
    from metrics.value import Value
    from reports.analysis.success import Comparison
    from reports.audit.audit import Audit
    from reports.pages.page import WrittenReport
    from reports.race.race import Race
    from reports.stats.crossing import Crossing
    from reports.stats.curves import Curve
    from reports.stats.speedup import Speedup, Time
    from sweeps.plan.plan import PlannedRun

__all__ = [
    "crossing",
    "crossing_table",
    "draw_samples",
    "estimate_cost",
    "evaluate_later",
    "evaluate_run",
    "evaluation_table",
    "find_runs",
    "finetune",
    "fit_curve",
    "gradient_table",
    "judge_claims",
    "load_model",
    "load_spec",
    "measure",
    "plan_study",
    "read_race",
    "rollout",
    "run_table",
    "score_samples",
    "speedup",
    "speedup_table",
    "success",
    "train",
    "training_table",
    "write_report",
]

Location = str | Path
"""A file or a folder."""


def find_runs(*folders: Location) -> list[Record]:
    """Find every run directory in or below the folders, sorted by path.

    A `Record` has `id`, `spec`, `status`, `events` and more; files are read when a field is first used.
    Raise `UserError` if a folder does not exist.

    >>> [run.status for run in flowrace.find_runs("runs/last")]
    ['done', 'done', 'done', 'done']
    """
    from harness.records.record import find_records

    return find_records(*map(Path, folders))


def run_table(*folders: Location) -> pd.DataFrame:
    """Load one row per run: `run`, `method`, `seed`, `status`, `step`, `path`, and its spec by dotted path.

    The command is `flowrace export DIR --table runs`. Raise `UserError` if a folder does not exist.

    >>> flowrace.run_table("runs/last")[["method", "seed", "train.steps"]].values.tolist()[0]
    ['flow', 0, 12]
    """
    from harness.records import tables

    return tables.run_table(find_runs(*folders))


def training_table(*folders: Location) -> pd.DataFrame:
    """Load one row per logged step: `loss` and its parts `losses.*`, `grad_norm`, `learning_rate`, and costs.

    Costs are totals since step 0: `images`, `flops` (counted), `seconds` (training phases only; each phase is
    `seconds.*`). The command is `flowrace export DIR --table training`.

    >>> curve = flowrace.training_table("runs/last").groupby("method")["loss"].last()
    >>> list(curve.index)
    ['flow', 'self_flow']
    """
    from harness.records import tables

    return tables.training_table(find_runs(*folders))


def evaluation_table(*folders: Location) -> pd.DataFrame:
    """Load one row per run, step and metric: `mean`, `low`, `high` (95 %), `n`, `protocol`, and costs.

    The costs are those of `training_table`.

    Compare values of one `protocol` only. The command is `flowrace export DIR --table evaluations`.

    >>> table = flowrace.evaluation_table("runs/last")
    >>> sorted(table["metric"].unique())
    ['fd:local', 'precision:local', 'recall:local']
    """
    from harness.records import tables

    return tables.evaluation_table(find_runs(*folders))


def gradient_table(*folders: Location) -> pd.DataFrame:
    """Load one row per reading of the gradients of flow loss and alignment (`train.log_gradients_every`).

    `share`, `cosine` and `norms.*` are those of the network, `reached.*` those of the blocks that alignment
    reaches, and `features.*` are norms by layer. The command is `flowrace export DIR --table gradients`.

    >>> flowrace.gradient_table("runs/last").empty
    True
    """
    from harness.records import tables

    return tables.gradient_table(find_runs(*folders))


def read_race(
    *folders: Location,
    metric: str | None = None,
    target: float | str | None = None,
    baseline: str | None = None,
    labels: Mapping[str, str] | None = None,
    across: str | None = None,
    protocol: str | None = None,
) -> Race:
    """Read the runs of a race and compute fitted curves, crossings of the target, mean times and speed-ups.

    Arguments that are not given come from the study. A target is a number or a rule: `"baseline@400"`, or
    `"90%"` of the baseline's way to its final value. The default is the lowest value that every run reaches.
    `protocol` chooses the conditions of evaluations, such as `guidance=1.5`, and `across` is `pooled` or
    `cells`.
    `race.runs` hold `curve` and `crossing`; `race.speedups[axis, arm]` has `estimate`, `low`, `high` (95 %)
    and `n`. Axes: steps, images, flops, seconds, gpu_seconds. The command is `flowrace report`. Raise
    `UserError` for folders without runs and unknown names.

    >>> race = flowrace.read_race("runs/last", target=134.5)
    >>> round(race.speedups["steps", "self_flow"].estimate, 2)
    0.83
    """
    from reports.race.race import read_race

    return read_race(
        [Path(folder) for folder in folders],
        metric=metric,
        target=target,
        baseline=baseline,
        labels=labels,
        across=across,
        protocol=protocol,
    )


def speedup_table(race: Race) -> pd.DataFrame:
    """Tabulate mean times to target and speed-ups over the baseline, one row per axis and arm.

    The columns are those of the report's CSV.

    An end of an interval that is open because of censored runs, or missing because of too few seeds, is NaN.

    >>> table = flowrace.speedup_table(flowrace.read_race("runs/last"))
    >>> table.query("axis == 'steps' and method == 'self_flow'")["speedup"].round(2).tolist()
    [0.83]
    """
    import pandas as pd

    from reports.analysis.rows import ARM_COLUMNS, arm_rows

    return pd.DataFrame(arm_rows(race), columns=pd.Index(ARM_COLUMNS))


def crossing_table(race: Race) -> pd.DataFrame:
    """Tabulate the crossing of the target of each run on every axis, one row per run, missing runs included.

    The columns are those of the report's CSV. `censored` is `right` for a run that never crossed the target
    (its times are its budget) and `left` for one that was below it at its first evaluation.

    >>> flowrace.crossing_table(flowrace.read_race("runs/last"))["steps"].round(1).tolist()
    [6.9, 9.2, 9.7, 9.3]
    """
    import pandas as pd

    from reports.analysis.rows import RUN_COLUMNS, run_rows

    return pd.DataFrame(run_rows(race), columns=pd.Index(RUN_COLUMNS))


def fit_curve(steps: Sequence[float], values: Sequence[float]) -> Curve:
    """Fit a non-increasing curve to evaluations of a metric that is better when lower.

    The fit is an isotonic regression of the log value.

    `steps` (n,) increase, `values` (n,) are positive; step 0 is left out. The result has `steps`, `measured`,
    `fitted`. Raise `UserError` for other input.

    >>> flowrace.fit_curve([100, 200, 400], [9.0, 4.0, 4.0]).fitted.round(1).tolist()
    [9.0, 4.0, 4.0]
    """
    from reports.stats.curves import fit

    return fit(steps, values)


def crossing(curve: Curve, target: float) -> Crossing:
    """Find the step at which a fitted curve crosses a target, linear in log step and log value.

    `censored` is None, `right` (never reached) or `left` (reached at the first evaluation).

    >>> found = flowrace.crossing(flowrace.fit_curve([100, 400], [8.0, 2.0]), target=4.0)
    >>> round(found.step), found.censored
    (200, None)
    """
    from reports.stats.crossing import crossing

    return crossing(curve, target)


def speedup(
    baseline: Mapping[int, float | Time], candidate: Mapping[int, float | Time], confidence: float = 0.95
) -> Speedup:
    """Compute the speed-up of a candidate over a baseline, with Student's t interval over pairs of seeds.

    Arguments map seed -> time, in any unit (steps, FLOPs, hours). With fewer than two shared seeds the
    interval is Welch's, and None for one run per arm. A censored time is `reports.stats.speedup.Time(value,
    "right")` instead of a number.

    >>> gain = flowrace.speedup({0: 400, 1: 420, 2: 380}, {0: 200, 1: 215, 2: 185})
    >>> f"{gain.estimate:.2f} [{gain.low:.2f}, {gain.high:.2f}] {gain.direction}"
    '2.00 [1.88, 2.13] faster'
    """
    from reports.stats.speedup import Time, speedup

    base, cand = (
        {seed: time if isinstance(time, Time) else Time(time) for seed, time in arm.items()}
        for arm in (baseline, candidate)
    )
    return speedup(base, cand, confidence=confidence)


def judge_claims(claims: Sequence[Location], *sources: Location) -> list[Audit]:
    """Judge the claims of TOML files by runs: each is supported, refuted or inconclusive, with its reasons.

    `sources` are folders of runs, CSV files or MLflow stores (`sqlite:///mlflow.db`). Several claims are one
    family (Holm). The command is `flowrace audit`. Raise `UserError` for a file or source that cannot be
    read, and for unknown arms.

    >>> found, = flowrace.judge_claims(["claim.toml"], "runs/last")
    >>> found.verdict, found.n_pairs
    ('inconclusive', 2)
    """
    from reports.audit import judge_files

    return judge_files.judge_claims([Path(file) for file in claims], [str(source) for source in sources])


def write_report(
    *folders: Location,
    output: Location = "report.html",
    metric: str | None = None,
    target: float | str | None = None,
    baseline: str | None = None,
) -> WrittenReport:
    """Write a report: one HTML file that opens offline, and three CSV files next to it.

    The result has their paths and the `report` with its verdict. The command is `flowrace report`. Raise
    `UserError` if `output` is a file that no report wrote.

    >>> flowrace.write_report("runs/last", output="report.html").csv.name
    'report.csv'
    """
    from reports.pages.page import write_report

    paths = [Path(folder) for folder in folders]
    return write_report(paths, Path(output), metric=metric, target=target, baseline=baseline)


def load_spec(source: Location, overrides: Sequence[str] = ()) -> RunSpec:
    """Build the resolved spec of a preset, a TOML file or a run directory.

    Overrides are `field.path=value`, with the value in TOML. `spec.id` is the run id. Raise `UserError` for
    unknown fields and values out of range, with the nearest match.

    >>> flowrace.load_spec("digits", ["method.name=repa", "seed=1"]).id
    '450e48dd3df8'
    """
    from harness.assembly.resolve import load_spec

    return load_spec(str(source), overrides)


def plan_study(source: Location, overrides: Sequence[str] = ()) -> list[PlannedRun]:
    """List the runs of a packaged study or of a TOML file, without starting any.

    Each has `id`, `label`, `values` and `spec`. The command is `flowrace sweep STUDY --dry-run`.

    >>> [run.label for run in flowrace.plan_study("digits")][:3]
    ['flow seed 0', 'repa seed 0', 'self_flow seed 0']
    """
    from sweeps.plan.plan import make_plan
    from sweeps.plan.study import load_study

    return make_plan(load_study(str(source), overrides)).runs


def estimate_cost(spec: RunSpec, devices: int = 1, flops_per_second: float | None = None) -> Estimate:
    """Count the FLOPs and the memory (bytes) of a run before it starts.

    With the speed of one device, the result also has seconds. The command is `flowrace cost`. Raise
    `UserError` if `devices` do not divide the batch.

    >>> found = flowrace.estimate_cost(flowrace.load_spec("digits"), flops_per_second=1e10)
    >>> found.cost.total == found.cost.step * found.cost.steps, found.seconds(10**10)
    (True, 1.0)
    """
    from harness.costs.estimate import estimate

    return estimate(spec, devices, flops_per_second)


def train(spec: RunSpec, out: Location = "runs", progress: Progress | None = None) -> Record:
    """Train a spec in this process, into `out/<run id>`; resume an unfinished run, return a finished one.

    The first call sets the threads and deterministic kernels of this process, on which the bits depend.
    `progress` is a display of `harness.train.progress` (default: `Quiet`). The command is `flowrace run`.
    Raise `UserError` for mistakes and `RunStopped` for a loss that is not finite.

    >>> small = ["backbone.size=pico", "train.steps=4", "eval.every=4"]
    >>> small += ["eval.samples=16", "eval.sampler_steps=2"]
    >>> run = flowrace.train(flowrace.load_spec("digits", small), out="runs/mine")
    run ...
    >>> run.status, run.last_step
    ('done', 4)
    """
    from harness.data.pin import pinned
    from harness.records.record import Record
    from harness.train.loop import train
    from harness.train.progress import Quiet

    return Record(train(pinned(spec), Path(out), progress or Quiet()))


def finetune(
    source: Location,
    task: str,
    demos: Location,
    out: Location = "runs",
    *,
    step: int | None = None,
    from_scratch: bool = False,
    frozen: bool = False,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Record:
    """Fine-tune a run into a policy on demonstrations of a task, into `out/<run id>`; resume it likewise.

    `from_scratch` begins with initial weights, and then `source` may be a preset. `frozen` trains the layers
    of state and actions alone. The command is `flowrace finetune`. Raise `UserError` for a run without
    weights, and for settings that contradict each other.

    >>> small = ["train.steps=1", "backbone.size=1x16x1", "backbone.patch=16", "data.frames=1"]
    >>> small += ["eval.samples=2", "eval.sampler_steps=1", "runtime.threads=1", "data.held_out=0.5"]
    >>> policy = flowrace.finetune(
    ...     "demos", "open-and-place", "demos", from_scratch=True, overrides=small
    ... )
    run ...
    >>> policy.status, policy.spec["data"]["task"]
    ('done', 'open-and-place')
    """
    from harness.policy.finetune import finetune_spec

    spec = finetune_spec(
        str(source),
        Path(demos),
        task,
        step=step,
        from_scratch=from_scratch,
        frozen=frozen,
        overrides=overrides,
    )
    return train(spec, out, progress)


def rollout(
    policy: Location,
    task: str,
    n: int = 50,
    *,
    out: Location | None = None,
    step: int | None = None,
    batch: int = 50,
    device: str | None = None,
) -> RolledOut:
    """Let a policy act in a task at its first n starts; resume an interrupted rollout.

    `policy` is a fine-tuned run, or `expert`, `random` or `replay:DEMOS`. The result has the `folder` of the
    record, and `results` (success, stages, largest reward) with intervals (95 %) and n. The command is
    `flowrace rollout`. Raise `UserError` for an unknown task, and for a policy of another one.

    >>> found = flowrace.rollout("expert", "open-and-place", n=4)
    >>> found.results.success.mean, found.results.success.n, list(found.results.stages)
    (1.0, 4, ['opened', 'placed', 'both'])
    """
    from harness.rollouts.named import named_rollout

    place = None if out is None else Path(out)
    return named_rollout(str(policy), task, n, place, step=step, batch=batch, device=device)


def success(
    first: Sequence[Location], second: Sequence[Location], task: str | None = None
) -> list[Comparison]:
    """Compare the recorded success of two arms start by start: in all stages, then in each.

    An arm is runs or folders of rollouts, one for each training seed. Each result has the `difference` with
    its interval, the exact McNemar test of each pair of networks (`pairs`) and a `direction`. The command is
    `flowrace success`. Raise `UserError` for arms without a common start or training seed.

    >>> expert, idle = (flowrace.rollout(name, "open-and-place", n=8) for name in ("expert", "random"))
    >>> found = flowrace.success([expert.folder], [idle.folder])[0]
    >>> found.name, found.difference.mean, found.pairs[0].p, found.direction
    ('success', 1.0, 0.0078125, 'more')
    """
    from reports.analysis.success import compare, read_arm

    arms = [read_arm([Path(folder) for folder in arm], task) for arm in (first, second)]
    return compare(*arms)


def load_model(run: Location, step: int | None = None) -> Backbone:
    """Load the EMA network of a run at a step, or of its newest checkpoint, in evaluation mode.

    `model(x, times, y)` maps x (B, C, H, W) in [-1, 1] to a velocity. Raise `UserError` if there is no such
    checkpoint.

    >>> run, = flowrace.find_runs("runs/mine")
    >>> flowrace.load_model(run.path).config.x_shape
    (1, 8, 8)
    """
    from harness.train.trained_run import model_of_run, spec_of_run

    return model_of_run(Path(run), spec_of_run(Path(run), ()), step)[1]


def draw_samples(
    run: Location,
    count: int,
    *,
    step: int | None = None,
    classes: Sequence[int] = (),
    prompts: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Tensor:
    """Draw samples from a run: uint8 (count, C, H, W) on the CPU. Sample i depends only on `eval.seed` and i.

    `classes` restricts the labels. A run on captions takes `prompts` instead: sample i has prompt i mod n.
    `overrides` change `eval.*` and `runtime.*`. The command is `flowrace sample`. Raise `UserError` for a
    class or a step that the run does not have, and for prompts of a run on labels.

    >>> run, = flowrace.find_runs("runs/mine")
    >>> flowrace.draw_samples(run.path, 5, classes=[3, 7]).shape
    torch.Size([5, 1, 8, 8])
    """
    import torch

    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare
    from harness.train.trained_run import drawing_of_run, spec_of_run

    path, spec = Path(run), spec_of_run(Path(run), (*overrides, f"eval.samples={max(count, 2)}"))
    prepare(spec.runtime.threads)
    device = pick_device(spec.runtime.device)
    drawing = drawing_of_run(path, spec, step, count, tuple(classes), device, tuple(prompts))
    return torch.cat(list(drawing.batches()))


def evaluate_run(run: Location, step: int | None = None, overrides: Sequence[str] = ()) -> Result:
    """Evaluate a checkpoint of a run (default: the newest); `overrides` such as `eval.samples=2000` apply.

    `result.rows` maps metric -> {mean, low, high, n}. The record is unchanged. The command is `flowrace eval
    RUN --no-record`; `evaluate_later` records.

    >>> run, = flowrace.find_runs("runs/mine")
    >>> flowrace.evaluate_run(run.path).rows["fd:local"]["n"]
    16
    """
    from harness.train.trained_run import evaluate_run, spec_of_run

    return evaluate_run(Path(run), spec_of_run(Path(run), tuple(overrides)), step)[1]


def evaluate_later(
    run: Location,
    *,
    metrics: Sequence[str] = (),
    guidance: Sequence[float] = (),
    steps: str = "",
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measure kept weights of a run by what its record lacks, record it, and list the answers.

    Each answer has `step`, `conditions`, `metrics` and `protocol`. `steps` is `all`, `last`, `around-target`
    or for example `400,800`. Nothing is trained, and recorded values are not measured again. The command is
    `flowrace eval RUN`. Raise `UserError` for unknown metrics, and for steps whose weights were not kept.

    >>> run, = flowrace.find_runs("runs/mine")
    >>> rows = flowrace.evaluate_later(run.path, metrics=["fd:local"], guidance=[1, 2], steps="last")
    >>> [row["conditions"]["guidance"] for row in rows]
    [1.0, 2.0]
    """
    from harness.cli.evaluate import measure_run
    from harness.train.evaluation_questions import Question

    question = Question(tuple(metrics), tuple(map(float, guidance)), steps, tuple(overrides))
    measure_run(Path(run), question)
    return question.answers(Path(run))


def score_samples(
    samples: Location,
    against: Location,
    metrics: Sequence[str] = ("fd",),
    *,
    extractor: str = "inception",
    weights: Location | None = None,
    device: str = "cpu",
) -> Scores:
    """Score a folder, .npz, .npy or .parquet of samples against a reference.

    A reference is real samples, a data set or saved statistics. `scores.metrics` maps name -> mean, low,
    high, n and protocol. The command is `flowrace eval SAMPLES --against REFERENCE`. Raise `UserError` for
    anything that cannot be read or measured.

    >>> scores = flowrace.score_samples("digits", "digits", ["fd"], extractor="local")
    >>> round(scores.metrics["fd:local"].mean, 6)
    0.0
    """
    from harness.evaluation.samples.score import Request, score

    file = None if weights is None else Path(weights)
    return score(Request(str(samples), str(against), tuple(metrics), extractor, file, device=device))


def measure(
    metrics: Sequence[str], real: Any, fake: Any, *, logits: Any = None, labels: Any = None
) -> dict[str, Value]:
    """Compute metrics from features, NumPy arrays or tensors: `real` (M, d), `fake` (N, d).

    Names: fd, fd_infinity, kid, cmmd, pr (precision, recall), prdc, memorisation; with `logits` (N, K) of the
    samples also is, is_shuffled, and with `labels` (N,) accuracy. Each value has `mean`, `low`, `high` (None
    without an interval) and `n`. Raise `metrics.MetricError` for unknown names and features that cannot be
    measured.

    >>> import numpy as np
    >>> real, fake = np.random.default_rng(0).normal(size=(2, 400, 8))
    >>> sorted(flowrace.measure(["fd", "pr"], real, fake))
    ['fd', 'precision', 'recall']
    """
    from metrics.arrays import as_features
    from metrics.suite import Side, chosen, measure

    rows = [as_features(given, name) for given, name in ((real, "real"), (fake, "generated"))]
    outputs = None if logits is None else as_features(logits, "logits")
    sides = Side(rows[0], rows[0]), Side(rows[1], rows[1], logits=outputs, labels=labels)
    return measure(chosen(metrics), *sides)
