"""The command that searches settings: tune."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from harness.errors import UserError
from harness.files.files import read_toml, write_atomic, writing
from harness.files.terminal import show
from sweeps.cli.display import Bars, Lines
from sweeps.cli.tables import left_out_lines
from sweeps.launch.base import stop_on_signals
from sweeps.launch.options import Choice, launch_options, threads_and_launcher
from sweeps.launch.runner import Race
from sweeps.plan.plan import Cell
from sweeps.plan.study import load_study, shown
from sweeps.plan.study_folder import SEARCH, alone_in, study_options


@click.command(
    epilog="Example: flowrace tune tune-digits --dry-run. The same command again continues; no trial is lost or run twice. "
    "The winners are judged by: flowrace sweep runs/tune-digits/audit.toml"
)
@study_options
@launch_options
@click.option(
    "--dry-run", is_flag=True, help="Print what is searched and what each method may spend; start nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def tune(
    source: str, out: Path | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, choice: Choice
) -> None:
    """Search the settings of every method of a study on equal budgets, on its tuning seeds. Exit code 1 if a run failed,
    130 if interrupted."""
    if find_spec("optuna") is None:
        raise UserError("tuning needs Optuna, which is not installed; see: pip install 'flowrace[tune]'")
    from sweeps.tune.results import describe, write_all
    from sweeps.tune.trial_log import Journal
    from sweeps.tune.tuner import Unfinished, tuner_of
    from sweeps.tune.tuner import tune as search

    study = load_study(source, overrides)
    directory = out or Path("runs") / study.name
    tuner = tuner_of(study, directory)
    for line in left_out_lines(tuner.left_out):
        click.echo(line, err=True)
    if dry_run:
        described = _plan(tuner)
        click.echo(json.dumps(described, indent=1)) if as_json else _print_plan(described)
        return
    with alone_in(directory):
        _claim(directory, study.name, study.to_toml())
        journal = Journal(directory, study.name)
        try:
            with _Runs(directory, choice, tuner.threads) as runs:
                search(tuner, journal, runs.run)
        except Unfinished:
            write_all(tuner, journal)
            click.echo("not finished; the same command continues", err=True)
            sys.exit(130 if runs.stopped else 1)
        written = write_all(tuner, journal)
        described = {**describe(tuner, journal), "files": written}
    click.echo(json.dumps(described, indent=1)) if as_json else _print_results(described)


class _Runs:
    """Runs cells with one launcher for the whole search. As a context it gives the launcher back."""

    def __init__(self, directory: Path, choice: Choice, threads: Sequence[int]) -> None:
        self._directory, self._choice = directory, choice
        self._threads, self._launcher = threads_and_launcher(choice, threads, directory)
        self._signals = stop_on_signals(self._launcher)

    @property
    def stopped(self) -> bool:
        return self._launcher.stopped_by is not None

    def __enter__(self) -> _Runs:
        self._launcher.__enter__()
        self._signals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._signals.__exit__(None, None, None)
        self._launcher.__exit__(*error)

    def run(self, cells: Sequence[Cell], headline: str) -> None:
        """Run what is not done; what failed or was stopped is for the caller to see."""
        threads = self._choice.threads
        cells = [cell.with_threads(threads or cell.spec.runtime.threads or self._threads) for cell in cells]
        display = (Bars if sys.stderr.isatty() else Lines)(cells, self._directory)
        with display:
            display.note(headline)
            race = Race(
                cells,
                self._directory,
                self._launcher,
                display,
                lambda record: None,
                processes=self._choice.processes,
            )
            race.run()


def _claim(directory: Path, name: str, toml: str) -> None:
    """Keep the study beside its search; raises `UserError` where the folder holds another one."""
    if (directory / SEARCH).exists() and (held := read_toml(directory / SEARCH).get("name")) != name:
        raise UserError(f"{directory} holds the search '{held}', not '{name}'; choose another --out")
    if (directory / "plan.json").exists():
        raise UserError(
            f"{directory} holds the runs of a sweep; tuning runs are kept apart: choose another --out"
        )
    with writing(directory / SEARCH):
        write_atomic(directory / SEARCH, toml.encode())


def _plan(tuner: Any) -> dict[str, Any]:
    from sweeps.tune.tuner import cost_of, steps_within, trial_cells

    methods = {}
    for arm in tuner.arms:
        cost = cost_of(trial_cells(tuner.study, arm, {})[0].spec)
        space = {path: dim.model_dump(exclude_defaults=True) for path, dim in arm.space.items()}
        steps = steps_within(cost, tuner.flops_per_run)
        methods[arm.method] = {"space": space, "steps": steps, "flops": tuner.flops}
    told = {"study": tuner.study.name, "directory": str(tuner.directory), "metric": tuner.metric}
    searched = {"sampler": tuner.study.tune.sampler, "trials": tuner.study.tune.trials}
    seeds = {"tuning_seeds": list(tuner.seeds), "audit_seeds": list(tuner.audit_seeds)}
    runs = len(methods) * tuner.study.tune.trials * len(tuner.seeds)
    return {**told, **searched, **seeds, "runs": runs, "methods": methods}


def _print_plan(plan: dict[str, Any]) -> None:
    table = _table(f"search {plan['study']} in {plan['directory']}", ("method", "searched", "steps", "FLOPs"))
    for method, own in plan["methods"].items():
        searched = "; ".join(f"{path} {_range(dim)}" for path, dim in own["space"].items())
        table.add_row(*map(Text, (method, searched, str(own["steps"]), f"{own['flops']:.3e}")))
    show(table)
    seeds = ", ".join(map(str, plan["tuning_seeds"]))
    print(f"{plan['trials']} trials a method by {plan['sampler']}, each on tuning seeds {seeds}")
    print(
        f"{plan['runs']} runs at most, {sum(m['flops'] for m in plan['methods'].values()):.3e} FLOPs in all"
    )


def _range(dimension: dict[str, Any]) -> str:
    if "choices" in dimension:
        return "in " + ", ".join(map(shown, dimension["choices"]))
    return f"{dimension['low']:g} to {dimension['high']:g}" + (" (log)" if dimension.get("log") else "")


def _print_results(results: dict[str, Any]) -> None:
    columns = (
        "method",
        "trials",
        "FLOPs spent",
        "of",
        f"best {results['metric']}",
        "95% interval",
        "n",
        "settings",
    )
    table = _table(f"search {results['study']} in {results['directory']}", columns)
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
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column == "method")
    return table
