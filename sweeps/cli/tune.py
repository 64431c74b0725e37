"""The command `flowrace tune`, which searches settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from harness.config.options import JSON_OPTION, examples
from harness.errors import UserError
from harness.files.terminal import show
from sweeps.cli.display import make_display
from sweeps.cli.first_stage import run_first_stage
from sweeps.cli.options import study_options
from sweeps.cli.study_run import Outputs
from sweeps.cli.tables import exclusion_lines, make_table
from sweeps.launch.base import stop_on_signals
from sweeps.launch.options import LaunchOptions, launch_options, threads_and_launcher
from sweeps.launch.runner import StudyRunner
from sweeps.plan.missing_weights import check_weights, find_missing, missing_lines
from sweeps.plan.plan import PlannedRun
from sweeps.plan.study import format_value, load_study
from sweeps.plan.study_folder import study_lock, write_search

if TYPE_CHECKING:
    from sweeps.tune.tuner import TuningStudy


@click.command(
    epilog=examples(
        "flowrace tune tune-digits --dry-run",
        "flowrace sweep runs/tune-digits/audit.toml",
        then="The second command compares the best settings. Rerun a command to resume it; no trial is lost "
        "or run twice.",
    )
)
@study_options
@launch_options
@click.option(
    "--dry-run", is_flag=True, help="Print the search spaces and each method's budget; start nothing."
)
@JSON_OPTION
def tune(
    source: str,
    out: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    launch: LaunchOptions,
) -> None:
    """Search the settings of every method of a study on equal budgets, on its tuning seeds.

    Exit code 1 if a run failed, 130 if interrupted.
    """
    if find_spec("optuna") is None:
        raise UserError("tuning needs Optuna, which is not installed; see: pip install 'flowrace[tune]'")
    from sweeps.tune.results import describe, write_results
    from sweeps.tune.trial_log import TrialLog
    from sweeps.tune.tuner import Unfinished, first_runs, make_tuning_study
    from sweeps.tune.tuner import tune as search

    study = load_study(source, overrides)
    directory = out or Path("runs") / study.name
    tuning = make_tuning_study(study, directory)
    for line in exclusion_lines(tuning.excluded):
        click.echo(line, err=True)
    if dry_run:
        described = _describe_plan(tuning)
        click.echo(json.dumps(described, indent=1)) if as_json else _print_plan(described)
        return
    check_weights(first_runs(tuning), directory)
    run_first_stage(study, directory, launch, Outputs(no_track=True))
    with study_lock(directory):
        write_search(study, directory)
        log = TrialLog(directory, study.name)
        runs = _TrialRuns(directory, launch, tuning.threads)
        try:
            with runs:
                search(tuning, log, runs.run)
        except Unfinished:
            write_results(tuning, log)
            click.echo("not finished; rerun the same command to resume", err=True)
            sys.exit(130 if runs.stopped else 1)
        written = write_results(tuning, log)
        described = {**describe(tuning, log), "files": written}
    click.echo(json.dumps(described, indent=1)) if as_json else _print_results(described)


class _TrialRuns:
    """Runs the runs of all trials with one launcher. As a context manager it releases the launcher."""

    def __init__(self, directory: Path, launch: LaunchOptions, threads: Sequence[int]) -> None:
        self._directory, self._launch = directory, launch
        self._threads, self._launcher = threads_and_launcher(launch, threads, directory)
        self._signals = stop_on_signals(self._launcher)

    @property
    def stopped(self) -> bool:
        return self._launcher.stopped_by is not None

    def __enter__(self) -> _TrialRuns:
        self._launcher.__enter__()
        self._signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._signals.__exit__(None, None, None)
        self._launcher.__exit__(*error)

    def run(self, runs: Sequence[PlannedRun], headline: str) -> None:
        """Run the unfinished runs; the caller checks which failed or were stopped."""
        threads = self._launch.threads
        runs = [run.with_threads(threads or run.spec.runtime.threads or self._threads) for run in runs]
        display = make_display(runs, self._directory)
        with display:
            display.note(headline)
            runner = StudyRunner(
                runs,
                self._directory,
                self._launcher,
                display,
                on_done=lambda record: None,
                processes=self._launch.processes,
            )
            runner.run()


def _describe_plan(tuning: TuningStudy) -> dict[str, Any]:
    from sweeps.plan.run_cost import run_cost, steps_within
    from sweeps.tune.tuner import first_runs, trial_runs

    tune, methods = tuning.study.tune, {}
    for arm in tuning.arms:
        cost = run_cost(trial_runs(tuning.study, arm, {})[0].spec)
        space = {path: dim.model_dump(exclude_defaults=True) for path, dim in arm.space.items()}
        steps = steps_within(cost, tuning.flops_per_run)
        methods[arm.method] = {"space": space, "steps": steps, "flops": tuning.flops}
    return {
        "study": tuning.study.name,
        "directory": str(tuning.directory),
        "metric": tuning.metric,
        "sampler": tune.sampler,
        "trials": tune.trials,
        "tuning_seeds": list(tuning.seeds),
        "audit_seeds": list(tuning.audit_seeds),
        "runs": len(methods) * tune.trials * len(tuning.seeds),
        "methods": methods,
        "missing_weights": [asdict(one) for one in find_missing(first_runs(tuning), tuning.directory)],
    }


def _print_plan(plan: dict[str, Any]) -> None:
    columns = ("method", "searched", "steps", "FLOPs")
    table = _methods_table(f"search {plan['study']} in {plan['directory']}", columns)
    for method, own in plan["methods"].items():
        searched = "; ".join(f"{path} {_range(dim)}" for path, dim in own["space"].items())
        table.add_row(*map(Text, (method, searched, str(own["steps"]), f"{own['flops']:.3e}")))
    show(table)
    seeds = ", ".join(map(str, plan["tuning_seeds"]))
    print(f"{plan['trials']} trials per method by {plan['sampler']}, each on tuning seeds {seeds}")
    total = sum(own["flops"] for own in plan["methods"].values())
    print(f"at most {plan['runs']} runs, {total:.3e} FLOPs in total")
    if plan["missing_weights"]:
        print("missing weights:")
    for line in missing_lines(plan["missing_weights"]):
        print(f"  {line}")


def _range(dimension: dict[str, Any]) -> str:
    if "choices" in dimension:
        return "in " + ", ".join(map(format_value, dimension["choices"]))
    return f"{dimension['low']:g} to {dimension['high']:g}" + (" (log)" if dimension.get("log") else "")


def _print_results(results: dict[str, Any]) -> None:
    best = f"best {results['metric']}"
    columns = ("method", "trials", "FLOPs spent", "of", best, "95% interval", "n", "settings")
    table = _methods_table(f"search {results['study']} in {results['directory']}", columns)
    for method, own in results["methods"].items():
        spent = (str(own["trials"]), f"{own['flops']['spent']:.3e}", f"{own['flops']['given']:.3e}")
        table.add_row(*map(Text, (method, *spent, *_best(own["best"]))))
    show(table)
    for kind, file in results["files"].items():
        print(f"{kind}: {file}")


def _best(best: dict[str, Any] | None) -> tuple[str, str, str, str]:
    if best is None:
        return ("none", "", "", "every trial diverged")
    interval = "" if best["low"] is None else f"{best['low']:.4g} to {best['high']:.4g}"
    settings = ", ".join(f"{path}={_rounded(value)}" for path, value in best["params"].items())
    return (f"{best['mean']:.4g}", interval, str(best["n"]), settings)


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def _methods_table(title: str, columns: Sequence[str]) -> Table:
    table = make_table(title)
    for column in columns:
        table.add_column(column, no_wrap=column == "method")
    return table
