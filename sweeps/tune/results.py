"""What a search leaves: its history, each method's winner as a preset, and the study that judges the winners on audit seeds."""

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
from harness.files.files import write_atomic, writing
from harness.records.flatten import flatten
from sweeps.plan.plan import plan
from sweeps.plan.study import Study, Tune, Tuned
from sweeps.tune.trial_log import Journal, Trial
from sweeps.tune.tuner import Arm, Tuner, trial_cells

BEST, AUDIT = "best", "audit.toml"


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The lowest mean among trials that ran on all seeds, the first of equals; None where every one of them diverged."""
    whole = [trial for trial in trials if not trial.pruned and math.isfinite(trial.mean)]
    return min(whole, key=lambda trial: (trial.mean, trial.number), default=None)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean over seeds; None for a single one. Of a winner it is optimistic: it was chosen."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = t.ppf(0.5 + confidence / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def describe(tuner: Tuner, journal: Journal) -> dict[str, Any]:
    """What came of a search as JSON: of each method what it was given and spent, and its best trial."""
    methods = {arm.method: _described(tuner, journal.trials(arm.method)) for arm in tuner.arms}
    return {
        "study": tuner.study.name,
        "directory": str(tuner.directory),
        "metric": tuner.metric,
        "methods": methods,
    }


def write_all(tuner: Tuner, journal: Journal) -> dict[str, str]:
    """Write history, presets and the study of the winners; what was written, by kind."""
    trials = [trial for arm in tuner.arms for trial in journal.trials(arm.method)]
    folder, written = tuner.directory, {"history": "history.json", "table": "history.csv"}
    _write(folder / "history.json", json.dumps([_plain(t) for t in trials], indent=1))
    _write(folder / "history.csv", _table(trials))
    best = {arm.method: winner(journal.trials(arm.method)) for arm in tuner.arms}
    for arm in tuner.arms:
        if (won := best[arm.method]) is not None:
            written[arm.method] = f"{BEST}/{arm.method}.toml"
            _write(folder / written[arm.method], preset(tuner, arm, won))
    if all(best.values()):
        written["audit"] = AUDIT
        study = audit_study(tuner, {method: trial.params for method, trial in best.items()})
        _write(folder / AUDIT, study.to_toml())
    return {kind: str(folder / name) for kind, name in written.items()}


def _write(file: Path, content: str) -> None:
    with writing(file):
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, content.encode())


def preset(tuner: Tuner, arm: Arm, won: Trial) -> str:
    """The winner's spec, of the study's own length and without a seed, with a line of prose on top."""
    table = load_toml(_whole(tuner.study, arm, won.params))
    spent = f"{tuner.study.tune.trials} trials and {tuner.flops:.4g} FLOPs"
    mean = f"{tuner.metric} {won.mean:.4g} over {len(won.values)} tuning seeds at step {won.steps}"
    return f"# {arm.method} as tuned by {tuner.study.name}: trial {won.number} of {spent}; {mean}.\n" + table


def load_toml(spec: RunSpec) -> str:
    return "".join(line for line in spec.to_toml().splitlines(True) if not line.startswith("seed = "))


def audit_study(tuner: Tuner, best: dict[str, dict[str, Any]]) -> Study:
    """The winners against each other on the audit seeds, with what each was given for tuning."""
    study = tuner.study
    settings = {arm.method: {**arm.values, **best[arm.method]} for arm in tuner.arms}
    others = dict.fromkeys(p for own in settings.values() for p in own if not _is_method(p))
    specs = {arm.method: flatten(_dumped(_whole(study, arm, best[arm.method]))) for arm in tuner.arms}
    zipped = {"method": tuple(_method_table(own) for own in settings.values())}
    for path in others:
        zipped[path] = tuple(own.get(path, specs[method].get(path)) for method, own in settings.items())
    given = Tuned(trials=study.tune.trials, flops=tuner.flops, seeds=tuner.seeds)
    changed = {
        "name": f"{study.name}-tuned",
        "axes": {"seed": tuner.audit_seeds},
        "zip": {"tuned": zipped},
        "exclude": (),
        "set": {path: value for path, value in study.set.items() if path not in others},
        "tune": Tune(),
        "tuning": dict.fromkeys(settings, given),
    }
    found = study.model_copy(update=changed)
    plan(found)
    return found


def _whole(study: Study, arm: Arm, params: dict[str, Any]) -> RunSpec:
    return trial_cells(study, arm, params)[0].spec


def _dumped(spec: RunSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


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


def _described(tuner: Tuner, trials: Sequence[Trial]) -> dict[str, Any]:
    told = {
        "trials": len(trials),
        "pruned": sum(trial.pruned for trial in trials),
        "flops": {"given": tuner.flops, "spent": sum(trial.flops for trial in trials)},
        "best": None,
    }
    if (won := winner(trials)) is not None:
        low, high = interval(list(won.values.values())) or (None, None)
        value = {"mean": won.mean, "low": low, "high": high, "n": len(won.values)}
        told["best"] = {"trial": won.number, "params": won.params, "steps": won.steps, **value}
    return told


def _plain(trial: Trial) -> dict[str, Any]:
    """A trial as JSON, where infinity is null."""
    values = {str(s): v if math.isfinite(v) else None for s, v in trial.values.items()}
    named = {"method": trial.method, "trial": trial.number, "params": trial.params}
    rest = {"steps": trial.steps, "flops": trial.flops, "pruned": trial.pruned}
    return {**named, **rest, "runs": {str(s): run for s, run in trial.runs.items()}, "values": values}


def _table(trials: Sequence[Trial]) -> str:
    """One line a run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paths = sorted({path for trial in trials for path in trial.params})
    writer.writerow(["method", "trial", "pruned", "seed", "run", "steps", "value", *paths])
    for trial in trials:
        params = [trial.params.get(path, "") for path in paths]
        for seed, run in trial.runs.items():
            head = [trial.method, trial.number, trial.pruned, seed, run, trial.steps]
            writer.writerow([*head, trial.values[seed], *params])
    return text.getvalue()
