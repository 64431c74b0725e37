"""The results of a search: its history, each method's best settings as a preset, and the study that audits
them."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config.spec import RunSpec
from harness.config.tables import set_path
from harness.files.csv_cells import inert
from harness.files.files import write_atomic, writing
from harness.records.flatten import flatten
from harness.records.study_folder import AUDIT, BEST, HISTORY
from metrics.intervals import student
from sweeps.plan.method_settings import restricted
from sweeps.plan.plan import make_plan
from sweeps.plan.study import Study, Tune, TuningCost
from sweeps.tune.trial_log import Trial, TrialLog
from sweeps.tune.tuner import TuningArm, TuningStudy, trial_runs


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the first trial with the lowest mean among those that ran on all seeds; None if every trial
    diverged."""
    complete = [trial for trial in trials if not trial.pruned and math.isfinite(trial.mean)]
    return min(complete, key=lambda trial: (trial.mean, trial.number), default=None)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of a mean over seeds; None for one seed.

    For the best trial it is optimistic, because the trial was selected by these values.
    """
    if len(values) < 2:
        return None
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def describe(tuning: TuningStudy, log: TrialLog) -> dict[str, Any]:
    """Return the results of a search as JSON data: each method's budget, what it spent, and its best
    trial."""
    methods = {arm.method: _described(tuning, log.trials(arm.method)) for arm in tuning.arms}
    return {
        "study": tuning.study.name,
        "directory": str(tuning.directory),
        "metric": tuning.metric,
        "methods": methods,
    }


def write_results(tuning: TuningStudy, log: TrialLog) -> dict[str, str]:
    """Write history, presets and the audit study; return the written files by kind."""
    trials = [trial for arm in tuning.arms for trial in log.trials(arm.method)]
    folder, written = tuning.directory, {"history": HISTORY, "table": "history.csv"}
    _write(folder / HISTORY, json.dumps([_plain(t) for t in trials], indent=1))
    _write(folder / written["table"], _table(trials))
    found = ((arm, best_trial(log.trials(arm.method))) for arm in tuning.arms)
    best = [(arm, trial) for arm, trial in found if trial is not None]
    for arm, trial in best:
        written[arm.method] = f"{BEST}/{arm.method}.toml"
        _write(folder / written[arm.method], preset(tuning, arm, trial))
    if len(best) == len(tuning.arms):
        written["audit"] = AUDIT
        study = audit_study(tuning, {arm.method: trial.params for arm, trial in best})
        _write(folder / AUDIT, study.to_toml())
    return {kind: str(folder / name) for kind, name in written.items()}


def _write(file: Path, content: str) -> None:
    with writing(file):
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, content.encode())


def preset(tuning: TuningStudy, arm: TuningArm, best: Trial) -> str:
    """Return the spec of the best trial at the study's full length, without a seed and with a comment on
    top."""
    spec = _full_length(tuning.study, arm, best.params).to_toml()
    table = "".join(line for line in spec.splitlines(True) if not line.startswith("seed = "))
    spent = f"{tuning.study.tune.trials} trials and {tuning.flops:.4g} FLOPs"
    mean = f"{tuning.metric} {best.mean:.4g} over {len(best.values)} tuning seeds at step {best.steps}"
    return (
        f"# {arm.method} as tuned by {tuning.study.name}: trial {best.number} of {spent}; {mean}.\n" + table
    )


def audit_study(tuning: TuningStudy, best: dict[str, dict[str, Any]]) -> Study:
    """Return the study that compares the best settings on the audit seeds, with the tuning cost of each
    method."""
    study = tuning.study
    settings = {arm.method: {**arm.values, **best[arm.method]} for arm in tuning.arms}
    others = dict.fromkeys(p for own in settings.values() for p in own if not _is_method(p))
    specs = {
        arm.method: flatten(_full_length(study, arm, best[arm.method]).model_dump(mode="json"))
        for arm in tuning.arms
    }
    zipped: dict[str, tuple[Any, ...]] = {"method": tuple(_method_table(own) for own in settings.values())}
    for path in others:
        zipped[path] = tuple(own.get(path, specs[method].get(path)) for method, own in settings.items())
    cost = TuningCost(trials=study.tune.trials, flops=tuning.flops, seeds=tuning.seeds)
    changed = {
        "name": f"{study.name}-tuned",
        "axes": {"seed": tuning.audit_seeds},
        "zip": {"tuned": zipped},
        "exclude": (),
        "set": {path: value for path, value in study.set.items() if path not in others},
        "tune": Tune(),
        "tuning": dict.fromkeys(settings, cost),
        **restricted(study, settings),
    }
    audit = study.model_copy(update=changed)
    # Raises `UserError` here, and not when the audit starts, if the study cannot be planned.
    make_plan(audit)
    return audit


def _full_length(study: Study, arm: TuningArm, params: dict[str, Any]) -> RunSpec:
    return trial_runs(study, arm, params)[0].spec


def _is_method(path: str) -> bool:
    return path == "method" or path.startswith("method.")


def _method_table(settings: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for path, value in settings.items():
        if path == "method":
            table["method"] = {**value}
        elif _is_method(path):
            set_path(table, path, value)
    return table["method"]


def _described(tuning: TuningStudy, trials: Sequence[Trial]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "trials": len(trials),
        "pruned": sum(trial.pruned for trial in trials),
        "flops": {"given": tuning.flops, "spent": sum(trial.flops for trial in trials)},
        "best": None,
    }
    if (best := best_trial(trials)) is not None:
        low, high = interval(list(best.values.values())) or (None, None)
        value = {"mean": best.mean, "low": low, "high": high, "n": len(best.values)}
        found["best"] = {"trial": best.number, "params": best.params, "steps": best.steps, **value}
    return found


def _plain(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON data, with null for infinity."""
    values = {str(s): v if math.isfinite(v) else None for s, v in trial.values.items()}
    named = {"method": trial.method, "trial": trial.number, "params": trial.params}
    rest = {"steps": trial.steps, "flops": trial.flops, "pruned": trial.pruned}
    return {**named, **rest, "runs": {str(s): run for s, run in trial.runs.items()}, "values": values}


def _table(trials: Sequence[Trial]) -> str:
    """Return the history as CSV, one line per run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paths = sorted({path for trial in trials for path in trial.params})
    writer.writerow(["method", "trial", "pruned", "seed", "run", "steps", "value", *paths])
    for trial in trials:
        params = [trial.params.get(path, "") for path in paths]
        for seed, run in trial.runs.items():
            head = [trial.method, trial.number, trial.pruned, seed, run, trial.steps]
            writer.writerow(map(inert, [*head, trial.values[seed], *params]))
    return text.getvalue()
